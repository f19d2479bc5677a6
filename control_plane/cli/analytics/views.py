"""Ways to show an answer as it comes, where no person looks at a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

from control_plane.cli import printable
from control_plane.cli.analytics.notes import Note, Notes
from control_plane.cli.output import Output
from midcourse.analytics.v1 import analytics_pb2


class View(Protocol):
    """Shows one answer."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, event: analytics_pb2.ChatResponse) -> None:
        """Shows the next event."""


class JsonView:
    """Prints each event as one line of JSON."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, event: analytics_pb2.ChatResponse) -> None:
        """Prints an event."""
        self._output.message(event, one_line=True)


class PlainView:
    """Streams the text to stdout as it is, and notes to stderr.

    Args:
        quiet: Print no notes.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._notes = Notes()
        self._last = "\n"
        self._is_interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, BrokenPipeError):
            return  # nobody reads on
        self._end_line()
        self._tell(*self._notes.ended())

    def show(self, event: analytics_pb2.ChatResponse) -> None:
        """Prints more of the text, or a note."""
        if event.WhichOneof("event") == "text_delta":
            self._write(event.text_delta)
        elif event.WhichOneof("event") == "tool_call":
            self._is_interrupted = self._last != "\n"
        elif event.WhichOneof("event") == "done":
            self._end_line()
        self._tell(*self._notes.feed(event))

    def _write(self, delta: str) -> None:
        if not delta:
            return
        if self._is_interrupted:  # what was said before a tool was called is a paragraph
            sys.stdout.write("\n\n")
            self._is_interrupted = False
        self._last = delta[-1]
        sys.stdout.write(printable.text(delta))
        sys.stdout.flush()

    def _end_line(self) -> None:
        if self._last != "\n":
            self._write("\n")

    def _tell(self, *notes: Note) -> None:
        if not self._quiet:
            for note in notes:
                sys.stderr.write(f"{note.text}\n")
            sys.stderr.flush()
