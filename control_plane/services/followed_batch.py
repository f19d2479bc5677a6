"""A batch as somebody follows it: what was told of it, and what is new since."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
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

    from control_plane.services.ports import Member, Transaction
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

    def __init__(self, tx: Transaction, batch: Batch) -> None:
        self.batch = batch
        self.states = tx.batch_states(batch)
        self.members = {member.job_id: member for member in tx.batch_members(batch)}
        self.refusals = tx.batch_refusals(batch) if batch.refused else {}
        self.expected: dict[str, tuple[Transition, ...]] = {}

    def all_jobs(self) -> list[str]:
        """Ids of all its jobs, in order."""
        return sorted((*self.members, *self.refusals))

    def is_open(self, member: Member) -> bool:
        """Whether an update can still be applied, as last told."""
        return self.states.get(member.job_key) in OPEN_STATES

    def look(self, tx: Transaction) -> list[str]:
        """Ids of the jobs where something has changed since it was told."""
        now = tx.batch_states(self.batch)
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
        """What has become of a batch at some jobs; notes the states seen."""
        members = {id_: m for id_ in job_ids if (m := self.members.get(id_)) is not None}
        updates = tx.updates_at([member.place for member in members.values()])
        waiting = [
            id_
            for id_, member in members.items()
            if (update := updates.get(member.place)) is not None
            and update.is_open
            and id_ not in self.expected
        ]
        jobs = tx.jobs_named(waiting)
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
            update = updates.get(member.place)
            if update is None:
                self.states.pop(member.job_key, None)
                items.append(BatchItem(job_id, refusal=_DELETED))
                continue
            self.states[member.job_key] = update.state
            items.append(item_of(update, self.expected.get(job_id, ())))
        return tuple(items)
