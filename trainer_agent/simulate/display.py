"""What the command shows while light jobs run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from trainer_agent.simulate.job import LightJob
    from trainer_agent.simulate.light_jobs import Totals
    from trainer_agent.simulate.options import SimulateOptions

_ROWS: Final = 12
# Where nobody looks at a terminal.
_LINE_EVERY: Final = 10.0


class Display:
    """A table that is kept up to date on a terminal; lines, now and then, elsewhere."""

    def __init__(self, options: SimulateOptions, console: Console | None = None) -> None:
        """Prepares to show jobs.

        Args:
            options: What was asked for.
            console: Where to; None: standard output.
        """
        self._options = options
        self._console = console or Console()
        self._live: Live | None = None
        self._last_line = -_LINE_EVERY
        self._steps = (time.monotonic(), 0)
        self._rate = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, totals: Totals, jobs: Sequence[LightJob] = ()) -> None:
        """Shows how the jobs do.

        Args:
            totals: Of all.
            jobs: Those of this process, of which some are shown one by one.
        """
        now = time.monotonic()
        since, before = self._steps
        if now - since >= 1.0:
            self._rate = max(0, totals.steps - before) / (now - since)
            self._steps = now, totals.steps
        if self._live is not None:
            self._live.update(self._table(totals, jobs), refresh=True)
        elif now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            self._console.print(self._line(totals), soft_wrap=True)

    def ended(self, totals: Totals) -> None:
        """Says what it came to."""
        self._console.print(
            f"{totals.jobs} light jobs ended after {totals.steps:,} steps, "
            f"{totals.applied:,} applied and {totals.rejected:,} rejected updates",
            soft_wrap=True,
            highlight=False,
        )

    def _line(self, totals: Totals) -> Text:
        words = [
            f"{totals.connected}/{totals.jobs} connected to {self._options.control_plane}",
            f"{self._rate:,.0f} steps/s",
            f"{totals.applied} applied",
            f"{totals.rejected} rejected",
        ]
        if totals.paused:
            words.append(f"{totals.paused} paused")
        if totals.finished:
            words.append(f"{totals.finished} finished")
        again = totals.sessions - min(totals.sessions, totals.started)
        if again:
            words.append(f"{again} reconnects")
        return Text(", ".join(words))

    def _table(self, totals: Totals, jobs: Sequence[LightJob]) -> Table:
        table = Table(title=self._line(totals), title_justify="left", box=None, expand=False)
        table.caption = "Ctrl-C ends them"
        table.caption_justify = "left"
        if not jobs:
            return table
        for name in ("job", "step", "loss", "learning rate", "updates", "state"):
            table.add_column(name, justify="left" if name in ("job", "state") else "right")
        for job in jobs[:_ROWS]:
            state = "finished" if job.finished else "paused" if job.paused else "training"
            if not job.connected and not job.finished:
                state = f"{state}, {job.trouble or 'not connected'}"
            table.add_row(
                job.job_id,
                f"{job.step}",
                f"{job.loss:.4f}",
                f"{job.values['learning_rate']:g}",
                f"{job.counts.get('applied', 0)}",
                state,
            )
        if len(jobs) > _ROWS:
            table.add_row(f"… and {len(jobs) - _ROWS} more")
        return table
