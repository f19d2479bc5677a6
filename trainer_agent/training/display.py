"""Shows a person where training is: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from trainer_agent.training.channel import Event

METRICS: Final = {
    "loss": "loss",
    "eval_loss": "eval loss",
    "reward": "reward",
    "rewards/margins": "margin",
    "kl": "kl",
    "learning_rate": "lr",
}
"""What is shown of what the trainer logs, and how it is called there."""

_LINE_INTERVAL: Final = 2.0
"""At least so many seconds lie between two lines in a pipe, the last one excepted."""


class Display:
    """Prints progress and what the training process prints.

    Attributes:
        step: Newest step that is known of; None: the training process has not begun to train.
        max_steps: Steps of the whole run; None: not known.
        output_dir: Where the run saves; None: not known.
        job: Id of the job; None: not known.
    """

    def __init__(self, out: TextIO | None = None, error: TextIO | None = None) -> None:
        """Prepare to print on stdout and stderr, or elsewhere."""
        self._out = out or sys.stdout
        self._error = error or sys.stderr
        self.step: int | None = None
        self.max_steps: int | None = None
        self.output_dir: str | None = None
        self.job: str | None = None
        self._metrics: dict[str, float] = {}
        self._pace: collections.deque[tuple[float, int]] = collections.deque(maxlen=50)
        self._printed_step: int | None = None
        self._next_line = 0.0
        console = Console(file=self._out, highlight=False, markup=False, soft_wrap=True)
        self._progress = _bar(console) if console.is_terminal else None
        self._task: Any = None

    def loading(self) -> None:
        """Take note that a training process is started, be it the first one or a later one."""
        self.step = None

    def event(self, event: Event) -> None:
        """Take note of an event of the training process, and show it."""
        match event.get("kind"):
            case "began":
                self.close()
                self.step, self.max_steps = event["step"], event["max_steps"]
                self.output_dir, self.job = event["output_dir"], event["job"]
                self._pace.clear()
                self._metrics.clear()
                self._begin()
            case "step":
                self.step, self.max_steps = event["step"], event["max_steps"]
                self._pace.append((time.monotonic(), event["step"]))
                self._show()
            case "log":
                self._metrics |= event["metrics"]
                self._show(line=True)
            case "ended":
                self.step = event["step"]
                self._show(line=True, last=True)
                self.close()
            case _:  # of a newer training process
                return

    def say(self, message: str) -> None:
        """Print a message of the launcher's own, on stderr."""
        self._print(self._error, f"midcourse: {message}")

    def line(self, line: str, *, error: bool) -> None:
        """Print a line of the training process where it was meant to go."""
        self._print(self._error if error else self._out, line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None and self._task is not None:
            self._progress.stop()
            self._progress = _bar(self._progress.console)
            self._task = None

    # ---- Within ----

    def _begin(self) -> None:
        if self._progress is not None:
            self._task = self._progress.add_task("", total=self.max_steps, completed=self.step or 0)
            self._progress.start()

    def _show(self, *, line: bool = False, last: bool = False) -> None:
        if self._progress is not None:
            if self._task is not None:
                status = "  ".join([*_words(self._metrics), *self._speed()])
                self._progress.update(
                    self._task, completed=self.step, total=self.max_steps, description=status
                )
            return
        now = time.monotonic()
        if line and (now >= self._next_line or (last and self._printed_step != self.step)):
            self._next_line = now + _LINE_INTERVAL
            self._printed_step = self.step
            of = "" if self.max_steps is None else f"/{self.max_steps}"
            words = [f"step {self.step}{of}", *_words(self._metrics), *self._speed()]
            self._print(self._out, "  ".join(words))

    def _speed(self) -> list[str]:
        if len(self._pace) < 2 or self._pace[-1][1] <= self._pace[0][1]:
            return []
        (since, first), (until, latest) = self._pace[0], self._pace[-1]
        seconds = (until - since) / (latest - first)
        speed = f"{1 / seconds:.3g} steps/s" if 0 < seconds < 1 else f"{seconds:.3g} s/step"
        left = None if self.max_steps is None else max(self.max_steps - latest, 0) * seconds
        return [speed] if not left else [speed, f"{timedelta(seconds=round(left))} left"]

    def _print(self, stream: TextIO, line: str) -> None:
        if self._task is not None and self._progress is not None and stream.isatty():
            self._progress.console.print(Text.from_ansi(line))
            return
        stream.write(f"{line}\n")
        stream.flush()


def shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what is shown of what a trainer logs."""
    return {
        name: float(metrics[name]) for name in METRICS if isinstance(metrics.get(name), int | float)
    }


def _words(metrics: Mapping[str, float]) -> list[str]:
    return [f"{METRICS[name]} {metrics[name]:.4g}" for name in METRICS if name in metrics]


def _bar(console: Console) -> Progress:
    return Progress(
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.description}", markup=False),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
        refresh_per_second=5,
    )
