"""What the demos do to a run: look at it while it goes on, and change its learning rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from midcourse.control.v1 import job_pb2

if TYPE_CHECKING:
    from control_plane.client import Client, JobWatch
    from examples.demo.display import Display
    from examples.demo.processes import Process
    from midcourse.control.v1 import update_pb2

_PROGRESS_INTERVAL: Final = 0.1
_APPLY_TIMEOUT: Final = 60.0
_EXIT_TIMEOUT: Final = 60.0
_PATIENCE: Final = 5.0
_ENDED: Final = {job_pb2.JOB_STATE_FINISHED, job_pb2.JOB_STATE_FAILED}


def snapshots(plane: Client, job: str, trainer: Process, display: Display) -> Iterator[job_pb2.Job]:
    """Shows a job until it has ended, and yields it each time that it has changed.

    Raises:
        DemoError: The training run has failed.
    """
    with plane.watch_jobs(
        job=job, progress_interval=_PROGRESS_INTERVAL, patience=_PATIENCE
    ) as watch:
        threading.Thread(target=_end_watch, args=(trainer, watch), daemon=True).start()
        for event in watch:
            if not event.HasField("job"):
                continue
            state = job_pb2.JobState.Name(event.job.state)[len("JOB_STATE_") :].lower()
            display.show(event.job, state)
            yield event.job
            if event.job.state in _ENDED:
                break
    trainer.wait(_EXIT_TIMEOUT)


def set_rate(
    plane: Client, job: str, display: Display, rate: float, reason: str, *, force: bool = False
) -> tuple[update_pb2.Update, float]:
    """Changes the learning rate; returns the update and the seconds until it was made.

    Args:
        plane: The control plane.
        job: Id of the job.
        display: What shows the job.
        rate: The new learning rate.
        reason: Why.
        force: Overrides the guard rail.
    """
    forced = "force=True, " if force else ""
    display.line(
        f'→ plane.set("{job}", learning_rate={rate:g}, reason="{reason}", {forced}wait=True)',
        style="bold",
    )
    called = time.time()
    update = plane.set(
        job,
        learning_rate=rate,
        reason=reason,
        force=force,
        wait=True,
        wait_timeout=_APPLY_TIMEOUT,
    )
    latency = update.applied.apply_time.ToNanoseconds() / 1e9 - called
    display.line(
        f"← APPLIED at step {update.applied.step}, {old_to_new(update)}, "
        f"{1e3 * latency:.0f} ms after the call",
        style="bold green",
    )
    return update, latency


def old_to_new(update: update_pb2.Update) -> str:
    """Says what an update has changed."""
    transition = update.applied.transitions[0]
    return (
        f"{transition.parameter} {transition.old_value.number:.3g} → "
        f"{transition.new_value.number:.3g}"
    )


def _end_watch(trainer: Process, watch: JobWatch) -> None:
    """Ends the watch when the process has ended without saying so."""
    if trainer.popen.wait() == 0:
        time.sleep(_PATIENCE)  # for its agent to report the end
    watch.close()
