"""Messages that are kept until the control plane has them on disk."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


@dataclass(slots=True)
class _Entry(Generic[Item]):
    item: Item
    sent: int  # sequence number of the newest message that carried it in this stream; 0: none


class Unacknowledged(Generic[Key, Item]):
    """Keeps items, oldest first, each from when it is owed until it is acknowledged."""

    def __init__(self) -> None:
        """Owes nothing."""
        self._entries: dict[Key, _Entry[Item]] = {}

    def __len__(self) -> int:
        """Returns how many items are owed."""
        return len(self._entries)

    def owe(self, key: Key, item: Item) -> None:
        """Takes an item that must reach the other side; the newest of a key counts."""
        self._entries.pop(key, None)
        self._entries[key] = _Entry(item, 0)

    def items(self) -> list[Item]:
        """Returns all that is owed, oldest first."""
        return [entry.item for entry in self._entries.values()]

    def next_unsent(self) -> tuple[Key, Item] | None:
        """Returns the oldest item that no message of this stream carries; None: all are sent."""
        for key, entry in self._entries.items():
            if entry.sent == 0:
                return key, entry.item
        return None

    def sent(self, key: Key, sequence: int) -> None:
        """Notes that the message of this number carries the item."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.sent = sequence

    def all_sent(self, sequence: int) -> None:
        """Notes that the message of this number carries everything."""
        for entry in self._entries.values():
            entry.sent = sequence

    def acknowledged(self, sequence: int) -> list[Key]:
        """Lets go of what messages up to this number carried, and returns the keys."""
        gone = [key for key, entry in self._entries.items() if 0 < entry.sent <= sequence]
        return self.forget(gone)

    def forget(self, keys: Iterable[Key]) -> list[Key]:
        """Lets go of items, whether sent or not, and returns the keys of those that were owed."""
        return [key for key in keys if self._entries.pop(key, None) is not None]

    def begin_stream(self) -> None:
        """Notes that a new stream begins: nothing that is owed has been sent in it."""
        for entry in self._entries.values():
            entry.sent = 0
