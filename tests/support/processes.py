"""Real processes for tests: a control plane, a training run, and the agent that it starts."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
_PORTS = random.SystemRandom()  # not the numbers that tests, side by side, are seeded with


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, and that nobody is given by chance.

    Systems give connections, and whoever asks for any port, one from above 32,767 (macOS and
    Windows from above 49,151). A server that is started again would find such a one taken.
    """
    while True:
        port = _PORTS.randrange(10_240, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def until(condition: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
    """Waits until a condition gives something true, and returns it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.01)  # between two looks
    raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")


class Process:
    """A process in a group of its own, with its output in a file."""

    def __init__(self, name: str, arguments: list[str], directory: Path, **env: str) -> None:
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}",
                    "OMP_NUM_THREADS": "1",
                    "HF_HUB_OFFLINE": "1",
                    **env,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def kill(self, number: int = signal.SIGKILL) -> int:
        self._process.send_signal(number)
        return self._process.wait(30)

    def wait(self, seconds: float) -> int:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.tail()}") from None

    def tail(self, characters: int = 4_000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)


def serve(port: int, directory: Path, **options: object) -> Process:
    """A control plane; its database and log lie in the directory."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return Process(
        "control-plane",
        [
            *("-m", "control_plane.cli", "serve", f"--listen=127.0.0.1:{port}"),
            *(f"--database={directory / 'control.db'}", "--log-format=json", *flags),
        ],
        directory,
    )


def agents_of(job: str) -> list[int]:
    """Process ids of the live agents of a job on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if "trainer_agent" in words and job in words:
                status = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
                if status != "Z":
                    found.append(int(path.parent.name))
    return found
