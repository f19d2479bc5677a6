"""An empty folder in which everything happens, with environments, a home and ports of its own."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 60.0


class FailedError(Exception):
    """A step did not come to what it should."""


class SkippedError(Exception):
    """A step was left out; says why."""


@dataclass
class Place:
    """Where things are tried, and what came of them.

    Attributes:
        folder: Where everything happens.
        asked: The options.
        rows: What ran: name, seconds, result.
        failed: Whether something has.
    """

    folder: Path
    asked: argparse.Namespace
    rows: list[tuple[str, float, str]] = field(default_factory=list)
    failed: bool = False

    def __post_init__(self) -> None:
        """Makes an environment in which nothing of this user's is left."""
        self.clone = self.folder / "clone"
        self.dist = self.folder / "dist"
        self.plane, self.analytics = (f"127.0.0.1:{free_port()}" for _ in range(2))
        home = self.folder / "home"
        home.mkdir()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"PYTHON|VIRTUAL_ENV|MIDCOURSE|XDG|JOB_ID|.*_API_KEY", name)
        }
        self.env = kept | {
            "HOME": str(home),
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "MIDCOURSE_LISTEN": self.plane,
            "MIDCOURSE_CONTROL_PLANE": self.plane,
            "MIDCOURSE_ANALYTICS_LISTEN": self.analytics,
            "MIDCOURSE_ANALYTICS_CONTROL_PLANE": self.plane,
            "MIDCOURSE_ANALYTICS": self.analytics,
            # There is no key here, so that questions go to the model that needs none.
            "ANALYTICS_DEFAULT_MODEL": "smollm2-135m",
        }

    # ------------------------------------------------------------------------------- one step

    def step(self, name: str, what: Callable[[], str | None]) -> bool:
        """Does a step and notes what came of it; returns whether it went well."""
        print(f"… {name}", flush=True)
        began = time.monotonic()
        try:
            result = what() or "ok"
        except SkippedError as why:
            result = f"skipped: {why}"
        except (FailedError, OSError, subprocess.SubprocessError, ValueError, SyntaxError) as error:
            self.failed = True
            result = "FAILED"
            print(textwrap.indent(str(error), "    "), flush=True)
        self.rows.append((name, time.monotonic() - began, result))
        return result != "FAILED"

    def run(
        self,
        *command: str | Path,
        seconds: float = 300,
        cwd: Path | None = None,
        text: str | None = None,
        codes: tuple[int, ...] = (0,),
        python: Path | None = None,
    ) -> str:
        """Runs a program to its end; returns what it printed.

        Raises:
            FailedError: It ended otherwise than it should, or not in time.
        """
        words = [str(word) for word in command]
        with subprocess.Popen(  # noqa: S603 - the commands are ours and the README's
            words,
            cwd=cwd or self.clone,
            env=self._env(python),
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(text, timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                raise FailedError(f"not within {seconds:.0f} s\n{output[-3000:]}") from None
        if process.returncode not in codes:
            raise FailedError(f"exit code {process.returncode}\n{output[-3000:]}")
        return output

    def _env(self, python: Path | None) -> dict[str, str]:
        """The environment, activated for one of our virtual ones."""
        if python is None:
            return self.env
        return self.env | {
            "VIRTUAL_ENV": str(python.parent.parent),
            "PATH": f"{python.parent}{os.pathsep}{self.env['PATH']}",
        }

    @contextlib.contextmanager
    def background(self, command: str, python: Path, stop: int = signal.SIGTERM) -> Iterator[Path]:
        """Has a command run while the block does; its output is in the file."""
        log = self.folder / f"{re.sub(r'[^a-z]+', '-', command.lower()).strip('-')[:40]}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - likewise
                ["bash", "-c", f"exec {command}"],  # noqa: S607 - the one on the path
                cwd=self.clone,
                env=self._env(python),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield log
            if process.poll() is None:
                process.send_signal(stop)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                raise FailedError(f"{command} does not end:\n{log.read_text()[-3000:]}") from None
            if process.returncode not in (0, 130):
                raise FailedError(f"exit code {process.returncode}\n{log.read_text()[-3000:]}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def until(self, what: Callable[[], bool], why: str, seconds: float = 180) -> None:
        """Waits until something is so."""
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise FailedError(f"waited {seconds:.0f} s in vain: {why}")
            time.sleep(0.2)

    def succeeds(self, python: Path, command: str) -> bool:
        """Whether a command ends well."""
        try:
            self.run("bash", "-c", command, python=python, seconds=60)
        except FailedError:
            return False
        return True

    def venv(self, name: str, *packages: str) -> Path:
        """A new virtual environment with packages; returns its interpreter."""
        folder = self.folder / name
        self.run(sys.executable, "-m", "venv", folder)
        python = folder / "bin" / "python"
        self.run(
            *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--constraint", "constraints.txt", *packages),
            seconds=1_200,
        )
        return python

    def show(self) -> None:
        """The table."""
        width = min(100, max(len(name) for name, _, _ in self.rows))
        print(f"\n{'what':{width}}  seconds  result")
        for name, seconds, result in self.rows:
            print(f"{name[:width]:{width}}  {seconds:7.1f}  {' '.join(result.split())[:90]}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
