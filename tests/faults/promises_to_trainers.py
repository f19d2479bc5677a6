"""Validators of what becomes of updates in training: ordered, once, truthful, atomic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tests.faults.history import History, Trainer
from tests.faults.promises_to_lineages import applications, once_in_a_lineage, saved_as_told
from tests.faults.records import (
    OPEN,
    Asked,
    Change,
    Move,
    Number,
    Quiet,
    StoredBatch,
    StoredJob,
    StoredUpdate,
    TrainerEnded,
    TrainerSettled,
)
from tests.faults.violations import Violation


def ordered(history: History) -> Iterator[Violation]:
    """Revisions are contiguous; what is due at the same boundary is applied in their order."""
    for stored_job in history.of(StoredJob):
        updates = history.updates_of.get(stored_job.job, [])
        revisions = [update.revision for update in updates]
        if revisions != list(range(1, stored_job.revision + 1)):
            what = f"{stored_job.job} has the revisions {revisions}"
            yield Violation("ordered", what, (stored_job,))
    for job in history.updates_of.keys() - {each.job for each in history.of(StoredJob)}:
        yield Violation("ordered", f"{job} has updates and is not there")
    due = {where for where, asked in history.requests.items() if asked.at_step is None}
    for asked, answered in history.answers:
        if asked.method == "cancel":
            continue
        for job, revision in answered.revisions.items():
            given = history.requests[job, revision]
            if given.request_id != asked.request_id:
                what = f"{job}/{revision} was given to two requests"
                yield Violation("ordered", what, (given, asked, answered))
    for trainer in history.trainers:
        for first, second in pairwise(_first_told(trainer)):
            if _place(first) > _place(second):
                yield Violation("ordered", "told in another order than applied", (first, second))
        # What one went back for was done before it was given anything: an action, say, that the
        # one before had no time for, and could not tell of.
        at_once = [
            each
            for each in trainer.applied
            if (trainer.job, each.revision) in due
            and each.outcome.step
            and each.revision != trainer.went_back
        ]
        for first, second in pairwise(at_once):
            if first.revision > second.revision:
                what = f"{trainer.job}/{second.revision} was due and came after {first.revision}"
                yield Violation("ordered", what, (first, second))


def _first_told(trainer: Trainer) -> list[TrainerSettled]:
    """What a trainer changed, in the order in which it said so for the first time.

    An action is told of as soon as it is done, a change not before a step has used it.
    """
    first: dict[int, TrainerSettled] = {}
    for each in trainer.settled:
        if trainer.has_applied(each) and each.outcome.step and each.outcome.moves:
            first.setdefault(each.revision, each)
    return list(first.values())


def _place(settled: TrainerSettled) -> tuple[int, int]:
    return settled.outcome.step, settled.revision


def once(history: History) -> Iterator[Violation]:
    """A training process applies no update twice, and each finds what the one before it left."""
    for trainer in history.trainers:
        first: dict[int, TrainerSettled] = {}
        for each in trainer.settled:
            known = first.setdefault(each.revision, each)
            if known.outcome != each.outcome:
                what = f"{trainer.job}/{each.revision} ended twice, and differently"
                yield Violation("once", what, (known, each))
        values = trainer.values()
        for before, each in zip(values, trainer.applied, strict=False):
            for move in each.outcome.moves:
                if move.old != before.get(move.parameter):
                    what = (
                        f"{trainer.job}/{each.revision} found {move.parameter} at {move.old}, "
                        f"where {before.get(move.parameter)} was left"
                    )
                    yield Violation("once", what, (each,))
        for each in trainer.applied:
            again = each.outcome.instance == trainer.instance and trainer.contains(each.revision)
            if again and trainer.began is not None:
                what = f"{trainer.job}/{each.revision} was applied to a checkpoint that contains it"
                yield Violation("once", what, (trainer.began, each))
    for stored in history.of(StoredUpdate):
        by = [each.instance for each in applications(stored) if each.instance]
        if len(set(by)) != len(by):
            what = f"{stored.job}/{stored.revision} was applied twice by one process"
            yield Violation("once", what, (stored,))
        if stored.action and not stored.changes and stored.reapplied:
            what = f"{stored.job}/{stored.revision} is nothing but an action, and was done again"
            yield Violation("once", what, (stored,))
    yield from once_in_a_lineage(history)


def truthful(history: History) -> Iterator[Violation]:
    """What the store says was applied is what the training process did, and the other way round."""
    for stored in history.of(StoredUpdate):
        yield from _store_says(history, stored)
    for job, trainer in history.newest.items():
        yield from _trainer_says(history, job, trainer)
    for trainer in history.trainers:
        yield from _as_asked(history, trainer)
        yield from _when_asked(history, trainer)
        yield from _when_said(trainer)
    yield from saved_as_told(history)


def _store_says(history: History, stored: StoredUpdate) -> Iterator[Violation]:
    name = f"{stored.job}/{stored.revision}"
    # What is in a checkpoint may be told by the one that goes on from there.
    told = [
        each
        for trainer in history.trainers
        if trainer.job == stored.job
        for each in trainer.settled
        if each.revision == stored.revision
    ]
    outcome = stored.outcome
    if stored.state not in (OPEN if outcome is None else (outcome.result,)):
        yield Violation("truthful", f"{name} is called {stored.state}, which it is not", (stored,))
    rejected = [outcome] if outcome is not None and outcome.result == "rejected" else []
    for said in (*applications(stored), *rejected):
        if said not in [each.outcome for each in told]:
            what = f"{name} is stored as {said}, and no training process said so"
            yield Violation("truthful", what, (stored, *told))


def _trainer_says(history: History, job: str, trainer: Trainer) -> Iterator[Violation]:
    """What the process that stands did is in the store: all was settled at the end."""
    for each in trainer.settled:
        stored = history.stored.get((job, each.revision))
        if stored is None:
            what = f"{job}/{each.revision} is not in the store"
            yield Violation("truthful", what, (each,))
        elif each.outcome.result == "applied" and each.outcome not in applications(stored):
            what = f"{job}/{each.revision} was applied, which the store does not say"
            yield Violation("truthful", what, (each, stored))
    if trainer.ended is None:
        return
    last = trainer.values()[-1]
    if trainer.ended.values != last:
        what = f"{job} ended with other values than its updates have led to: {last}"
        yield Violation("truthful", what, (trainer.ended,))


def _as_asked(history: History, trainer: Trainer) -> Iterator[Violation]:
    for each in trainer.applied:
        stored = history.stored.get((trainer.job, each.revision))
        if stored is None:
            continue
        for change in stored.changes:
            for move in each.outcome.moves:
                if move.parameter == change.parameter and not _fulfils(move, change):
                    what = f"{trainer.job}/{each.revision} did not do what it was asked to"
                    yield Violation("truthful", what, (stored, each))


def _when_asked(history: History, trainer: Trainer) -> Iterator[Violation]:
    """No update is applied before its step or after its last one, nor expires without a limit."""
    for each in trainer.settled:
        asked = history.requests.get((trainer.job, each.revision))
        stored = history.stored.get((trainer.job, each.revision))
        if asked is None or stored is None:
            continue
        step, limits = each.outcome.step, {"deadline": asked.deadline, "max_step": asked.max_step}
        wrong = each.outcome.result == "expired" and limits.get(each.outcome.reason, 0) is None
        if trainer.has_applied(each) and step:
            wrong = step < (asked.at_step or 0)
            # What was applied before and is put in force again is so at whatever hour.
            again = each.outcome != stored.outcome and _was_applied_before(history, trainer, stored)
            if asked.max_step is not None and not again:
                wrong |= step > asked.max_step
        if wrong:
            what = f"{trainer.job}/{each.revision} ended at another time than was asked for"
            yield Violation("truthful", what, (asked, each))


def _was_applied_before(history: History, trainer: Trainer, stored: StoredUpdate) -> bool:
    """Whether the first to apply an update, as the store says, began before a training process."""
    first = None if stored.outcome is None else stored.outcome.instance
    began = list(history.trainer)
    return first in began and began.index(first) < began.index(trainer.instance)


def _when_said(trainer: Trainer) -> Iterator[Violation]:
    """Values are in force from the boundary on before the step that is said to be the first."""
    states = trainer.values()
    if not _told_all_it_did(trainer):
        return
    at = 0
    for seen in trainer.in_force:
        alike = [count for count in range(at, len(states)) if states[count] == seen.values]
        # What was told at once: that with which it began.
        here = [n for n in alike if n == 0 or trainer.applied[n - 1].outcome.step - 1 == seen.step]
        if seen.step is not None and alike and not here:
            what = f"{trainer.job} was seen with new values at another step than it says"
            yield Violation("truthful", what, (seen, trainer.applied[alike[0] - 1]))
        at = next(iter(here or alike), at)


def _fulfils(move: Move, change: Change) -> bool:
    if move.new is None or move.old is None:
        return False
    wanted: Number = change.value if change.op == "set" else move.old * change.value
    return math.isclose(move.new, wanted, rel_tol=1e-9)


def atomic(history: History) -> Iterator[Violation]:
    """All changes of an update take effect together; a batch is accepted for all or for none."""
    at_rest = _at_rest(history)
    for trainer in history.trainers:
        yield from _in_one_piece(history, trainer)
        yield from _never_between(trainer, rested=trainer.instance in at_rest)
    in_store = Counter(update.batch for update in history.of(StoredUpdate) if update.batch)
    batches = {batch.batch: batch for batch in history.of(StoredBatch)}
    asked_by = {asked.request_id: asked for asked in history.of(Asked) if asked.method == "batch"}
    for name in in_store.keys() | batches.keys():
        batch = batches.get(name)
        asked = asked_by.get(batch.request_id) if batch else None
        if batch is None or asked is None or in_store[name] != len(asked.jobs):
            what = f"{name} has {in_store[name]} updates"
            shown = [each for each in (batch, asked) if each is not None]
            yield Violation("atomic", what, tuple(shown))


def _in_one_piece(history: History, trainer: Trainer) -> Iterator[Violation]:
    for each in trainer.applied:
        stored = history.stored.get((trainer.job, each.revision))
        if stored is None or not each.outcome.step:
            continue
        moved = {move.parameter for move in each.outcome.moves}
        if moved != {change.parameter for change in stored.changes}:
            what = f"{trainer.job}/{each.revision} has changed only {sorted(moved)}"
            yield Violation("atomic", what, (stored, each))


def _at_rest(history: History) -> set[str]:
    """Training processes that had told all there is to tell when they were looked at last."""
    records = iter(history.records)
    for record in records:
        if isinstance(record, Quiet):
            break
    return {record.instance for record in records if isinstance(record, TrainerEnded)}


def _told_all_it_did(trainer: Trainer) -> bool:
    """Whether nothing was in force for a while that it does not tell of.

    What no step has used when training ends is taken back; held at a boundary, it can be seen.
    Where it goes back to a checkpoint it is not even taken back: nothing comes after it.
    """
    return all(each.outcome.reason not in ("job_ended", "ROLLED_BACK") for each in trainer.settled)


def _never_between(trainer: Trainer, *, rested: bool) -> Iterator[Violation]:
    """Whatever was seen in force is a state between two updates, and time does not go back."""
    states = trainer.values()
    # One that was killed may have applied what it could not tell any more.
    told_all = rested or (trainer.ended is not None and trainer.ended.values == states[-1])
    told_all &= _told_all_it_did(trainer)
    at = 0
    for seen in trainer.in_force:
        found = next((i for i in range(at, len(states)) if states[i] == seen.values), None)
        if found is None:
            if told_all:
                what = f"{trainer.job} was seen in a state that no update led to"
                yield Violation("atomic", what, (seen,))
            continue
        at = found
