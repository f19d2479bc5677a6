"""The rows of tests.bench.scale, in the table with the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.report import Report, Row
from tests.support.processes import ROOT

QUICK = ("--few=200", "--agents=1000", "--updates=60", "--batches=2", "--seconds=3")
"""Enough to see that it works; `make bench` has all of it."""


def rows(directory: Path, *, quick: bool) -> Iterator[Row]:
    """The rows of many agents."""
    output = directory / "scale.json"
    command = [sys.executable, "-m", "tests.bench.scale", f"--output={output}"]
    # What there is of the table is written also where it ends with an error.
    code = subprocess.run([*command, *(QUICK if quick else ())], cwd=ROOT, check=False).returncode
    if output.exists():
        yield from Report.read(output).rows
    if code:
        raise RuntimeError(f"python -m tests.bench.scale ended with exit code {code}")
