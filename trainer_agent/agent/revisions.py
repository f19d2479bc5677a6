"""Sets of revisions as ranges: ascending, not overlapping, not touching."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from midcourse.agent.v1 import session_pb2


class RevisionSet:
    """Revisions, few ranges of many."""

    def __init__(self, ranges: Iterable[session_pb2.RevisionRange] = ()) -> None:
        """Makes a set of all revisions in ``ranges``, which may come in any order."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for item in sorted(ranges, key=lambda item: item.first):
            if item.last < item.first:
                continue
            if self._lasts and item.first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], item.last)
            else:
                self._firsts.append(item.first)
                self._lasts.append(item.last)

    def __contains__(self, revision: int) -> bool:
        """Tells whether the revision is in the set."""
        index = bisect_right(self._firsts, revision) - 1
        return index >= 0 and revision <= self._lasts[index]

    def add(self, revision: int) -> None:
        """Adds a revision."""
        if revision in self:
            return
        index = bisect_right(self._firsts, revision)
        joins_before = index > 0 and self._lasts[index - 1] + 1 == revision
        joins_after = index < len(self._firsts) and self._firsts[index] == revision + 1
        if joins_before and joins_after:
            self._lasts[index - 1] = self._lasts.pop(index)
            del self._firsts[index]
        elif joins_before:
            self._lasts[index - 1] = revision
        elif joins_after:
            self._firsts[index] = revision
        else:
            self._firsts.insert(index, revision)
            self._lasts.insert(index, revision)

    def ranges(self) -> list[session_pb2.RevisionRange]:
        """Returns the ranges, ascending."""
        return [
            session_pb2.RevisionRange(first=first, last=last)
            for first, last in zip(self._firsts, self._lasts, strict=True)
        ]
