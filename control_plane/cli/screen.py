"""The console on which everything is shown that rich lays out."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from control_plane.cli import printable


class Screen(Console):
    """A console on which text only shows; what rich itself controls, colours too, stays.

    It holds for all that is printed, whoever has forgotten to think of it.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Renders an object, its text fit for a terminal."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable.text(segment.text), segment.style)
