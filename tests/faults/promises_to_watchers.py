"""Validator of what watchers were promised: watchable."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.faults.history import History
from tests.faults.records import (
    Quiet,
    StoredEvent,
    WatchBegan,
    Watched,
)
from tests.faults.violations import Violation

_RANK = {"pending": 0, "delivered": 1}
_SETTLED = 2


def watchable(history: History) -> Iterator[Violation]:
    """A watcher that goes on from its position is told of each change once, in order."""
    events = sorted(history.of(StoredEvent), key=lambda event: event.position)
    began = {record.watcher: record for record in reversed(history.of(WatchBegan))}
    watched: defaultdict[str, list[Watched]] = defaultdict(list)
    for record in history.of(Watched):
        watched[record.watcher].append(record)
    quiet = history.of(Quiet)
    for watcher, seen in watched.items():
        yield from _in_order(watcher, seen)
        job = began[watcher].job if watcher in began else ""
        positions = [each.position for each in seen if each.position is not None]
        if not positions:
            continue
        start, end = min(positions), max(positions)
        first = next(each for each in seen if each.position is not None)
        # A bookmark tells where it begins, without an event of its own.
        after = start if first.event == "bookmark" else start - 1
        there = [e for e in events if after < e.position <= end and job in ("", e.job)]
        yield from _compared(watcher, [s for s in seen if s.event != "bookmark"], there)
    for mark in quiet:
        for watcher in mark.watchers:
            last = max((each.position or 0 for each in watched[watcher]), default=0)
            job = began[watcher].job if watcher in began else ""
            due = [e.position for e in events if e.position <= mark.position and job in ("", e.job)]
            if due and last < due[-1]:
                yield Violation("watchable", f"{watcher} was not told of the end", (mark,))
            yield from _as_it_ended(history, watcher, watched[watcher])
        told_of = {(event.job, event.revision) for event in events}
        for where, stored in history.stored.items():
            if where not in told_of:
                what = f"{stored.job}/{stored.revision} is in no event"
                yield Violation("watchable", what, (stored,))


def _as_it_ended(history: History, watcher: str, seen: Iterable[Watched]) -> Iterator[Violation]:
    """What a watcher was told last of each update is how it stands."""
    newest = {(each.job, each.revision): each for each in seen if each.revision is not None}
    for (job, revision), last in newest.items():
        stored = history.stored.get((job, revision or 0))
        if stored is not None and stored.state != last.state:
            what = f"{watcher} was told that {job}/{revision} is {last.state}"
            yield Violation("watchable", what, (last, stored))


def _in_order(watcher: str, seen: Iterable[Watched]) -> Iterator[Violation]:
    last: Watched | None = None
    newest: dict[tuple[str, int], Watched] = {}
    for each in seen:
        if each.position is None:
            continue
        # A bookmark may repeat the position of the event before it.
        least = each.position + (each.event == "bookmark")
        if last is not None and last.position is not None and last.position >= least:
            yield Violation("watchable", f"{watcher} went back", (last, each))
        last = each
        if each.revision is None:
            continue
        before = newest.get((each.job, each.revision))
        if before is not None and not _follows(before.state, each.state):
            what = f"{watcher} saw {each.job}/{each.revision} become what it was before"
            yield Violation("watchable", what, (before, each))
        newest[each.job, each.revision] = each


def _follows(before: str, after: str) -> bool:
    rank = _RANK.get(before, _SETTLED)
    return after == before if rank == _SETTLED else _RANK.get(after, _SETTLED) >= rank


def _compared(watcher: str, seen: list[Watched], there: list[StoredEvent]) -> Iterator[Violation]:
    told = {each.position: each for each in seen if each.position is not None}
    stored = {each.position: each for each in there}
    for position, event in stored.items():
        if position not in told:
            yield Violation("watchable", f"{watcher} was not told of position {position}", (event,))
    for position, each in told.items():
        if position not in stored:
            yield Violation("watchable", f"{watcher} was told of what is not stored", (each,))
        elif (each.job, each.revision) != (stored[position].job, stored[position].revision):
            what = f"{watcher} was told of something else"
            yield Violation("watchable", what, (each, stored[position]))
