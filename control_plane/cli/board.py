"""What a watch has told so far. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from control_plane.cli import describe
from control_plane.cli import format as fmt
from control_plane.client import job_id
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2

ENDED = frozenset({job_pb2.JOB_STATE_FINISHED, job_pb2.JOB_STATE_FAILED})
"""States after which a job takes no more steps."""


class Board:
    """The jobs as a watch last showed them."""

    def __init__(self) -> None:
        self._jobs: dict[str, job_pb2.Job] = {}

    def apply(self, event: control_pb2.WatchJobsResponse) -> None:
        """Takes an event."""
        if event.type == control_pb2.JOB_EVENT_TYPE_DELETED:
            self._jobs.pop(event.job.name, None)
        elif event.HasField("job"):
            self._jobs[event.job.name] = event.job

    def clear(self) -> None:
        """Forgets everything: a new snapshot comes."""
        self._jobs.clear()

    @property
    def jobs(self) -> Iterable[job_pb2.Job]:
        """The jobs in the order of their names."""
        return [job for _, job in sorted(self._jobs.items())]


def line(event: control_pb2.WatchJobsResponse, now: float) -> str:
    """Returns an event as one line of a log; empty if there is nothing to say."""
    if not event.HasField("job"):
        return ""
    time = describe.seconds(event.time) if event.HasField("time") else now
    job = event.job
    words = [f"{datetime.fromtimestamp(time).astimezone():%H:%M:%S}", job_id(job.name)]
    if event.type == control_pb2.JOB_EVENT_TYPE_DELETED:
        return " ".join([*words, "DELETED"])
    if event.HasField("update"):
        return " ".join([*words, _update(event.update, job)])
    words.append(describe.job_state(job.state))
    for label, text in (
        ("step ", describe.step(job)),
        ("loss ", describe.metric(job, "loss")),
        ("lr ", describe.learning_rate(job)),
    ):
        if text != fmt.UNKNOWN:
            words.append(label + text)
    if (speed := describe.speed(job)) != fmt.UNKNOWN:
        words.append(f"{speed} steps/s")
    if job.state_message:
        words.append(f"({job.state_message})")
    return "  ".join(words)


def _update(update: update_pb2.Update, job: job_pb2.Job) -> str:
    by = f"by {update.author} " if update.author == describe.GUARD else ""
    words = f"update {update.revision} {by}"
    if update.HasField("applied"):
        return words + describe.applied(update)
    words += f"{describe.update_state(update.state)}: {', '.join(describe.changes(update))}"
    said = describe.outcome(update) or describe.waiting(update, job.parameters)
    return f"{words} ({said})" if said else words
