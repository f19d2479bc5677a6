"""What a demo says: headings, lines, and commands that anybody could run beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console

from examples.demo.processes import DemoError

_INTERRUPTED: Final = 130
_TELL_SECONDS: Final = 15.0


class Stage:
    """A console with numbered headings."""

    def __init__(self) -> None:
        """Writes to stdout."""
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self._headings = 0

    def heading(self, text: str) -> None:
        """Begins a part."""
        self._headings += 1
        self.console.print(f"\n{self._headings}. {text}", style="bold cyan")

    def say(self, text: str) -> None:
        """Says a line."""
        self.console.print(f"   {text}")

    def midcourse(self, *arguments: str, **addresses: str) -> None:
        """Runs the command, as anybody could beside the demo, and tells that it is still at it.

        Args:
            arguments: Its arguments.
            addresses: Environment variables that say where the services are.

        Raises:
            DemoError: It fails.
        """
        shown = [f'"{each}"' if " " in each else each for each in arguments]
        self.console.print(f"\n$ midcourse {' '.join(shown)}", style="bold")
        sys.stdout.flush()
        command = [sys.executable, "-m", "control_plane.cli", *arguments]
        began = time.monotonic()
        with subprocess.Popen(command, env={**os.environ, **addresses}) as process:  # noqa: S603 - no shell
            try:
                while (code := _ended_within(process, _TELL_SECONDS)) is None:
                    if not sys.stderr.isatty():  # there the command itself shows what it waits for
                        seconds = time.monotonic() - began
                        print(f"   … {seconds:.0f} s so far", file=sys.stderr, flush=True)
            except BaseException:
                process.kill()
                raise
        if code != 0:
            raise DemoError(f"midcourse {arguments[0]} ended with exit status {code}")


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def perform(play: Callable[[Stage, Path], None]) -> int:
    """Runs a demo in a directory that is gone afterwards; returns the exit status.

    Settings of services that the user runs elsewhere are for nobody in it: they are forgotten.
    """
    for variable in list(os.environ):
        if variable.startswith(("MIDCOURSE_", "ANALYTICS_")):
            del os.environ[variable]
    stage = Stage()
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        with tempfile.TemporaryDirectory(prefix="midcourse-") as directory:
            play(stage, Path(directory))
    except KeyboardInterrupt:
        stage.console.print("interrupted; everything is stopped", style="yellow")
        return _INTERRUPTED
    except DemoError as error:
        if error.log:
            stage.console.print(f"\n{error.log}\n", style="dim")
        stage.console.print(f"the demo failed: {error}", style="red")
        return 1
    return 0


def _exit_on_signal(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
