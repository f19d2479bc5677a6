"""What a validator finds."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.records import Record


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and the records that show it."""

    guarantee: str
    what: str
    records: tuple[Record, ...] = ()

    def __str__(self) -> str:
        """What was broken, and what shows it."""
        return "\n    ".join([f"{self.guarantee}: {self.what}", *map(repr, self.records)])
