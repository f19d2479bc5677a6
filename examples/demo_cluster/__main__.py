"""Three control planes on one PostgreSQL, and one dies: ``python -m examples.demo_cluster``.

A dozen light jobs (see docs/scale.md) train nothing, but are steered as any other. Everything runs
on this machine, in a temporary directory; nothing is downloaded, and nothing stays behind.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from control_plane.client import Client, MidcourseError
from examples.demo.processes import DemoError
from examples.demo.stage import Stage, perform
from examples.demo_cluster.replicas import Replicas
from grpc_runtime.logging import configure_logging
from tests.support.postgres import PostgresServer
from trainer_agent.simulate import LightJob, LightJobs

_REPLICAS: Final = 3
_LABELS: Final = {"team": "demo"}
_SELECTOR: Final = "team=demo"
_STEP_SECONDS: Final = 0.05
_TIMEOUT: Final = 30.0
_GOAL_SECONDS: Final = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_cluster", description=__doc__)
    parser.add_argument("--jobs", type=int, default=12, help="light jobs (default: 12)")
    options = parser.parse_args(arguments)
    # What the agents log of a server that dies is what the demo shows.
    configure_logging(level="error", log_format="auto")
    return perform(lambda stage, directory: _play(stage, directory, options.jobs))


def _play(stage: Stage, directory: Path, count: int) -> None:
    began = time.monotonic()
    stage.heading("PostgreSQL, and three replicas of the control plane on it")
    database = PostgresServer(durable=True)
    try:
        with database.empty_database() as address:
            stage.say(f"PostgreSQL listens on port {database.port}")
            with Replicas(directory, address) as replicas:
                replicas.start(_REPLICAS)
                for number, each in enumerate(replicas.addresses, 1):
                    stage.say(f"replica {number} serves on {each}: midcourse serve")
                try:
                    asyncio.run(_Cluster(stage, replicas, count).run())
                except (MidcourseError, TimeoutError) as error:
                    raise DemoError(str(error)) from error
    finally:
        database.end()
    seconds = time.monotonic() - began
    stage.console.print(f"\ndone in {seconds:.0f} s; nothing is left running")


class _Cluster:
    """The replicas and the jobs that they serve."""

    def __init__(self, stage: Stage, replicas: Replicas, count: int) -> None:
        self._stage = stage
        self._replicas = replicas
        self._count = count
        self._names = {
            address: f"replica {number}" for number, address in enumerate(replicas.addresses, 1)
        }

    async def run(self) -> None:
        """Shows what there is to see.

        Raises:
            DemoError: Something is not as it has to be.
            MidcourseError: A replica refuses something.
            TimeoutError: Something takes far too long.
        """
        stage = self._stage
        stage.heading(f"{self._count} light jobs, which know all three addresses")
        async with LightJobs(
            ",".join(self._replicas.addresses),
            self._count,
            labels=_LABELS,
            step_time=_STEP_SECONDS,
            seed=1,
        ) as jobs:
            stage.say(f"connected to {self._spread(jobs)}")
            await self._update_through_each(jobs)
            await self._update_all(jobs)
            await self._death(jobs)

    async def _update_through_each(self, jobs: LightJobs) -> None:
        stage = self._stage
        stage.heading("An update through each replica, for a job that another one serves")
        for number, address in enumerate(self._replicas.addresses):
            elsewhere = [job for job in jobs if job.address != address]
            job = elsewhere[number % len(elsewhere)]
            rate = 5e-4 * (number + 1)
            began = time.perf_counter()
            with Client(address) as plane:
                update = await asyncio.to_thread(
                    plane.set, job.job_id, learning_rate=rate, wait=True, wait_timeout=_TIMEOUT
                )
            took = 1e3 * (time.perf_counter() - began)
            stage.say(
                f"{self._names[address]} → {self._names[job.address]} → {job.job_id}: learning "
                f"rate {rate:g} in force from step {update.applied.step}, known after {took:.0f} ms"
            )
            if job.values["learning_rate"] != rate:
                raise DemoError(f"{job!r} has the rate {job.values['learning_rate']}")

    async def _update_all(self, jobs: LightJobs) -> None:
        stage = self._stage
        stage.heading(f"One update for all that have the label {_SELECTOR}")
        began = time.perf_counter()
        with Client(self._replicas.addresses[0]) as plane:
            await asyncio.to_thread(plane.batch_set, _SELECTOR, {"weight_decay": 0.05})
        await jobs.until(lambda: all(job.values["weight_decay"] == 0.05 for job in jobs), _TIMEOUT)
        took = 1e3 * (time.perf_counter() - began)
        stage.say(f"weight decay 0.05 in force in all {len(jobs)} jobs after {took:.0f} ms")

    async def _death(self, jobs: LightJobs) -> None:
        stage = self._stage
        serving = Counter(job.address for job in jobs)
        victim = serving.most_common(1)[0][0]
        orphans = [job for job in jobs if job.address == victim]
        stage.heading(f"kill -9 of {self._names[victim]}, which serves {len(orphans)} jobs")
        before = {job.job_id: (job.sessions, job.step) for job in jobs}
        began = time.perf_counter()
        self._replicas.kill(victim)
        self._names[victim] += " (dead)"

        def back(job: LightJob) -> bool:
            return job.connected and job.sessions > before[job.job_id][0]

        await jobs.until(lambda: all(back(job) for job in orphans), _TIMEOUT)
        took = time.perf_counter() - began
        verdict = "within" if took <= _GOAL_SECONDS else "NOT WITHIN"
        stage.say(
            f"all of them are served elsewhere after {took:.2f} s, {verdict} the {_GOAL_SECONDS:g} "
            "seconds that are promised"
        )
        steps = min(job.step - before[job.job_id][1] for job in orphans)
        expected = took / _STEP_SECONDS
        stage.say(f"none stopped: each took {steps} steps or more meanwhile (of {expected:.0f})")
        survivor = self._replicas.addresses[0]
        with Client(survivor) as plane:
            update = await asyncio.to_thread(
                plane.set,
                orphans[0].job_id,
                learning_rate=2e-3,
                wait=True,
                wait_timeout=_TIMEOUT,
            )
            history = await asyncio.to_thread(
                lambda: sorted(each.revision for each in plane.list_updates(orphans[0].job_id))
            )
        stage.say(
            f"an update through {self._names[survivor]} is in force from step "
            f"{update.applied.step}; the job's history is whole: revisions {history}"
        )
        if history != list(range(1, update.revision + 1)):
            raise DemoError(f"revisions are missing: {history}")
        stage.console.print(self._table(jobs))

    def _spread(self, jobs: LightJobs) -> str:
        serving = Counter(job.address for job in jobs)
        return ", ".join(f"{name}: {serving[each]}" for each, name in self._names.items())

    def _table(self, jobs: LightJobs) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 3))
        for name in ("job", "step", "loss", "learning rate", "served by", "sessions"):
            table.add_column(name, justify="left" if name in ("job", "served by") else "right")
        for job in jobs:
            table.add_row(
                job.job_id,
                str(job.step),
                f"{job.loss:.3f}",
                f"{job.values['learning_rate']:g}",
                self._names[job.address],
                str(job.sessions),
            )
        return table


if __name__ == "__main__":
    sys.exit(main())
