"""Markdown as it streams: which part of it will not change any more. Pure."""

from __future__ import annotations

import re
from typing import Final

_FENCE: Final = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})(?P<rest>.*)")


def split_finished(text: str) -> tuple[str, str]:
    """Splits a text that is still coming at the last place where a block surely ends.

    A block ends at a blank line outside of fenced code, where the next line is not indented: it
    could belong to an item of a list.

    Returns:
        What can be shown for good, and what is to be shown again when more has come.
    """
    end = 0
    position = 0
    fence = ""
    after_blank = False
    for line in text.splitlines(keepends=True):
        if after_blank and not fence and line.strip() and not line[0].isspace():
            end = position
        if line.endswith("\n"):
            fence = _fence_after(line, fence)
        after_blank = not line.strip()
        position += len(line)
    return text[:end], text[end:]


def _fence_after(line: str, fence: str) -> str:
    """Returns the fence that is open after a line; empty if none is."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    marks = match["marks"]
    if not fence:
        return marks
    closes = marks[0] == fence[0] and len(marks) >= len(fence) and not match["rest"].strip()
    return "" if closes else fence
