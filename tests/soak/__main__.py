"""python -m tests.soak: everything goes on for an hour; what should be bounded has to stay so.

A control plane and an analytics service as processes; jobs that come and go, updates, batches,
actions, watches (some slow, some cut), metrics, questions to a fake provider, tokens that are made
and revoked. What is kept for some time is kept for a minute, so that forgetting is part of it.
Every few seconds memory, files, threads, tasks, queues and tables are measured. Writes
out/soak.json, out/soak.svg and out/soak.png; exits with 1 where something surely grows by more
than it may, or where callers saw an error that they should not have.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import structlog
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from grpc_runtime.client.variables import TOKEN_VARIABLE
from tests.soak.judging import Verdict
from tests.soak.load import Load
from tests.soak.measuring import Courses, measure
from tests.soak.report import check_measured, draw, judge, show, write
from tests.soak.stand import Stand, stand


async def soak(
    on: Stand, load: Load, seconds: float, every: float, progress: Progress, *, postgres: bool
) -> Courses:
    """Has it all go on for so long, and measures.

    Raises:
        AssertionError: A server has ended.
        ValueError: Something that has a bound is not measured.
    """
    courses = Courses()
    bar = progress.add_task("soak", total=seconds)
    going = asyncio.create_task(load.run())
    began = time.monotonic()
    try:
        while (passed := time.monotonic() - began) < seconds:
            for service in on.services:
                assert service.process.exit_code is None, service.process.tail()
            await measure(on, load, courses, began)
            check_measured(courses, postgres=postgres)
            progress.update(bar, completed=passed, description=f"soak: {sum(load.done.values()):,}")
            await asyncio.wait([going], timeout=every)
            if going.done():
                going.result()
    finally:
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
    progress.update(bar, completed=seconds)
    return courses


def main() -> int:
    asked = _options()
    console = Console(width=160 if not sys.stdout.isatty() else None)
    # What agents say of each reconnect is of no use here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    load_average = os.getloadavg()[0]
    console.print(f"on {os.cpu_count()} processors, load {load_average:.1f} before the start")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="midcourse-soak-") as directory,
        Progress(*columns, console=console) as progress,
        stand(Path(directory), postgres=asked.postgres) as on,
    ):
        os.environ[TOKEN_VARIABLE] = on.admin.token  # the agents'
        load = Load(on, asked.jobs, asked.rate, asked.seed)
        seconds = asked.minutes * 60
        courses = uvloop.run(
            soak(on, load, seconds, asked.every, progress, postgres=asked.postgres)
        )
        logs = {service.name: service.process.tail() for service in on.services}
    judgements = judge(courses, postgres=asked.postgres)
    for name, log in logs.items():
        if log:
            console.print(f"{name} has logged:\n{log}", markup=False)
    errors = load.all_errors()
    show(judgements, load.done, errors, console)
    setup = {**vars(asked), "output": str(asked.output), "load_average_before": load_average}
    write(asked.output / "soak.json", courses, judgements, setup, load.done, errors)
    draw(asked.output / "soak.svg", courses, judgements)
    console.print(f"written: {asked.output}/soak.json, soak.svg, soak.png")
    grows = [each.name for each in judgements if each.verdict is Verdict.GROWS]
    return 1 if grows or errors else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="default: 60")
    parser.add_argument("--jobs", type=int, default=50, help="jobs at a time (default: 50)")
    parser.add_argument("--rate", type=float, default=1.0, help="of all else (default: 1)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds (default: 5)")
    parser.add_argument("--seed", type=int, default=0)
    databases = parser.add_mutually_exclusive_group()
    databases.add_argument("--sqlite", action="store_true", help="on files (the default)")
    databases.add_argument("--postgres", action="store_true", help="on PostgreSQL")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder (default: out)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
