"""Shows an answer on a terminal: Markdown as it streams, calls of tools, costs."""

from __future__ import annotations

from typing import Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from control_plane.cli import printable
from control_plane.cli.analytics.markdown import split_finished
from control_plane.cli.analytics.notes import Note, Notes
from midcourse.analytics.v1 import analytics_pb2

_REFRESHES_PER_SECOND = 8


class TerminalView:
    """Shows one answer.

    Blocks of Markdown that are whole are printed for good; only the one that is being written is
    drawn anew, so that answers may be longer than the screen.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        """Makes a view.

        Args:
            console: On the terminal.
            quiet: Show no notes.
        """
        self._console = console
        self._quiet = quiet
        self._notes = Notes()
        self._pending = ""
        self._gap = False
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
        finally:
            self._live.stop()
        self._tell(*self._notes.ended())

    def show(self, event: analytics_pb2.ChatResponse) -> None:
        """Shows an event."""
        if event.WhichOneof("event") == "text_delta":
            self._pending += printable.text(event.text_delta)
            finished, self._pending = split_finished(self._pending)
            self._print(finished)
            return
        notes = list(self._notes.feed(event))
        if notes:
            self._flush()
        self._tell(*notes)

    def _flush(self) -> None:
        """Prints what is there of the block that is being written."""
        pending, self._pending = self._pending, ""
        self._print(pending)

    def _print(self, text: str) -> None:
        if text.strip():
            self._refresh()
            if self._gap:
                self._console.print()
            self._console.print(markdown(text))
            self._gap = True

    def _tell(self, *notes: Note) -> None:
        if self._quiet:
            return
        if notes:
            self._refresh()
        for note in notes:
            if self._gap:
                self._console.print()
                self._gap = False
            self._console.print(Text(note.text, style=note.style))

    def _refresh(self) -> None:
        """Takes from the part that is drawn anew what is about to be printed for good."""
        if self._live.is_started:
            self._live.refresh()

    def _render(self) -> RenderableType:
        if self._pending.strip():
            return _Tail(markdown(self._pending))
        return Spinner("dots", Text(f" {self._notes.activity} …", style="dim"))


class _Tail:
    """The last lines of something, as many as the screen has room for."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, console.height - 2)
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        for line in lines[-room:]:
            yield from line
            yield Segment.line()


def markdown(text: str) -> Markdown:
    """Returns Markdown of a model's: links show where they lead."""
    return Markdown(text, hyperlinks=False)
