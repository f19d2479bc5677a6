"""Light jobs in processes of their own, as load on a control plane."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ROOT
from trainer_agent.simulate.light_jobs import Totals
from trainer_agent.simulate.main import shares
from trainer_agent.simulate.options import SimulateOptions, to_arguments


class Load:
    """The processes, and what they have come to as of their last word."""

    def __init__(self) -> None:
        self._totals: dict[int, Totals] = {}
        self._workers: list[subprocess.Popen[str]] = []
        self._followers: list[threading.Thread] = []
        self._added_last = 0

    def add(self, options: SimulateOptions) -> None:
        """Starts processes that do what the options say."""
        self._added_last = len(self._workers)
        for each in shares(options):
            worker = subprocess.Popen(
                [sys.executable, "-m", "trainer_agent.simulate", *to_arguments(each)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            number = len(self._workers)
            self._workers.append(worker)
            follower = threading.Thread(target=self._follow, args=(number, worker), daemon=True)
            follower.start()
            self._followers.append(follower)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers]

    @property
    def totals(self) -> Totals:
        return functools.reduce(Totals.__add__, list(self._totals.values()), Totals())

    def take_back(self) -> None:
        """Ends what was added last."""
        for number in range(self._added_last, len(self._workers)):
            self._workers[number].kill()
            self._workers[number].wait()
            self._followers[number].join()
            self._totals.pop(number, None)
        del self._workers[self._added_last :], self._followers[self._added_last :]

    def wait(self, condition: Callable[[Totals], bool], what: str, seconds: float) -> None:
        if not self.comes_to(condition, seconds):
            raise TimeoutError(f"{what}: not within {seconds:g} s; {self.totals}")

    def comes_to(self, condition: Callable[[Totals], bool], seconds: float) -> bool:
        """Waits for what the load has come to; returns whether it did within the time."""
        latest = time.monotonic() + seconds
        while time.monotonic() < latest:
            dead = [worker.returncode for worker in self._workers if worker.poll() is not None]
            assert not dead, f"load ended with {dead}"
            if condition(self.totals):
                return True
            time.sleep(0.1)
        return False

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()

    def _follow(self, number: int, worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        for line in worker.stdout:
            self._totals[number] = Totals(**json.loads(line))


@contextlib.contextmanager
def load(options: SimulateOptions | None = None) -> Iterator[Load]:
    """Runs the load while the block runs; None: none yet."""
    running = Load()
    try:
        if options is not None:
            running.add(options)
        yield running
    finally:
        running.end()


def rss_kilobytes(pid: int) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@dataclass
class Cost:
    """What many jobs cost: processor time of the server and of the load, beside wall time.

    Attributes:
        server: Processor seconds of the server.
        load: Processor seconds of all processes of the load.
        wall: Seconds.
    """

    server: float = 0.0
    load: float = 0.0
    wall: float = 0.0

    @contextlib.contextmanager
    def measured(self, server: int, loads: list[int]) -> Iterator[None]:
        """Adds what the block costs."""
        before = cpu_seconds(server), sum(map(cpu_seconds, loads)), time.monotonic()
        yield
        self.server += cpu_seconds(server) - before[0]
        self.load += sum(map(cpu_seconds, loads)) - before[1]
        self.wall += time.monotonic() - before[2]

    def beyond(self, rest: Cost) -> Cost:
        """Without what the same time costs at rest."""
        share = self.wall / rest.wall
        return Cost(self.server - rest.server * share, self.load - rest.load * share, self.wall)
