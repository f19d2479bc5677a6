"""Histories that were made up, in which everything holds: to be spoilt, to test validators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import strategies as st

from tests.faults.records import (
    Acknowledged,
    Answered,
    AnyRecord,
    Asked,
    Change,
    Delivered,
    Failed,
    Hello,
    InForce,
    Move,
    Number,
    Outcome,
    Quiet,
    StoredBatch,
    StoredEvent,
    StoredJob,
    StoredUpdate,
    Told,
    TrainerBegan,
    TrainerEnded,
    TrainerSettled,
    WatchBegan,
    Watched,
    Welcomed,
)

JOBS = ("a", "b")
WATCHERS = {"all": "", "again": "", "only-a": "a"}
Kind = Literal["one", "two", "again", "expecting", "refused", "cancelled", "batch", "late"]
KINDS: tuple[Kind, ...] = (
    *("one", "two", "again", "expecting", "refused", "cancelled", "batch", "late"),
)


@dataclass
class _Job:
    name: str
    values: dict[str, Number] = field(default_factory=lambda: {"rate": 1.0, "decay": 2.0})
    revision: int = 0
    step: int = 10
    epoch: int = 0
    session: int = 0
    number: int = 1
    updates: list[StoredUpdate] = field(default_factory=list)

    @property
    def instance(self) -> str:
        return f"instance-{self.name}"


class MadeHistory:
    """Says, for all parties at once, what each would have seen."""

    def __init__(self) -> None:
        self.records: list[AnyRecord] = []
        self._jobs = {name: _Job(name) for name in JOBS}
        self._events: list[StoredEvent] = []
        self._batches: list[StoredBatch] = []
        self._numbers = 0
        for watcher, only in WATCHERS.items():
            self.records.append(WatchBegan(watcher=watcher, to="x", job=only))
            self.records.append(Watched(watcher=watcher, event="bookmark", position=0))
        for job in self._jobs.values():
            self._event(job, None)
            self.records.append(
                TrainerBegan(job=job.name, instance=job.instance, values=dict(job.values))
            )
            self._session(job)

    def update(self, kind: Kind, name: str, factor: float) -> None:
        """One request, and what becomes of it."""
        job = self._jobs[name]
        changes: tuple[Change, ...] = (Change("rate", "multiply", factor),)
        if kind == "two":
            changes += (Change("decay", "set", factor),)
        request_id = f"request-{self._next()}"
        match kind:
            case "batch":
                self._batch(request_id, changes)
            case "refused":
                asked = self._ask(job, request_id, changes, expected_revision=job.revision + 1)
                self.records.append(
                    Failed(call=asked.call, code="ABORTED", reason="REVISION_MISMATCH")
                )
            case "cancelled":
                self._cancelled(job, request_id, changes)
            case "late":
                self._impostor(job, request_id, changes)
            case _:
                expected = job.revision if kind == "expecting" else None
                asked = self._ask(job, request_id, changes, expected_revision=expected)
                stored = self._accept(job, request_id, changes)
                self._answer(asked, job)
                if kind == "again":
                    self._answer(self._ask(job, request_id, changes), job)
                self._apply(job, stored)

    def end(self) -> list[AnyRecord]:
        """All of it, with the store at the end."""
        last = self._events[-1].position
        self.records.append(Quiet(position=last, watchers=tuple(WATCHERS)))
        for job in self._jobs.values():
            self.records.append(
                TrainerEnded(job=job.name, instance=job.instance, values=dict(job.values))
            )
        for job in self._jobs.values():
            self.records.append(
                StoredJob(
                    job=job.name, revision=job.revision, epoch=job.epoch, instance=job.instance
                )
            )
            self.records += job.updates
        return [*self.records, *self._batches, *self._events]

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _ask(
        self,
        job: _Job,
        request_id: str,
        changes: tuple[Change, ...],
        *,
        expected_revision: int | None = None,
        at_step: int | None = None,
    ) -> Asked:
        asked = Asked(
            caller="caller",
            call=self._next(),
            to="x",
            method="update",
            jobs=(job.name,),
            request_id=request_id,
            changes=changes,
            expected_revision=expected_revision,
            at_step=at_step,
        )
        self.records.append(asked)
        return asked

    def _answer(self, asked: Asked, job: _Job) -> None:
        self.records.append(Answered(call=asked.call, revisions={job.name: job.revision}))

    def _batch(self, request_id: str, changes: tuple[Change, ...]) -> None:
        asked = Asked(
            caller="caller",
            call=self._next(),
            to="x",
            method="batch",
            jobs=JOBS,
            request_id=request_id,
            changes=changes,
        )
        self.records.append(asked)
        name = f"batches/{self._next()}"
        self._batches.append(StoredBatch(batch=name, request_id=request_id, updates=len(JOBS)))
        each = [
            (job, self._accept(job, f"of-{name}", changes, batch=name))
            for job in self._jobs.values()
        ]
        revisions = {job.name: job.revision for job in self._jobs.values()}
        self.records.append(Answered(call=asked.call, revisions=revisions, batch=name))
        for job, stored in each:
            self._apply(job, stored)

    def _cancelled(self, job: _Job, request_id: str, changes: tuple[Change, ...]) -> None:
        asked = self._ask(job, request_id, changes, at_step=job.step + 100)
        stored = self._accept(job, request_id, changes)
        self._answer(asked, job)
        cancel = Asked(
            caller="caller",
            call=self._next(),
            to="x",
            method="cancel",
            jobs=(job.name,),
            revision=stored.revision,
        )
        self.records.append(cancel)
        self._settle(job, stored, Outcome("cancelled"), "cancelled")
        self.records.append(
            Answered(call=cancel.call, revisions={job.name: stored.revision}, state="cancelled")
        )

    def _impostor(self, job: _Job, request_id: str, changes: tuple[Change, ...]) -> None:
        """Another session says something of an update after the agent's own took over."""
        asked = self._ask(job, request_id, changes)
        stored = self._accept(job, request_id, changes)
        self._answer(asked, job)
        self._session(job)
        late = job.session
        self._session(job)
        lie = Outcome("rejected", reason="LIE")
        self.records.append(Told(session=late, number=2, revision=stored.revision, outcome=lie))
        self._apply(job, stored)

    def _session(self, job: _Job) -> None:
        job.epoch += 1
        job.session = self._next()
        job.number = 1
        self.records.append(Hello(session=job.session, to="x", job=job.name, instance=job.instance))
        self.records.append(Welcomed(session=job.session, epoch=job.epoch))
        self._event(job, None)

    def _accept(
        self, job: _Job, request_id: str, changes: tuple[Change, ...], *, batch: str = ""
    ) -> StoredUpdate:
        job.revision += 1
        stored = StoredUpdate(
            job=job.name,
            revision=job.revision,
            request_id=request_id,
            state="pending",
            changes=changes,
            batch=batch,
        )
        self._event(job, stored.revision, "pending")
        return stored

    def _apply(self, job: _Job, stored: StoredUpdate) -> None:
        self.records.append(Delivered(session=job.session, revision=stored.revision))
        self._event(job, stored.revision, "delivered")
        moves = []
        for change in stored.changes:
            old = job.values[change.parameter]
            new = change.value if change.op == "set" else old * change.value
            job.values[change.parameter] = new
            moves.append(Move(change.parameter, old, new))
        job.step += 1
        outcome = Outcome("applied", job.instance, job.step, tuple(moves))
        self.records += [
            InForce(job=job.name, instance=job.instance, values=dict(job.values)),
            TrainerSettled(
                job=job.name, instance=job.instance, revision=stored.revision, outcome=outcome
            ),
        ]
        job.number += 1
        self.records.append(
            Told(
                session=job.session,
                number=job.number,
                revision=stored.revision,
                outcome=outcome,
            )
        )
        self._settle(job, stored, outcome, "applied")
        self.records.append(Acknowledged(session=job.session, number=job.number))

    def _settle(self, job: _Job, stored: StoredUpdate, outcome: Outcome, state: str) -> None:
        job.updates.append(
            StoredUpdate(
                job=stored.job,
                revision=stored.revision,
                request_id=stored.request_id,
                state=state,
                changes=stored.changes,
                batch=stored.batch,
                outcome=outcome,
            )
        )
        self._event(job, stored.revision, state)

    def _event(self, job: _Job, revision: int | None, state: str = "") -> None:
        position = len(self._events) + 1
        self._events.append(
            StoredEvent(position=position, event="modified", job=job.name, revision=revision)
        )
        for watcher, only in WATCHERS.items():
            if only in ("", job.name):
                self.records.append(
                    Watched(
                        watcher=watcher,
                        event="modified",
                        position=position,
                        job=job.name,
                        revision=revision,
                        state=state,
                    )
                )


def made(requests: Sequence[tuple[Kind, str, float]]) -> list[AnyRecord]:
    """The history of some requests."""
    history = MadeHistory()
    for kind, job, factor in requests:
        history.update(kind, job, factor)
    return history.end()


EVERY_KIND = [(kind, job, 1.5) for kind in KINDS for job in JOBS]

histories = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(JOBS), st.sampled_from([0.5, 1.5, 2.0])),
    max_size=12,
).map(lambda more: made([*EVERY_KIND, *more]))
"""Histories with every kind of request in them, in which all that was promised holds."""
