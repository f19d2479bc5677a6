"""The rows of tests.bench.scale, in the table with the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.report import Report, Row
from tests.support.processes import ROOT

QUICK = (("--few=200", "--agents=1000", "--steps=3", "--updates=60", "--batches=2", "--seconds=6"),)
"""Enough to see that it works; `make bench` has all of it."""
FULL: tuple[tuple[str, ...], ...] = ((), ("--few=0", "--heartbeat=5"))
"""The second is what as many sessions take where the heartbeats do not take all there is."""


def rows(directory: Path, *, quick: bool) -> Iterator[Row]:
    """The rows of many agents."""
    for number, options in enumerate(QUICK if quick else FULL):
        output = directory / f"scale-{number}.json"
        command = [sys.executable, "-m", "tests.bench.scale", f"--output={output}", *options]
        # What there is of the table is written also where it ends with an error.
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if output.exists():
            yield from Report.read(output).rows
        if code:
            raise RuntimeError(f"{' '.join(command[1:])} ended with exit code {code}")
