"""A table that fits the terminal: what gives way, and what goes, where it is narrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from control_plane.cli import printable

_GAP = 2


class FittingTable:
    """A table without lines.

    Where its columns do not fit, some are wrapped, and if that is not enough, some left out.
    """

    def __init__(
        self,
        *headers: str,
        right: Sequence[str] = (),
        wrap: Mapping[str, int] | None = None,
        leave_out: Sequence[str] = (),
        say_so: bool = False,
    ) -> None:
        """Makes an empty table.

        Args:
            headers: Column headers.
            right: Headers of columns with numbers.
            wrap: Headers of columns that may be wrapped, each with the least width at which it
                still reads well.
            leave_out: Headers of columns that can be left out, the first to go first.
            say_so: Tell below the table which columns were left out.
        """
        self.headers = headers
        self.rows: list[tuple[RenderableType, ...]] = []
        self._right = right
        self._wrap = dict(wrap or {})
        self._leave_out = leave_out
        self._say_so = say_so

    def add_row(self, *cells: RenderableType) -> None:
        """Adds a row with a cell for each header."""
        self.rows.append(
            tuple(printable.text(cell) if isinstance(cell, str) else cell for cell in cells)
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """Renders as many columns as fit."""
        widths = self._widths(console, options)
        shown = list(self.headers)
        for header in self._leave_out:
            if sum(widths[h] for h in shown) + _GAP * (len(shown) - 1) <= options.max_width:
                break
            shown.remove(header)
        yield self._table(shown)
        missing = [header for header in self.headers if header not in shown]
        if missing and self._say_so:
            yield Text(f"too narrow for {', '.join(missing)}", style="dim")

    def _widths(self, console: Console, options: ConsoleOptions) -> dict[str, int]:
        """Returns the width that each column needs to read well."""
        widths = {}
        for index, header in enumerate(self.headers):
            cells = [row[index] for row in self.rows]
            needed = max(
                (Measurement.get(console, options, cell).maximum for cell in (header, *cells)),
                default=0,
            )
            widths[header] = min(needed, self._wrap.get(header, needed))
        return widths

    def _table(self, shown: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for header in shown:
            table.add_column(
                header,
                justify="right" if header in self._right else "left",
                no_wrap=header not in self._wrap,
                overflow="fold" if header in self._wrap else "ellipsis",
                min_width=None if header not in self._wrap else len(header),
            )
        indices = [self.headers.index(header) for header in shown]
        for row in self.rows:
            table.add_row(*(row[index] for index in indices))
        return table
