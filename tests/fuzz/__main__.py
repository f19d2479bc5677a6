"""python -m tests.fuzz: says anything to everything, for as long as there is time.

The fuzzers take turns; each turn has a seed of its own, by which it can be had again alone. Exits
with 1 if anything is not as promised.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from tests.fuzz.exploring import Fuzzer, ready
from tests.fuzz.fuzzers import FUZZERS

CASES_A_TURN = 40


class Findings:
    """What came of it, by fuzzer."""

    def __init__(self) -> None:
        self.turns: Counter[str] = Counter()
        self.cases: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.failed: dict[str, list[int]] = {}

    def show(self, console: Console) -> None:
        """Prints a table."""
        table = Table("who", "turns", "conversations", "messages", "failed seeds")
        for name, turns in self.turns.items():
            failed = ", ".join(map(str, self.failed.get(name, []))) or "none"
            table.add_row(name, *map(str, (turns, self.cases[name], self.said[name])), failed)
        console.print(table)


def main() -> int:
    options = _options()
    # What is refused is logged, and much is refused here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger().addHandler(logging.NullHandler())
    console, findings = Console(), Findings()
    chosen = [each for each in FUZZERS if options.only in each.name]
    if not chosen:
        console.print(f"no fuzzer has {options.only!r} in its name: {[f.name for f in FUZZERS]}")
        return 2
    end = time.monotonic() + options.seconds
    seed: int = options.seed
    while True:
        for kind in chosen:
            _turn(kind, seed, options, findings, console)
            if time.monotonic() >= end:
                break
        else:
            seed += 1
            continue
        break
    findings.show(console)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console.print(f"seeds {options.seed} to {seed}; at most {peak:.0f} MB of memory")
    return 1 if findings.failed else 0


def _turn(
    kind: type[Fuzzer],
    seed: int,
    options: argparse.Namespace,
    findings: Findings,
    console: Console,
) -> None:
    name = kind.name
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        ready(kind, Path(folder)) as exploration,
    ):
        try:
            exploration.explore(options.cases, seed, shrink=options.shrink)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
            findings.failed.setdefault(name, []).append(seed)
            console.print(f"[bold]{name}[/bold], --only {name!r} --seed {seed}:")
            console.print(_shortened(traceback.format_exception(error)), markup=False)
        findings.turns[name] += 1
        findings.cases[name] += exploration.fuzzer.cases
        findings.said[name] += exploration.fuzzer.said


def _shortened(lines: Sequence[str]) -> str:
    return "".join(line for line in lines if "site-packages/hypothesis" not in line)[-6000:]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first; each round takes the next")
    parser.add_argument("--seconds", type=float, default=60.0, help="no new turn begins after that")
    parser.add_argument("--cases", type=int, default=CASES_A_TURN, help="conversations in a turn")
    parser.add_argument("--only", default="", help="fuzzers with this in their name")
    parser.add_argument("--shrink", action="store_true", help="look for the smallest that fails")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
