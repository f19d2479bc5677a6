"""python -m tests.faults.run: faults on a running cluster, and whether what was promised holds.

Writes what everybody saw to a file, which `python -m tests.faults.check` checks again. Exits with
1 at a violation, at an error that no caller should see, or where not everything comes to rest.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import structlog
from rich.console import Console

from tests.faults.engagement import NotSettledError, Setup, engage
from tests.faults.history import History, recording
from tests.faults.report import show, unexpected
from tests.faults.validators import validate


def main() -> int:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    # What agents say of each reconnect is of no use here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    seeds = range(options.seed, options.seed + options.runs)
    bad = [seed for seed in seeds if not _one(seed, options, console)]
    if options.runs > 1:
        console.print(f"{options.runs} runs; with violations: {bad or 'none'}")
    return 1 if bad else 0


def _one(seed: int, options: argparse.Namespace, console: Console) -> bool:
    setup = Setup(
        seed=seed,
        seconds=options.seconds,
        replicas=1 if options.sqlite else options.replicas,
        postgres=not options.sqlite,
        jobs=options.jobs,
    )
    path = options.output / f"{'sqlite' if options.sqlite else 'postgresql'}-{seed}.jsonl"
    settled = True
    with recording(path) as recorder:
        try:
            asyncio.run(engage(setup, recorder))
        except NotSettledError as error:
            console.print(f"seed {seed}: {error}", markup=False)
            settled = False
    history = History(recorder.records)
    violations = validate(history)
    show(history, violations, console)
    for failed in (errors := unexpected(history)):
        console.print(f"nobody should see: {failed}", markup=False)
    console.print(f"history: {path}")
    return settled and not violations and not errors


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="what faults are drawn from")
    parser.add_argument("--runs", type=int, default=1, help="so many seeds, one after the other")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long there are faults")
    parser.add_argument("--replicas", type=int, default=3, help="servers on one PostgreSQL")
    parser.add_argument("--sqlite", action="store_true", help="one server on a file instead")
    parser.add_argument("--jobs", type=int, default=24, help="light jobs")
    parser.add_argument("--output", type=Path, default=Path("out/faults"), help="folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
