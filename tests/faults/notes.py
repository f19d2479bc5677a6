"""What a training process that is a process of its own says: in a file, before it tells others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from tests.faults.lines import LINE, AnyRecord
from tests.faults.records import Confirmed, InForce, Number, TrainerEnded, TrainerSettled
from tests.faults.told import outcome_of
from trainer_agent.steering.links import Link


class Notes:
    """A file of records, written line by line.

    Args:
        path: Where it is; what it holds stays.
        job: Id of the job.
        instance: The training process; may be set later, before anything is noted.
    """

    def __init__(self, path: Path, job: str, instance: str = "") -> None:
        self.instance = instance
        self._job = job
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, record: AnyRecord) -> None:
        """Notes anything."""
        os.write(self._file, LINE.dump_json(record) + b"\n")

    def settled(self, outcome: session_pb2.UpdateOutcome) -> None:
        """Notes how an update ended."""
        self.add(
            TrainerSettled(
                job=self._job,
                instance=self.instance,
                revision=outcome.revision,
                outcome=outcome_of(outcome),
            )
        )

    def stored(self, revisions: Sequence[int]) -> None:
        """Notes that how these ended is on disk."""
        told = tuple(revisions)
        self.add(Confirmed(job=self._job, instance=self.instance, revisions=told))

    def in_force(self, values: Mapping[str, Number], step: int) -> None:
        """Notes that other values are in force than before."""
        self.add(InForce(job=self._job, instance=self.instance, values=dict(values), step=step))

    def ended(self, values: Mapping[str, Number]) -> None:
        """Notes that it is looked at for the last time."""
        self.add(TrainerEnded(job=self._job, instance=self.instance, values=dict(values)))


class NotedLink:
    """A link that notes how updates ended before it carries that, and what is on disk."""

    def __init__(self, link: Link, notes: Notes) -> None:
        self._link = link
        self._notes = notes
        self.start, self.wait, self.close = link.start, link.wait, link.close

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Carries a message."""
        if message.HasField("outcome"):
            self._notes.settled(message.outcome)
        self._link.send(message)

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Returns what has come."""
        messages = self._link.poll()
        for message in messages:
            if message.HasField("stored"):
                self._notes.stored(message.stored.revisions)
        return messages
