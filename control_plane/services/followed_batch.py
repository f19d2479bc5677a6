"""A batch as somebody follows it: what was told of it, and what is new since."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from control_plane.domain.batch import (
    Batch,
    BatchItem,
    BatchProgress,
    JobRefusal,
    expected_transitions,
    item_of,
)
from control_plane.domain.errors import Reason
from control_plane.domain.update import OPEN_STATES, Transition, UpdateState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from control_plane.services.ports import Transaction
    from control_plane.services.records import Member
    from control_plane.services.telemetry import TelemetryHub

_DELETED = JobRefusal(Reason.JOB_DELETED, "the job was deleted, and its updates with it")


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch and how far it has come."""

    batch: Batch
    progress: BatchProgress


def view_of(batch: Batch, states: Mapping[UpdateState, int]) -> BatchView:
    """A batch whose updates are in these states, so many each."""
    return BatchView(batch, BatchProgress(batch.total, batch.refused, states))


class Followed:
    """A batch as somebody follows it.

    Attributes:
        members: Its updates, by job id.
        states: As last told, by job key; without those of jobs that were deleted.
        refusals: Jobs that have no update, by id.
        expected: What open updates would change, by job id.
    """

    def __init__(
        self,
        tx: Transaction,
        batch: Batch,
        expected: Mapping[str, tuple[Transition, ...]] = MappingProxyType({}),
    ) -> None:
        """Begins to follow a batch.

        Args:
            tx: Tells how it stands.
            batch: The batch.
            expected: What open updates would change, where that is known, by job id.
        """
        self.batch = batch
        self.states = tx.batch_states(batch)
        # As last read. An update that is open is told by this alone.
        self._read = dict(self.states)
        self.members = {member.job_id: member for member in tx.batch_members(batch)}
        self.refusals = tx.batch_refusals(batch) if batch.refused else {}
        self.expected = dict(expected)

    def all_jobs(self) -> list[str]:
        """Ids of all its jobs, in order."""
        return sorted((*self.members, *self.refusals))

    def is_open(self, member: Member) -> bool:
        """Whether an update can still be applied, as last told."""
        return self.states.get(member.job_key) in OPEN_STATES

    def look(self, tx: Transaction) -> list[str]:
        """Ids of the jobs where something has changed since it was told."""
        self._read = now = tx.batch_states(self.batch)
        return [
            member.job_id
            for member in self.members.values()
            if now.get(member.job_key) is not self.states.get(member.job_key)
        ]

    def view(self) -> BatchView:
        """The batch, as far as it has come by what was told."""
        return view_of(self.batch, Counter(self.states.values()))

    def items(
        self, tx: Transaction, telemetry: TelemetryHub, job_ids: Sequence[str]
    ) -> tuple[BatchItem, ...]:
        """What has become of a batch at some jobs, as last looked at; notes what was told."""
        members = {id_: m for id_ in job_ids if (m := self.members.get(id_)) is not None}
        waiting = {id_ for id_, m in members.items() if self._read.get(m.job_key) in OPEN_STATES}
        updates = tx.updates_at([m.place for id_, m in members.items() if id_ not in waiting])
        jobs = tx.jobs_named(waiting - self.expected.keys())
        telemetry.read_ahead(tx, jobs)
        for job in jobs:
            in_force = telemetry.in_force(tx, job)
            self.expected[job.id] = expected_transitions(self.batch.spec, job, in_force)
        items: list[BatchItem] = []
        for job_id in job_ids:
            if (refusal := self.refusals.get(job_id)) is not None:
                items.append(BatchItem(job_id, refusal=refusal))
                continue
            member = members[job_id]
            if job_id in waiting:
                state = self.states[member.job_key] = self._read[member.job_key]
                expected = self.expected.get(job_id, ())
                items.append(BatchItem(job_id, member.revision, state, expected))
            elif (update := updates.get(member.place)) is not None:
                self.states[member.job_key] = update.state
                items.append(item_of(update))
            else:
                self.states.pop(member.job_key, None)
                items.append(BatchItem(job_id, refusal=_DELETED))
        return tuple(items)
