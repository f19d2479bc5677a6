"""Reads lines from a person, with editing and history where Python has readline."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

_MOST_LINES: Final = 1_000
_PRIVATE: Final = 0o600


def history_file() -> Path:
    """Where questions are remembered between conversations."""
    import platformdirs

    return Path(platformdirs.user_state_dir("midcourse", appauthor=False)) / "chat_history"


@contextlib.contextmanager
def line_editing(path: Path) -> Iterator[list[str]]:
    """Gives `input` editing and history while the block runs.

    Yields:
        What did not work, for people; filled at the end of the block too.
    """
    problems: list[str] = []
    readline = _readline()
    if readline is None:
        yield problems
        return
    try:
        if path.exists():
            readline.read_history_file(path)
    except OSError as error:
        problems.append(f"the history of questions can not be read: {error}")
    readline.set_history_length(_MOST_LINES)
    try:
        yield problems
    finally:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Questions are nobody else's matter: the file is private before anything is in it.
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, _PRIVATE))
            readline.write_history_file(path)
        except OSError as error:
            problems.append(f"the history of questions can not be written: {error}")


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # as on Windows: input() still reads lines
        return None
    return readline
