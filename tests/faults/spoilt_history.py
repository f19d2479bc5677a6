"""Good histories, each with one thing in it that must not be, by what that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from tests.faults.history import History
from tests.faults.lines import AnyRecord
from tests.faults.made_history import EVERY_KIND, MadeHistory, made
from tests.faults.records import (
    Acknowledged,
    Answered,
    Confirmed,
    Failed,
    Hello,
    InForce,
    Outcome,
    Quiet,
    Record,
    Saved,
    StoredBatch,
    StoredEvent,
    StoredJob,
    StoredUpdate,
    Told,
    TrainerBegan,
    TrainerEnded,
    TrainerSettled,
    Watched,
    Welcomed,
)

R = TypeVar("R", bound=Record)
Records = list[AnyRecord]
GOOD = made(EVERY_KIND)


def the(kind: type[R], where: Callable[[R], bool] = lambda _: True) -> R:
    """The last record of a kind in the good history."""
    return [r for r in GOOD if isinstance(r, kind) and where(r)][-1]


def spoilt(record: AnyRecord, *instead: AnyRecord) -> Records:
    """The good history with something else in the place of one record."""
    at = next(i for i, each in enumerate(GOOD) if each is record)
    return [*GOOD[:at], *instead, *GOOD[at + 1 :]]


def changed(record: Any, **fields: Any) -> Records:
    return spoilt(record, replace(record, **fields))


def batch_without_one() -> Records:
    gone = the(StoredUpdate, lambda u: bool(u.batch))
    without = [r for r in GOOD if r is not gone]
    return [
        replace(r, revisions={j: n for j, n in r.revisions.items() if j != gone.job})
        if isinstance(r, Answered) and r.batch == gone.batch
        else r
        for r in without
    ]


def between_two_values() -> Records:
    seen = the(InForce)
    return spoilt(seen, replace(seen, values=seen.values | {"rate": 0.123}), seen)


def taken_lie() -> Records:
    lie = the(Told, lambda t: t.outcome.reason == "LIE")
    job = next(r.job for r in GOOD if isinstance(r, Hello) and r.session == lie.session)
    return changed(
        the(StoredUpdate, lambda u: (u.job, u.revision) == (job, lie.revision)),
        outcome=lie.outcome,
        state="rejected",
    )


def acknowledged_lie() -> Records:
    lie = the(Told, lambda t: t.outcome.reason == "LIE")
    return spoilt(lie, lie, Acknowledged(session=lie.session, number=lie.number))


def refused_and_stored() -> Records:
    failed = the(Failed)
    asked = History(GOOD).asked[failed.call]
    last = the(StoredUpdate, lambda u: u.job == asked.jobs[0])
    return changed(last, request_id=asked.request_id)


def _applied(update: StoredUpdate) -> bool:
    return update.state == "applied" and not update.batch


def _moved(update: StoredUpdate, **fields: Any) -> Outcome:
    assert update.outcome is not None
    return replace(update.outcome, **fields)


def _resumed(began: TrainerBegan) -> bool:
    return bool(began.checkpoint) and not began.roll_back


def _rolled_back(update: StoredUpdate) -> bool:
    return update.rolled_back_by is not None


def rolled_back_and_applied() -> Records:
    """A process between the one that came from the roll back and the last one does so."""
    gone = the(StoredUpdate, _rolled_back)
    last = the(TrainerBegan, lambda t: t.job == gone.job)
    again = TrainerSettled(
        job=gone.job, instance="between", revision=gone.revision, outcome=_moved(gone)
    )
    again = replace(again, outcome=replace(again.outcome, instance="between"))
    return spoilt(last, replace(last, instance="between"), again, last)


def applied_twice(settled: TrainerSettled) -> Records:
    again = replace(settled, outcome=replace(settled.outcome, step=settled.outcome.step + 5))
    return spoilt(settled, settled, again)


def saved_without(*revisions: int) -> Records:
    """A checkpoint has forgotten what is in force there, so that it is applied again."""
    history = MadeHistory()
    for kind in ("one", "two", "save_checkpoint"):
        history.update(kind, "a", 1.5)
    job = history.jobs["a"]
    job.checkpoint = replace(job.checkpoint, in_force=frozenset(job.in_force) - {*revisions})
    history.update("resumed", "a", 1.5)
    return history.end()


def asked_otherwise(**fields: Any) -> Records:
    stored = the(StoredUpdate, _applied)
    return changed(History(GOOD).requests[stored.job, stored.revision], **fields)


def said_otherwise(say: Callable[[Outcome], Outcome]) -> Records:
    """Trainer, session and store say something else of an update, all of them the same."""
    outcome = _moved(
        the(StoredUpdate, lambda u: _applied(u) and not u.reapplied and not u.rolled_back_by)
    )

    def told(record: AnyRecord) -> AnyRecord:
        match record:
            case TrainerSettled() | StoredUpdate() | Told() if record.outcome == outcome:
                return replace(record, outcome=say(outcome))
            case _:
                return record

    return [told(record) for record in GOOD]


def expired_without_a_limit() -> Records:
    cancelled = the(StoredUpdate, lambda u: u.state == "cancelled")
    last = the(TrainerSettled, lambda s: s.job == cancelled.job)
    outcome = Outcome("expired", reason="max_step")
    return spoilt(last, last, replace(last, revision=cancelled.revision, outcome=outcome))


def acknowledged_and_another() -> Records:
    cancelled = the(StoredUpdate, lambda u: u.state == "cancelled")
    session = the(Hello, lambda h: h.job == cancelled.job).session
    outcome = Outcome("rejected", reason="X")
    return spoilt(
        (quiet := the(Quiet)),
        Told(session=session, number=99, revision=cancelled.revision, outcome=outcome),
        Acknowledged(session=session, number=99),
        quiet,
    )


def refused_again(*, answered: bool) -> Records:
    one = the(Answered, lambda a: not a.batch and a.state == "")
    asked = History(GOOD).asked[one.call]
    failed = Failed(call=900, code="INVALID_ARGUMENT", reason="X")
    return spoilt(one, *([one] if answered else []), replace(asked, call=900), failed)


def never_written(where: Callable[[Watched], bool]) -> Records:
    """Events are left out, of the record and so of what watchers were told."""
    gone = {r.position for r in GOOD if isinstance(r, Watched) and where(r)} - {None}
    assert gone
    return [r for r in GOOD if not (isinstance(r, Watched | StoredEvent) and r.position in gone)]


def _first(watched: Watched) -> bool:
    return (watched.job, watched.revision) == ("a", 1)


SPOILT: dict[str, tuple[str, Callable[[], Records]]] = {
    "an answered update is gone": ("durable", lambda: spoilt(the(StoredUpdate, _applied))),
    "an update is not what was asked for": (
        "durable",
        lambda: changed(the(StoredUpdate, _applied), changes=()),
    ),
    "a cancelled update is not": (
        "durable",
        lambda: changed(the(StoredUpdate, lambda u: u.state == "cancelled"), state="expired"),
    ),
    "an acknowledged outcome is gone": (
        "durable",
        lambda: changed(the(StoredUpdate, _applied), state="delivered", outcome=None),
    ),
    "a confirmed outcome is gone": (
        "durable",
        lambda: changed((one := the(Confirmed)), revisions=(*one.revisions, 99)),
    ),
    "another outcome was acknowledged than is stored": ("durable", acknowledged_and_another),
    "what was applied again is not kept": (
        "durable",
        lambda: changed(the(StoredUpdate, lambda u: bool(u.reapplied)), reapplied=()),
    ),
    "another action is stored than was asked for": (
        "durable",
        lambda: changed(the(StoredUpdate, lambda u: u.action == "save_checkpoint"), action="stop"),
    ),
    "a revision is left out": ("ordered", lambda: spoilt(the(StoredUpdate))),
    "a job has more revisions than updates": (
        "ordered",
        lambda: changed(the(StoredJob), revision=100),
    ),
    "two requests were given one revision": (
        "ordered",
        lambda: spoilt(
            (one := the(Answered, lambda a: not a.batch)),
            one,
            replace(History(GOOD).asked[one.call], call=900, request_id="another"),
            replace(one, call=900),
        ),
    ),
    "outcomes come in another order": (
        "ordered",
        lambda: spoilt(
            the(TrainerSettled, lambda s: s.revision == 1),
            *(r for r in GOOD if isinstance(r, TrainerSettled) and r.revision == 2),
            the(TrainerSettled, lambda s: s.revision == 1),
        ),
    ),
    "a newer update was applied first": (
        "ordered",
        lambda: changed(
            (one := the(TrainerSettled, lambda s: s.revision == 2)),
            outcome=replace(one.outcome, step=1),
        ),
    ),
    "an update was applied twice": ("once", lambda: applied_twice(the(TrainerSettled))),
    "a value was changed by nobody": (
        "once",
        lambda: changed(
            (one := the(TrainerSettled)),
            outcome=replace(
                one.outcome, moves=tuple(replace(m, old=7.5) for m in one.outcome.moves)
            ),
        ),
    ),
    "a checkpoint is applied to that contains it": (
        "once",
        lambda: changed(the(TrainerBegan, _resumed), contains=((1, 99),)),
    ),
    "a checkpoint has forgotten what is in force": ("once", lambda: saved_without(1)),
    "a checkpoint has forgotten everything": ("once", lambda: saved_without(1, 2, 3)),
    "a checkpoint has what was not in force there": (
        "once",
        lambda: changed(
            (one := the(TrainerBegan, _resumed)),
            saved={name: value * 2 for name, value in one.saved.items()},
        ),
    ),
    "an action was carried out again": (
        "once",
        lambda: changed(
            (one := the(StoredUpdate, lambda u: u.action == "save_checkpoint")),
            changes=(),
            reapplied=(_moved(one, instance="another"),),
        ),
    ),
    "what was rolled back is applied again": ("once", rolled_back_and_applied),
    "what was rolled back is in force at the end": (
        "once",
        lambda: changed((one := the(StoredUpdate, _applied)), rolled_back_by=one.revision),
    ),
    "what is wanted is not in force at the end": (
        "once",
        lambda: changed(the(StoredUpdate, _rolled_back), rolled_back_by=None),
    ),
    "the store has one process apply it twice": (
        "once",
        lambda: changed((one := the(StoredUpdate, _applied)), reapplied=(_moved(one, step=77),)),
    ),
    "the store has another step": (
        "truthful",
        lambda: changed((one := the(StoredUpdate, _applied)), outcome=_moved(one, step=77)),
    ),
    "everybody says another step": (
        "truthful",
        lambda: said_otherwise(lambda o: replace(o, step=o.step + 5)),
    ),
    "an update was applied too early": ("truthful", lambda: asked_otherwise(at_step=10_000)),
    "an update was applied too late": ("truthful", lambda: asked_otherwise(max_step=1)),
    "an update expired that has no limit": ("truthful", expired_without_a_limit),
    "a state and an outcome contradict": (
        "truthful",
        lambda: changed(the(StoredUpdate, _applied), state="cancelled"),
    ),
    "the store has another value": (
        "truthful",
        lambda: changed((one := the(StoredUpdate, _applied)), outcome=_moved(one, moves=())),
    ),
    "the store made up a rejection": (
        "truthful",
        lambda: changed(
            the(StoredUpdate, _applied), state="rejected", outcome=Outcome("rejected", reason="X")
        ),
    ),
    "a checkpoint is told of that nobody saved": ("truthful", lambda: spoilt(the(Saved))),
    "nobody applied it": ("truthful", lambda: spoilt(the(TrainerSettled))),
    "a cancelled update was applied": (
        "truthful",
        lambda: changed(
            the(StoredUpdate, _applied), state="cancelled", outcome=Outcome("cancelled")
        ),
    ),
    "other values are in force at the end": (
        "truthful",
        lambda: changed(the(TrainerEnded), values={"rate": 9.0, "decay": 9.0}),
    ),
    "half an update was in force": ("atomic", between_two_values),
    "half an update is in force at the end": (
        "atomic",
        lambda: [
            *changed((end := the(TrainerEnded)), values=(half := end.values | {"rate": 0.123})),
            InForce(job=end.job, instance=end.instance, values=half),
        ],
    ),
    "half an update was applied": (
        "atomic",
        lambda: changed(
            (one := the(TrainerSettled, lambda s: len(s.outcome.moves) == 2)),
            outcome=replace(one.outcome, moves=one.outcome.moves[:1]),
        ),
    ),
    "half a batch was accepted": ("atomic", batch_without_one),
    "a batch is gone": ("atomic", lambda: spoilt(the(StoredBatch))),
    "a request id made two updates": (
        "idempotent",
        lambda: spoilt(
            (one := the(StoredUpdate, _applied)), one, replace(one, revision=one.revision + 1)
        ),
    ),
    "a request id made two batches": (
        "idempotent",
        lambda: spoilt((one := the(StoredBatch)), one, replace(one, batch="batches/900")),
    ),
    "a request was refused after it was answered": (
        "idempotent",
        lambda: refused_again(answered=True),
    ),
    "a request was refused that is stored": (
        "idempotent",
        lambda: refused_again(answered=False),
    ),
    "a repeated request had another answer": (
        "idempotent",
        lambda: changed(
            (one := the(Answered, lambda a: a.call == _repeated())),
            revisions={job: number - 1 for job, number in one.revisions.items()},
        ),
    ),
    "an update came after another than expected": (
        "compare-and-set",
        lambda: changed(
            (one := the(Answered, lambda a: _expecting(a.call))),
            revisions={job: number + 1 for job, number in one.revisions.items()},
        ),
    ),
    "a refused update was stored": ("compare-and-set", refused_and_stored),
    "two sessions have one epoch": ("fenced", lambda: changed(the(Welcomed), epoch=1)),
    "the job is at an older epoch": ("fenced", lambda: changed(the(StoredJob), epoch=1)),
    "what an older session said was taken": ("fenced", taken_lie),
    "what an older session said was acknowledged": ("fenced", acknowledged_lie),
    "a watcher was not told of something": ("watchable", lambda: spoilt(_watched(9))),
    "a watcher was not told of the end": ("watchable", lambda: spoilt(the(Watched))),
    "a watcher was told twice": (
        "watchable",
        lambda: spoilt(_watched(9), _watched(9), _watched(9)),
    ),
    "a watcher was told in another order": (
        "watchable",
        lambda: spoilt(_watched(9), replace(_watched(9), position=11)),
    ),
    "a watcher was told of what there is not": (
        "watchable",
        lambda: spoilt(the(StoredEvent, lambda e: e.position == 9)),
    ),
    "a watcher was told of another update": (
        "watchable",
        lambda: changed(_watched(9), revision=99),
    ),
    "an event was never written": (
        "watchable",
        lambda: never_written(lambda w: _first(w) and w.state == "applied"),
    ),
    "an update is in no event": ("watchable", lambda: never_written(_first)),
    "everybody was told of another end": (
        "watchable",
        lambda: [
            replace(r, state="expired")
            if isinstance(r, Watched) and r.position and _first(r) and r.state == "applied"
            else r
            for r in GOOD
        ],
    ),
    "a watcher saw an update come back": (
        "watchable",
        lambda: changed(the(Watched, lambda w: w.state == "applied"), state="pending"),
    ),
}


def _watched(position: int) -> Watched:
    return the(Watched, lambda w: w.position == position and w.watcher == "all")


def _repeated() -> int:
    first: dict[str, int] = {}
    history = History(GOOD)
    return next(
        asked.call
        for asked, _ in history.answers
        if asked.method == "update" and first.setdefault(asked.request_id, asked.call) != asked.call
    )


def _expecting(call: int) -> bool:
    return History(GOOD).asked[call].expected_revision is not None
