"""What the fake provider's formats have in common; see `tests.support.fake_provider`."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.fake_provider_script import ToolCall


def sse(data: str, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode()


def pieces_by_turns(calls: tuple[ToolCall, ...]) -> Iterator[tuple[int, str]]:
    """The pieces of several calls' arguments taking turns, each with the number of its call."""
    lists = [call.split() for call in calls]
    for position in range(max(map(len, lists), default=0)):
        for number, pieces in enumerate(lists):
            if position < len(pieces):
                yield number, pieces[position]
