"""Where the keys of a TOML file are. The standard parser does not tell, and messages need it."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys and places in arrays from the top of a document, such as ("models", 2, "id")."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}\n#]*")
_STRINGS = (
    # A closing delimiter of three may be preceded by one or two quotes of the text.
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{0,2})', re.DOTALL),
    re.compile(r"'''.*?'''(?:'{0,2})", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """Finds the line, from 1 on, of every key, table and array element of a document.

    Args:
        text: A document that `tomllib` has parsed: its syntax is taken for right.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._array_sizes: dict[KeyPath, int] = {}
        self._lines: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_FILLER)
        while self._at < len(self._text):
            if self._next_is("["):
                table = self._header()
            else:
                self._pair(table)
            self._skip(_FILLER)
        return self._lines

    def _header(self) -> KeyPath:
        line = self._line()
        is_array = self._next_is("[[")
        self._at += 2 if is_array else 1
        keys = self._keys()
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        for place, key in enumerate(keys):
            path = (*path, key)
            self._lines.setdefault(path, line)
            if is_array and place == len(keys) - 1:
                self._array_sizes[path] = self._array_sizes.get(path, 0) + 1
            if path in self._array_sizes:
                # What follows belongs to the newest element.
                path = (*path, self._array_sizes[path] - 1)
                self._lines.setdefault(path, line)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for key in self._keys():
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _keys(self) -> list[str]:
        """Reads a dotted key and the space after it."""
        keys = []
        while True:
            self._skip(_SPACE)
            if self._next_is('"') or self._next_is("'"):
                keys.append(str(tomllib.loads(f"key = {self._string()}")["key"]))
            else:
                keys.append(self._take(_BARE_KEY))
            self._skip(_SPACE)
            if not self._next_is("."):
                return keys
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        if self._next_is("["):
            self._array(path)
        elif self._next_is("{"):
            self._inline_table(path)
        elif self._next_is('"') or self._next_is("'"):
            self._string()
        else:
            self._take(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        place = 0
        self._skip(_FILLER)
        while not self._next_is("]"):
            element = (*path, place)
            self._lines[element] = self._line()
            self._value(element)
            self._separator()
            place += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_FILLER)
        while not self._next_is("}"):
            self._pair(path)
            self._separator()
        self._at += 1

    def _separator(self) -> None:
        self._skip(_FILLER)
        if self._next_is(","):
            self._at += 1
            self._skip(_FILLER)

    def _string(self) -> str:
        for pattern in _STRINGS:
            match = pattern.match(self._text, self._at)
            if match is not None:
                self._at = match.end()
                return match.group()
        raise AssertionError(f"no string in line {self._line()}: this is no TOML")

    def _next_is(self, what: str) -> bool:
        return self._text.startswith(what, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None, "the pattern matches nothing too"
        self._at = match.end()

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None or match.end() == self._at:
            # Rather than to read the same place for ever.
            raise AssertionError(f"nothing to read in line {self._line()}: this is no TOML")
        self._at = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at)
