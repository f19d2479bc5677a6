"""Histories that were made up, in which everything holds: to be spoilt, to test validators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from hypothesis import strategies as st

from tests.faults.lines import AnyRecord
from tests.faults.records import (
    Acknowledged,
    Answered,
    Asked,
    Change,
    Confirmed,
    Delivered,
    Failed,
    Hello,
    InForce,
    Move,
    Number,
    Outcome,
    Quiet,
    Saved,
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
Kind = Literal[
    "one",
    "two",
    "again",
    "expecting",
    "refused",
    "cancelled",
    "batch",
    "late",
    "save_checkpoint",
    "resumed",
    "roll_back",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class _Checkpoint:
    path: str = ""
    step: int = 10
    values: Mapping[str, Number] = field(default_factory=lambda: {"rate": 1.0, "decay": 2.0})
    in_force: frozenset[int] = frozenset()
    saved_by: str = ""


@dataclass
class _Job:
    name: str
    checkpoint: _Checkpoint = field(default_factory=_Checkpoint)
    instances: int = 1
    in_force: set[int] = field(default_factory=set)
    values: dict[str, Number] = field(default_factory=lambda: {"rate": 1.0, "decay": 2.0})
    revision: int = 0
    step: int = 10
    epoch: int = 0
    session: int = 0
    number: int = 1
    updates: list[StoredUpdate] = field(default_factory=list)

    @property
    def instance(self) -> str:
        return f"instance-{self.name}-{self.instances}"

    def replace(self, stored: StoredUpdate) -> None:
        """Has another update in the place of the one with its revision."""
        self.updates = [stored if u.revision == stored.revision else u for u in self.updates]

    @property
    def gone(self) -> list[StoredUpdate]:
        """What was in force, and is not where the newest checkpoint was saved."""
        left = self.in_force - self.checkpoint.in_force
        return [each for each in self.updates if each.revision in left]


class MadeHistory:
    """Says, for all parties at once, what each would have seen."""

    def __init__(self) -> None:
        self.records: list[AnyRecord] = []
        self.jobs = {name: _Job(name) for name in JOBS}
        self._events: list[StoredEvent] = []
        self._batches: list[StoredBatch] = []
        self._numbers = 0
        for watcher, only in WATCHERS.items():
            self.records.append(WatchBegan(watcher=watcher, to="x", job=only))
            self.records.append(Watched(watcher=watcher, event="bookmark", position=0))
        for job in self.jobs.values():
            self._event(job, None)
            self.records.append(
                TrainerBegan(job=job.name, instance=job.instance, values=dict(job.values))
            )
            self._session(job)

    def update(self, kind: Kind, name: str, factor: float) -> None:
        """One request, and what becomes of it."""
        job = self.jobs[name]
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
            case "resumed":
                self._resumed(job)
            case "roll_back":
                self._roll_back(job, request_id, changes)
            case "save_checkpoint":
                asked = self._ask(job, request_id, changes, action=kind)
                stored = self._accept(job, request_id, changes, action=kind)
                self._answer(asked, job)
                self._apply(job, stored, saves=True)
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
        for job in self.jobs.values():
            self.records.append(
                TrainerEnded(job=job.name, instance=job.instance, values=dict(job.values))
            )
        for job in self.jobs.values():
            self.records.append(StoredJob(job=job.name, revision=job.revision, epoch=job.epoch))
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
        action: str = "",
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
            action=action,
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
        self._batches.append(StoredBatch(batch=name, request_id=request_id))
        each = [
            (job, self._accept(job, f"of-{name}", changes, batch=name))
            for job in self.jobs.values()
        ]
        revisions = {job.name: job.revision for job in self.jobs.values()}
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

    def _resumed(self, job: _Job) -> None:
        """The process dies, and the next one goes on from the newest checkpoint."""
        again = job.gone
        self._next_process(job)
        for stored in again:
            self._apply(job, stored)

    def _roll_back(self, job: _Job, request_id: str, changes: tuple[Change, ...]) -> None:
        asked = self._ask(job, request_id, changes, action="roll_back")
        stored = self._accept(job, request_id, changes, action="roll_back")
        self._answer(asked, job)
        for gone in job.gone:
            job.replace(replace(gone, rolled_back_by=stored.revision))
            self._event(job, gone.revision, "applied")
        self._next_process(job, stored.revision)
        self._apply(job, stored, checkpoint=job.checkpoint.path)

    def _next_process(self, job: _Job, roll_back: int = 0) -> None:
        kept = job.checkpoint
        self.records.append(
            TrainerEnded(job=job.name, instance=job.instance, values=dict(job.values))
        )
        job.instances += 1
        job.values, job.step, job.in_force = dict(kept.values), kept.step, set(kept.in_force)
        self.records.append(
            TrainerBegan(
                job=job.name,
                instance=job.instance,
                values=dict(kept.values),
                checkpoint=kept.path,
                contains=tuple((each, each) for each in sorted(kept.in_force)),
                saved_by=kept.saved_by,
                saved=dict(kept.values) if kept.saved_by else {},
                roll_back=roll_back,
            )
        )
        self._session(job)

    def _save(self, job: _Job) -> str:
        path = f"checkpoint-{self._next()}"
        job.checkpoint = _Checkpoint(
            path, job.step, dict(job.values), frozenset(job.in_force), job.instance
        )
        self.records.append(Saved(job=job.name, instance=job.instance, checkpoint=path))
        return path

    def _accept(
        self,
        job: _Job,
        request_id: str,
        changes: tuple[Change, ...],
        *,
        batch: str = "",
        action: str = "",
    ) -> StoredUpdate:
        job.revision += 1
        stored = StoredUpdate(
            job=job.name,
            revision=job.revision,
            request_id=request_id,
            state="pending",
            changes=changes,
            batch=batch,
            action=action,
        )
        self._event(job, stored.revision, "pending")
        return stored

    def _apply(
        self, job: _Job, stored: StoredUpdate, checkpoint: str = "", *, saves: bool = False
    ) -> None:
        self.records.append(Delivered(session=job.session, revision=stored.revision))
        if stored.outcome is None:
            self._event(job, stored.revision, "delivered")
        moves = []
        for change in stored.changes:
            old = job.values[change.parameter]
            new = change.value if change.op == "set" else old * change.value
            job.values[change.parameter] = new
            moves.append(Move(change.parameter, old, new))
        job.step += 1
        job.in_force.add(stored.revision)
        path = self._save(job) if saves else checkpoint
        outcome = Outcome("applied", job.instance, job.step, tuple(moves), checkpoint=path)
        self.records += [
            InForce(
                job=job.name, instance=job.instance, values=dict(job.values), step=job.step - 1
            ),
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
        if stored.outcome is None:
            self._settle(job, stored, outcome, "applied")
        else:
            job.replace(replace(stored, reapplied=(*stored.reapplied, outcome)))
            self._event(job, stored.revision, "applied")
        self.records.append(Acknowledged(session=job.session, number=job.number))
        told = (stored.revision,)
        self.records.append(Confirmed(job=job.name, instance=job.instance, revisions=told))

    def _settle(self, job: _Job, stored: StoredUpdate, outcome: Outcome, state: str) -> None:
        job.updates.append(replace(stored, state=state, outcome=outcome))
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


# What comes after a checkpoint is lost with what follows.
_IN_ORDER: tuple[Kind, ...] = (*KINDS[:-2], "one", "resumed", "two", "roll_back")
EVERY_KIND = [(kind, job, 1.5) for kind in _IN_ORDER for job in JOBS]

histories = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(JOBS), st.sampled_from([0.5, 1.5, 2.0])),
    max_size=12,
).map(lambda more: made([*EVERY_KIND, *more]))
"""Histories with every kind of request in them, in which all that was promised holds."""
