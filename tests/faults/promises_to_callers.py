"""Validators of what callers were promised: durable, idempotent, compare-and-set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.history import History
from tests.faults.records import (
    OPEN,
    Acknowledged,
    Asked,
    Confirmed,
    Failed,
    Outcome,
    StoredBatch,
    StoredUpdate,
    Told,
)
from tests.faults.violations import Violation

_NOT_LOOKED_AT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED")
"""Codes that say nothing of whether a request was carried out, now or before."""


def durable(history: History) -> Iterator[Violation]:
    """What was answered OK, or acknowledged to an agent, is in the store at the end."""
    for asked, answered in history.answers:
        for job, revision in answered.revisions.items():
            stored = history.stored.get((job, revision))
            records = (asked, answered, *([stored] if stored else []))
            if stored is None:
                yield Violation("durable", f"{job}/{revision} was answered and is gone", records)
            elif asked.method != "cancel" and (stored.changes, stored.action) != (
                asked.changes,
                asked.action,
            ):
                yield Violation("durable", f"{job}/{revision} is not what was asked for", records)
            elif asked.method == "cancel" and answered.state not in (*OPEN, stored.state):
                what = f"{job}/{revision} was {answered.state} and is {stored.state}"
                yield Violation("durable", what, records)
    told: defaultdict[int, list[Told]] = defaultdict(list)
    for record in history.records:
        if isinstance(record, Told):
            told[record.session].append(record)
        elif isinstance(record, Acknowledged):
            job = history.job_of(record.session)
            for each in told[record.session]:
                if each.number > record.number:
                    continue
                stored = history.stored.get((job, each.revision))
                if stored is None or stored.outcome is None:
                    what = f"the outcome of {job}/{each.revision} was acknowledged and is gone"
                    yield Violation("durable", what, (each, record, *([stored] if stored else [])))
                elif not _is_kept(each.outcome, stored):
                    what = f"another outcome of {job}/{each.revision} was acknowledged"
                    yield Violation("durable", what, (each, record, stored))
            told[record.session] = [t for t in told[record.session] if t.number > record.number]
        elif isinstance(record, Confirmed):
            for revision in record.revisions:
                stored = history.stored.get((record.job, revision))
                if stored is None or stored.outcome is None:
                    what = f"the outcome of {record.job}/{revision} was confirmed and is gone"
                    yield Violation("durable", what, (record, *([stored] if stored else [])))


def _is_kept(told: Outcome, stored: StoredUpdate) -> bool:
    """Whether the store has an outcome that was acknowledged."""
    if told.result == "withdrawn":
        return True  # it is stored as what the caller asked for who had it withdrawn
    if told.result == "applied" and not told.instance:
        return True  # how is not known any more; it was told before
    if told.result != "applied" and stored.state == "applied":
        return True  # only putting it in force again has come to nothing
    return told in (stored.outcome, *stored.reapplied)


def idempotent(history: History) -> Iterator[Violation]:
    """One request id is one update of a job, however often it is sent and whoever is asked."""
    made: dict[tuple[str, str], StoredUpdate] = {}
    for stored in history.of(StoredUpdate):
        known = made.setdefault((stored.job, stored.request_id), stored)
        if known is not stored:
            what = f"{stored.request_id!r} was taken twice"
            yield Violation("idempotent", what, (known, stored))
    batches: dict[str, StoredBatch] = {}
    for batch in history.of(StoredBatch):
        first = batches.setdefault(batch.request_id, batch)
        if first is not batch:
            yield Violation("idempotent", f"{batch.request_id!r} was taken twice", (first, batch))
    contents: dict[str, Asked] = {}
    answers: dict[str, tuple[Asked, dict[str, int]]] = {}
    for asked, answered in history.answers:
        if asked.method == "cancel":
            continue
        same = contents.setdefault(asked.request_id, asked)
        if _content(same) != _content(asked):
            what = f"{asked.request_id!r} was taken for another request"
            yield Violation("idempotent", what, (same, asked, answered))
            continue
        before, revisions = answers.setdefault(asked.request_id, (asked, answered.revisions))
        if revisions != answered.revisions:
            what = f"{asked.request_id!r} was answered by {revisions}, then by another"
            yield Violation("idempotent", what, (before, asked, answered))
        for job, revision in answered.revisions.items():
            there = history.stored.get((job, revision))
            if there is None or asked.method == "batch":
                continue
            if there.request_id != asked.request_id:
                what = f"{job}/{revision} was made by {there.request_id!r}"
                yield Violation("idempotent", what, (asked, answered, there))
    for failed in history.of(Failed):
        again = history.asked.get(failed.call)
        if again is None or again.method == "cancel" or failed.code in _NOT_LOOKED_AT:
            continue
        taken = contents.get(again.request_id)
        if taken is not None and _content(taken) == _content(again):
            what = f"{again.request_id!r} was answered, and refused"
            yield Violation("idempotent", what, (taken, again, failed))
        kept = made.get((again.jobs[0], again.request_id))
        if kept is not None and (kept.changes, kept.action) == (again.changes, again.action):
            what = f"{again.request_id!r} was refused, and stored"
            yield Violation("idempotent", what, (again, failed, kept))


def _content(asked: Asked) -> tuple[object, ...]:
    when = asked.at_step, asked.max_step, asked.deadline
    return asked.method, asked.jobs, asked.changes, asked.action, asked.checkpoint, when


def compare_and_set(history: History) -> Iterator[Violation]:
    """With an expected revision an update is the next one, or there is none."""
    for asked, answered in history.answers:
        if asked.expected_revision is None:
            continue
        for job, revision in answered.revisions.items():
            if revision != asked.expected_revision + 1:
                what = f"{job}/{revision} came after another revision than was expected"
                yield Violation("compare-and-set", what, (asked, answered))
    made = {(stored.job, stored.request_id): stored for stored in history.of(StoredUpdate)}
    for failed in history.of(Failed):
        asked_ = history.asked.get(failed.call)
        if asked_ is None or failed.reason != "REVISION_MISMATCH":
            continue
        stored_ = made.get((asked_.jobs[0], asked_.request_id))
        if stored_ is not None:
            what = f"{asked_.request_id!r} was refused, and stored"
            yield Violation("compare-and-set", what, (asked_, failed, stored_))
