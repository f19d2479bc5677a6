"""Text that a stream cut within a character."""

from __future__ import annotations


class SurrogateJoiner:
    r"""Joins surrogate pairs that lie in two deltas.

    Some servers cut text by UTF-16 units and send an emoji as ``\ud83d`` and ``\ude00`` in two
    JSON strings. Half a pair can be neither stored nor sent, so it waits for its other half;
    what never gets one becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Takes a delta; returns what is whole."""
        if not self._held and text.isascii():
            return text
        text = self._held + text
        self._held = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._held = text[:-1], text[-1]
        return _joined(text)

    def rest(self) -> str:
        """Returns what is left at the end."""
        held, self._held = self._held, ""
        return _joined(held)


def _joined(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
