"""Outputs that may fail and stop nothing: a reader has gone, a disk is full, a terminal closed."""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO


class _MayBeGone(io.FileIO):
    """An output that may fail: what is written then is lost, and training goes on."""

    def write(self, data: Any, /) -> int:
        try:
            written = super().write(data)
        except OSError:
            return len(data)
        return len(data) if written is None else written  # None: it would have to wait


def unfailing(stream: TextIO, encoding: str | None = None) -> TextIO:
    """Return a stream that writes where another one does, and never raises for the sake of it.

    Args:
        stream: A file's, flushed.
        encoding: By default that of the stream; what it has no character for becomes ``?``.
    """
    raw = _MayBeGone(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding or stream.encoding,
        errors="replace",
        line_buffering=True,
    )


def outlive_readers(encoding: str | None = None) -> None:
    """Let this process go on where nobody can take what it prints on stdout and stderr."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, unfailing(getattr(sys, name), encoding))
