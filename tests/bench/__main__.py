"""python -m tests.bench [--quick]: measures, prints one table, writes out/bench.json.

Every part is a process of its own with a time limit: one that fails leaves a row that says why.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench import documents
from tests.bench.noise import free_share
from tests.bench.report import Hop, Report, Row, present
from tests.support.processes import ROOT

CLEAN_UP_SECONDS = 20.0


@dataclass(frozen=True)
class Part:
    """A module with a function `rows`, and the seconds that it may take, quick and whole."""

    module: str
    quick: float
    whole: float


PARTS = {
    "live-update": Part("live_update", 60, 300),
    "hops": Part("hops", 60, 180),
    "steps-of-100-ms": Part("polling", 60, 240),
    "callback-cost": Part("callback_cost", 60, 300),
    "ranks": Part("ranks", 60, 180),
    "intake": Part("intake", 60, 240),
    "growth": Part("growth", 60, 300),
    "chat": Part("chat", 60, 300),
    "replicas": Part("replicas", 60, 240),
    "fleet": Part("fleet", 120, 1_800),
}


def measure(name: str, *, quick: bool, patience: float) -> tuple[list[Row], list[Hop]]:
    """Runs a part; what it has found before it failed, if it does, is kept."""
    part = PARTS[name]
    limit = (part.quick if quick else part.whole) * patience
    load, free = os.getloadavg()[0], free_share()
    with tempfile.TemporaryDirectory(prefix="midcourse-bench-") as directory:
        results, log = Path(directory, "rows.jsonl"), Path(directory, "log")
        results.touch()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.bench.part", part.module, str(results)),
                    *(["--quick"] if quick else []),
                ],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            failure = _ended(process, limit)
        if failure == "":
            code = process.returncode
            said = log.read_text(errors="replace").strip()
            if code:
                last = next((line for line in said.splitlines()[::-1] if "Error" in line), said)
                failure = f"exit code {code}: {last[-300:]}"
                sys.stderr.write(f"{name} failed:\n{said[-6_000:]}\n")
        found = [json.loads(line) for line in results.read_text().splitlines()]
    free = min(free, free_share())
    kinds = {"Row": Row, "Hop": Hop}
    things = [kinds[each.pop("kind")](**each) for each in found]
    rows = [each for each in things if isinstance(each, Row)]
    if failure:
        rows.append(Row(f"the rest of {name}", "", None, None, failure=failure))
    told: dict[str, Any] = {"part": name, "load": round(load, 2), "free": round(free, 3)}
    return (
        [dataclasses.replace(row, **told) for row in rows],
        [each for each in things if isinstance(each, Hop)],
    )


def _ended(process: subprocess.Popen[bytes], limit: float) -> str:
    """Waits for the end of a part; returns why it had to be ended, empty: it ended by itself."""
    try:
        process.wait(limit)
        return ""
    except subprocess.TimeoutExpired:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(CLEAN_UP_SECONDS)
        return f"took longer than {limit:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(names: Sequence[str], console: Console, *, quick: bool, patience: float) -> Report:
    """Runs parts one after the other."""
    rows: list[Row] = []
    hops: list[Hop] = []
    for name in names:
        began = time.monotonic()
        with console.status(f"{name} …"):
            some, stretches = measure(name, quick=quick, patience=patience)
        rows += some
        hops += stretches
        told = f"{name}: {time.monotonic() - began:.0f} s"
        if some and some[0].load is not None and some[0].free is not None:
            told += f"; load average {some[0].load:.1f}, {some[0].free:.0%} of the processors free"
        console.print(told)
    return Report(rows, hops, quick=quick)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples; under two minutes")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="one part alone; may be said again"
    )
    parser.add_argument(
        "--out", "--output", type=Path, default=Path("out/bench.json"), help="default: %(default)s"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        metavar="TIMES",
        help="give every part so many times its limit, where the machine is busy (default: 1)",
    )
    parser.add_argument(
        "--from",
        dest="given",
        type=Path,
        help="measure nothing: show what an earlier run has written",
    )
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help="renew table, profile and plot in docs/performance.md",
    )
    asked = parser.parse_args()
    console = Console(width=170)
    if asked.given is not None:
        report = Report.read(asked.given)
    else:
        report = run(asked.only or list(PARTS), console, quick=asked.quick, patience=asked.patience)
        report.write(asked.out)
    present(report.rows, console)
    if asked.write_docs:
        documents.renew(report)
    elif asked.given is None:
        documents.plot(report, asked.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
