"""Validator of what sessions of one job may do to one another: fenced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.faults.history import History
from tests.faults.records import (
    Acknowledged,
    StoredJob,
    Told,
    Welcomed,
)
from tests.faults.violations import Violation


def fenced(history: History) -> Iterator[Violation]:
    """A session has an epoch of its own, and nothing is taken from one that is not the newest."""
    owner: dict[tuple[str, int], Welcomed] = {}
    newest: dict[str, Welcomed] = {}
    late: dict[int, list[Told]] = defaultdict(list)
    lies: list[tuple[str, Told, Welcomed]] = []
    told: defaultdict[tuple[str, int], list[Told]] = defaultdict(list)
    for record in history.records:
        match record:
            case Welcomed():
                job = history.job_of(record.session)
                known = owner.setdefault((job, record.epoch), record)
                if known is not record:
                    what = f"two sessions of {job} have the epoch {record.epoch}"
                    yield Violation("fenced", what, (known, record))
                if job not in newest or newest[job].epoch < record.epoch:
                    newest[job] = record
            case Told():
                job = history.job_of(record.session)
                told[job, record.revision].append(record)
                epoch = history.epochs.get(record.session)
                by = newest.get(job)
                if epoch is not None and by is not None and epoch < by.epoch:
                    late[record.session].append(record)
                    lies.append((job, record, by))
            case Acknowledged():
                for each in late[record.session]:
                    if each.number <= record.number:
                        what = "an outcome of an older session was acknowledged"
                        yield Violation("fenced", what, (each, record))
            case _:
                pass
    for job, lie, by in lies:
        stored = history.stored.get((job, lie.revision))
        elsewhere = [each.outcome for each in told[job, lie.revision] if each is not lie]
        taken = [] if stored is None else [stored.outcome, *stored.reapplied]
        if lie.outcome in taken and lie.outcome not in elsewhere and stored is not None:
            what = f"what an older session said of {job}/{lie.revision} was taken"
            yield Violation("fenced", what, (by, lie, stored))
    for stored_job in history.of(StoredJob):
        last = newest.get(stored_job.job)
        if last is not None and stored_job.epoch < last.epoch:
            what = f"{stored_job.job} is at an older epoch than one that was welcomed"
            yield Violation("fenced", what, (last, stored_job))
