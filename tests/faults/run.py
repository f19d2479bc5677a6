"""python -m tests.faults.run: faults on running servers, and whether what was promised holds.

Each run is drawn from a seed. Writes what everybody saw to a file, which `python -m
tests.faults.check` checks again; what went well is not kept. Exits with 1 at a violation, at an
error that no caller should see, or where not everything comes to rest.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.faults.campaign import Result, Tally, campaign, have_run, prepare
from tests.faults.engagement import Setup
from tests.faults.history import History
from tests.faults.report import show, show_tally
from tests.faults.validators import validate


def main() -> int:
    options = _options()
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True) if not sys.stdout.isatty() else Console()
    if options.runs == 1:
        return _one(options, console)
    tally = Tally()
    begun = time.monotonic()
    end = begun + options.minutes * 60 if options.minutes else None
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("schedules", total=options.runs or None)
        interrupted = False
        try:
            for result in campaign(
                *(_setups(options), options.output),
                at_once=options.at_once,
                end=end,
                keep=options.keep,
            ):
                tally.add(result)
                bar.advance(task)
                _complain(result, console)
        except KeyboardInterrupt:
            interrupted = True
        finally:  # what has been found by now is told, whatever ends it: a worker may be killed
            commands = [_command(each) for each in tally.bad]
            show_tally(tally, time.monotonic() - begun, commands, console)
    return 1 if tally.bad else _INTERRUPTED if interrupted else 0


def _one(options: argparse.Namespace, console: Console) -> int:
    prepare()
    [setup] = _setups(options)
    result = have_run(setup, options.output, keep=True)
    assert result.history is not None
    history = History.load(result.history)
    show(history, validate(history), console)
    _complain(result, console)
    console.print(f"history: {result.history}")
    return 1 if result.troubles else 0


def _complain(result: Result, console: Console) -> None:
    for trouble in result.troubles[:_SHOWN]:
        console.print(f"seed {result.setup.seed}: {trouble}", markup=False, highlight=False)


_SHOWN = 10
_INTERRUPTED = 130


def _setups(options: argparse.Namespace) -> Iterator[Setup]:
    seeds: Sequence[int] | Iterator[int] = itertools.count(options.seed)
    if options.runs:
        seeds = range(options.seed, options.seed + options.runs)
    for seed in seeds:
        yield Setup(
            seed=seed,
            seconds=options.seconds,
            replicas=1 if options.sqlite else options.replicas,
            postgres=not options.sqlite,
            jobs=options.jobs,
            processes=int(seed % 4 == 0) if options.processes is None else options.processes,
            callers=options.callers,
            watchers=options.watchers,
        )


def _command(result: Result) -> str:
    """What has the same faults and requests once more."""
    setup = result.setup
    where = f"--replicas {setup.replicas}" if setup.postgres else "--sqlite"
    return (
        f"make faults ARGS='--seed {setup.seed} --runs 1 {where} --seconds {setup.seconds:g} "
        f"--jobs {setup.jobs} --processes {setup.processes} --callers {setup.callers} "
        f"--watchers {setup.watchers}'"
    )


def _options() -> argparse.Namespace:
    usual = Setup()
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="what faults are drawn from; the first")
    parser.add_argument(
        "--runs", type=int, default=None, help="so many seeds, one after the other; 0: no end"
    )
    parser.add_argument("--minutes", type=float, help="after these, no more runs are begun")
    parser.add_argument("--at-once", type=int, default=2, help="so many runs at a time")
    parser.add_argument("--seconds", type=float, default=2.0, help="for how long there are faults")
    parser.add_argument("--replicas", type=int, default=3, help="servers on one PostgreSQL")
    parser.add_argument("--sqlite", action="store_true", help="one server on a file instead")
    parser.add_argument("--jobs", type=int, default=usual.jobs, help="light jobs")
    parser.add_argument(
        "--processes",
        type=int,
        help="jobs that are processes; by default one, where the seed can be divided by 4",
    )
    parser.add_argument("--callers", type=int, default=usual.callers, help="who change parameters")
    parser.add_argument("--watchers", type=int, default=usual.watchers, help="of all, and of one")
    parser.add_argument("--output", type=Path, default=Path("out/faults"), help="folder")
    parser.add_argument("--keep", action="store_true", help="keep all histories")
    options = parser.parse_args()
    if options.runs is None:
        options.runs = 0 if options.minutes else 20
    return options


if __name__ == "__main__":
    sys.exit(main())
