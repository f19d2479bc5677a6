"""Text of others made fit for a terminal. Pure.

Names, reasons, messages and answers come from runs, models and servers. What they carry must not
move the cursor, set colours or titles, or write into the clipboard: every control character gives
way to a picture of itself, so that it shows and does nothing.
"""

from __future__ import annotations

from typing import Final

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"

_PICTURES: Final[dict[int, int | str]] = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),
    # These turn the order of what is shown around, or break lines too.
    **dict.fromkeys((*range(0x2028, 0x202F), *range(0x2066, 0x206A)), _REPLACEMENT),
}
_OF_TEXT: Final = {code: to for code, to in _PICTURES.items() if code not in (0x09, 0x0A)}
_OF_JSON: Final = {code: f"\\u{code:04x}" for code in _OF_TEXT}  # below 0x20 it has none


def text(untrusted: str) -> str:
    """Returns a text with line breaks and tabs as they are, and nothing else that controls.

    Character for character: it can be applied to pieces of a text as they come.
    """
    return untrusted.translate(_OF_TEXT)


def line(untrusted: str) -> str:
    """Returns a text as one line: runs of white space are single blanks."""
    return " ".join(untrusted.split()).translate(_PICTURES)


def one_line(untrusted: str) -> str:
    """Returns a text as one line, its blanks as they are."""
    return untrusted.translate(_PICTURES)


def json(untrusted: str) -> str:
    """Returns JSON that says the same, with what JSON leaves as it is escaped."""
    return untrusted.translate(_OF_JSON)
