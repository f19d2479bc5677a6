"""Shows the run while it goes on: one moving line on a terminal, else a line now and then."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from rich.console import Console

    from midcourse.control.v1 import job_pb2

_LINES: Final = 12
"""About so many lines in all where there is no terminal."""


class Display:
    """The newest step, metric and learning rate of a job.

    A context manager, so that the moving line stays behind as it was last.
    """

    def __init__(self, console: Console, metric: str, steps: int) -> None:
        """Shows nothing before ``__enter__``."""
        self._console = console
        self._metric = metric
        self._steps = steps
        self._shown = -1
        self._progress = Progress(
            TextColumn("   {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("waiting for the first step", total=steps, said="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, job: job_pb2.Job, state: str) -> None:
        """Shows a job as it is now."""
        step = job.progress.step
        said = "  ".join(
            f"{metric.name} {metric.value:.4g}"
            for name in (self._metric, "learning_rate")
            for metric in job.metrics
            if metric.name == name
        )
        if job.progress.HasField("steps_per_second"):
            said += f"  {job.progress.steps_per_second:.1f} steps/s"
        if self._console.is_terminal:
            self._progress.update(self._task, description=state, completed=step, said=said)
        elif step > 0 and (step - self._shown >= self._steps / _LINES or step == self._steps):
            if step != self._shown:
                self.line(f"step {step:>3}/{self._steps}  {said}")
            self._shown = step

    def line(self, text: str, style: str = "") -> None:
        """Prints a line above the moving one."""
        self._console.print(f"   {text}", style=style or None)
