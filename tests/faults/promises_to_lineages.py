"""What becomes of updates where a run goes on from a checkpoint: parts of once and of truthful."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.history import History, Trainer
from tests.faults.records import (
    Outcome,
    Quiet,
    Saved,
    StoredJob,
    StoredUpdate,
    TrainerBegan,
    TrainerSettled,
)
from tests.faults.violations import Violation


def applications(stored: StoredUpdate) -> list[Outcome]:
    """How often an update was applied, as the store says."""
    first = stored.outcome
    applied = [first] if first is not None and first.result == "applied" else []
    return [*applied, *stored.reapplied]


def once_in_a_lineage(history: History) -> Iterator[Violation]:
    """What a roll back takes away stays away, and what a checkpoint lacks is applied again."""
    trainers: defaultdict[str, list[Trainer]] = defaultdict(list)
    for trainer in history.trainers:
        trainers[trainer.job].append(trainer)
    for job, line in trainers.items():
        for at, trainer in enumerate(line):
            yield from _says_what_it_has(history, trainer)
            if trainer.went_back:
                yield from _stays_away(history, line, at)
        for quiet in history.of(Quiet):
            # Whoever begins after that may not have been told anything yet.
            begun = [each for each in line if each.began is None or each.began.at <= quiet.at]
            if begun:
                yield from _stands(history, job, begun[-1])


def _says_what_it_has(history: History, trainer: Trainer) -> Iterator[Violation]:
    """What a checkpoint says of updates is what the values in it have come from."""
    began = trainer.began
    saver = history.trainer.get(began.saved_by) if began is not None else None
    if began is None or saver is None:
        return
    saver = history.applied_by(saver)
    there = [each.revision for each in history.updates_of.get(trainer.job, []) if each.changes]
    says = {each for each in there if trainer.contains(each) or each in trainer.unverified}
    begun = {each for each in there if saver.contains(each)} - {*saver.unverified}
    led_there = [
        {each.revision for each in saver.applied[:count] if each.outcome.moves}
        for count, values in enumerate(saver.values())
        if values == began.saved
    ]
    untold = {*saver.unverified, *trainer.unverified} - {each.revision for each in saver.applied}
    if not led_there and untold:
        return  # nobody has lived to tell of these
    if not any(begun | applied == says for applied in led_there):
        what = (
            f"{trainer.job}: {began.checkpoint} says that {sorted(says)} are in force, which is "
            "not what has led to its values"
        )
        yield Violation("once", what, (*([saver.began] if saver.began else []), began))


def _stays_away(history: History, line: list[Trainer], at: int) -> Iterator[Violation]:
    """Looks at what a process that comes from a roll back, and those after it, apply again."""
    began = line[at].began
    assert began is not None
    roll_back = history.stored.get((began.job, began.roll_back))
    if roll_back is None or began.instance not in [o.instance for o in applications(roll_back)]:
        return  # nobody has heard of it: it is sent again
    before = {trainer.instance for trainer in line[:at]}
    for update in history.updates_of.get(began.job, []):
        first = update.outcome
        if first is None or first.instance not in before or update.revision >= began.roll_back:
            continue
        for trainer in line[at:]:
            if trainer.contains(update.revision):
                break  # whoever goes back to a checkpoint that has it puts it in force again
            for each in trainer.applied:
                if each.revision == update.revision:
                    what = f"{began.job}/{update.revision} was rolled back, and applied again"
                    yield Violation("once", what, (began, each, update))


def _stands(history: History, job: str, trainer: Trainer) -> Iterator[Violation]:
    """At rest, what is in force is what the store says is wanted."""
    floor = max((each.floor for each in history.of(StoredJob) if each.job == job), default=0)
    applied = {each.revision for each in trainer.applied}
    otherwise = {each.revision for each in trainer.settled} - applied
    for stored in history.updates_of.get(job, []):
        revision = stored.revision
        if revision <= floor or not stored.changes or not applications(stored):
            continue
        stands = revision in applied or trainer.contains(revision)
        wanted = stored.rolled_back_by is None
        if wanted and not stands and revision not in otherwise:
            what = f"{job}/{revision} is in force, as the store says, and is not"
            yield Violation("once", what, _shown(trainer.began, stored))
        elif stands and not wanted:
            what = f"{job}/{revision} is rolled back, as the store says, and is in force"
            yield Violation("once", what, _shown(trainer.began, stored))


def _shown(
    began: TrainerBegan | None, stored: StoredUpdate
) -> tuple[TrainerBegan | StoredUpdate, ...]:
    return (stored,) if began is None else (began, stored)


def saved_as_told(history: History) -> Iterator[Violation]:
    """A checkpoint that an action has led to was saved before that was told."""
    saved: set[tuple[str, str]] = set()
    for record in history.records:
        match record:
            case Saved():
                saved.add((record.job, record.checkpoint))
            case TrainerSettled() if record.outcome.checkpoint:
                if (record.job, record.outcome.checkpoint) not in saved:
                    what = f"{record.job}/{record.revision} names a checkpoint that nobody saved"
                    yield Violation("truthful", what, (record,))
            case _:
                pass
