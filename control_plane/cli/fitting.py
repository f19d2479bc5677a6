"""A table that fits the terminal: what gives way, and what goes, where it is narrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from control_plane.cli import printable

_GAP = 2


_LEAST = 8  # a narrower column says nothing


class FittingTable:
    """A table without lines.

    Where its columns do not fit, some are wrapped, and if that is not enough, some left out: those
    that may be, then the last ones. The first stays, and of what is shown nothing is cut off.
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
            leave_out: Headers of columns that can be left out, the first to go first; those that
                the table does not have are passed over.
            say_so: Tell below the table which of these were left out; of others it always tells.
        """
        self.headers = headers
        self.rows: list[tuple[str | Text, ...]] = []
        self._right = right
        self._wrap = dict(wrap or {})
        self._leave_out = leave_out
        self._say_so = say_so

    def add_row(self, *cells: str | Text) -> None:
        """Adds a row with a cell for each header."""
        self.rows.append(tuple(_fit_for_a_terminal(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """Renders as many columns as fit."""
        shown, widths = self._fit(options.max_width)
        yield self._table(shown, widths)
        missing = [each for number, each in enumerate(self.headers) if number not in shown]
        if missing and (self._say_so or not set(missing) <= set(self._leave_out)):
            yield Text(f"too narrow for {', '.join(map(printable.line, missing))}", style="dim")

    def _fit(self, room: int) -> tuple[list[int], list[int]]:
        """Returns which columns are shown in so much room, and how wide each of all would be."""
        needed = self._needed()
        well, least = list(needed), list(needed)
        for number, header in enumerate(self.headers):
            if header in self._wrap:
                well[number] = min(needed[number], self._wrap[header])
                least[number] = min(well[number], max(_LEAST, len(header)))
        shown = list(range(len(self.headers)))

        def lacks(widths: Sequence[int]) -> bool:
            return sum(widths[each] for each in shown) + _GAP * (len(shown) - 1) > room

        for header in self._leave_out:
            if header in self.headers and lacks(well):
                shown.remove(self.headers.index(header))
        floor = least if lacks(well) else well
        while len(shown) > 1 and lacks(floor):
            shown.pop()
        widths = needed
        while lacks(widths):
            wide = [each for each in shown if widths[each] > floor[each]]
            if not wide:
                widths[shown[0]] = room  # the first column alone, folded
                break
            widths[max(wide, key=widths.__getitem__)] -= 1
        return shown, widths

    def _needed(self) -> list[int]:
        """Returns the width of what each column says."""
        columns = zip(self.headers, *self.rows, strict=True)
        return [max(map(_width, column)) for column in columns]

    def _table(self, shown: Sequence[int], widths: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for number in shown:
            header = self.headers[number]
            table.add_column(
                printable.line(header),
                justify="right" if header in self._right else "left",
                width=widths[number],
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(row[number] for number in shown))
        return table


def _fit_for_a_terminal(cell: str | Text) -> str | Text:
    if isinstance(cell, str):
        return printable.text(cell)
    cell.plain = printable.text(cell.plain)  # as long as before: the styles stay where they are
    return cell


def _width(cell: str | Text) -> int:
    text = cell if isinstance(cell, str) else cell.plain
    return max(map(cell_len, text.expandtabs().splitlines()), default=0)
