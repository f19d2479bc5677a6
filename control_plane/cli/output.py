"""What the command prints: tables for people, protobuf JSON for programs."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from control_plane.cli import printable

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console, RenderableType

OutputFormat: TypeAlias = Literal["table", "json"]

# Where nobody looks at a screen, lines are as long as their content.
_UNLIMITED_COLUMNS = 10_000


@dataclass(frozen=True, slots=True)
class Output:
    """Prints to stdout in one of the formats.

    Attributes:
        format: ``table`` for people, ``json`` for programs.
    """

    format: OutputFormat = "table"

    @property
    def is_json(self) -> bool:
        """Whether a program reads the output."""
        return self.format == "json"

    @property
    def is_live(self) -> bool:
        """Whether a person looks at a terminal that can be redrawn."""
        return not self.is_json and self.console().is_terminal

    def console(self) -> Console:
        """Returns a console on stdout; respects NO_COLOR, COLUMNS and the terminal's width.

        COLUMNS=0, as shells without a window have it, is no width.
        """
        from control_plane.cli.screen import Screen

        console = Screen(highlight=False, markup=False)
        columns = os.environ.get("COLUMNS", "")
        if not columns.isdigit() or not int(columns):
            if not console.is_terminal:
                console.width = _UNLIMITED_COLUMNS
            elif columns:
                console.width = shutil.get_terminal_size().columns
        return console

    def show(self, *renderables: RenderableType) -> None:
        """Prints tables and texts."""
        console = self.console()
        if console.is_terminal:
            for renderable in renderables:
                console.print(renderable)
            return
        with console.capture() as capture:
            for renderable in renderables:
                console.print(renderable)
        for line in capture.get().splitlines():
            self.line(line.rstrip())  # the last column is padded too

    def line(self, text: str) -> None:
        """Prints one line at once; nothing in it controls the terminal."""
        self.write(printable.one_line(text))

    def write(self, text: str) -> None:
        """Prints text at once, as it is: files, plots, JSON. It must not be of others."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def message(self, message: Message, *, one_line: bool = False) -> None:
        """Prints a message as protobuf JSON; in one line where it is one of a stream."""
        from google.protobuf.json_format import MessageToJson

        text = MessageToJson(message, indent=None if one_line else 2, ensure_ascii=False)
        self.write(printable.json(text))
