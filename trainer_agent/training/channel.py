"""How the training process tells the launcher where it is: lines of JSON through a named pipe.

A named pipe, as torchrun hands no open files on to the ranks. Nothing of it can stop training: a
full pipe drops what is new, a broken one everything.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

Event: TypeAlias = Mapping[str, Any]
Send: TypeAlias = Callable[[Event], None]

_ATOMIC: Final = 512
"""The longest line that POSIX promises to write whole."""


class Sender:
    """The training process's end. Neither blocks nor raises."""

    def __init__(self, path: str | None) -> None:
        self._fd: int | None = None
        if path is not None:
            with contextlib.suppress(OSError):  # nobody listens
                self._fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __call__(self, event: Event) -> None:
        """Send an event, if there is room for it."""
        line = f"{json.dumps(event, separators=(',', ':'))}\n".encode()
        if self._fd is None or len(line) > _ATOMIC:
            return
        try:
            os.write(self._fd, line)
        except BlockingIOError:
            return  # full: the launcher is slow, and the next event says more
        except OSError:
            self.close()

    def close(self) -> None:
        """Send nothing more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Receiver:
    """The launcher's end."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        # To write too: a pipe that somebody could write to has no end when a sender leaves.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""

    def events(self) -> Iterator[Event]:
        """Yield what has arrived."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.fd, 65_536):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    with contextlib.suppress(ValueError):  # of a sender that was killed in it
                        yield json.loads(line)

    def close(self) -> None:
        """Receive nothing more."""
        os.close(self.fd)
