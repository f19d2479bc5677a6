"""python -m tests.bench.scale: one control plane under thousands of agents.

Every agent is a light job (trainer_agent.simulate), in other processes than the control plane:
the agent's own code, with a connection of its own unless --connections says otherwise, and one
heartbeat with one sample a second. The second part adds agents step by step, until there are as
many as were asked for or some are not served, and measures with as many as were. Prints one table
and writes out/bench-scale.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from grpc_runtime.logging import configure_logging
from tests.bench.report import Row, percentile, show
from tests.bench.scale_floor import floor
from tests.bench.scale_load import Cost, Load, load, rss_kilobytes
from tests.bench.scale_measures import batch_milliseconds, heard, update_latencies
from tests.bench.scale_plan import Plan, Plane, light_jobs, plane_in
from tests.support.processes import until

FEW = 1_000
"""Up to so many agents, the goals for few hold."""
REST_SECONDS = 3.0
"""For what a part leaves behind, such as acknowledgements, to be done with."""
LOADS_OF_FEW = 2
"""Processes that the load of the first part is split over."""
MISSED = 5
"""Heartbeats that an agent may miss before it counts as unheard."""


class Bench:
    """The parts one after the other, with a bar for what takes long."""

    def __init__(self, plan: Plan, directory: Path, progress: Progress) -> None:
        self._plan = plan
        self._directory = directory
        self._progress = progress
        self.rows: list[Row] = []

    def run(self) -> None:
        if self._plan.few:
            self._few()
        self._many()

    def _row(self, what: str, unit: str, ours: float, goal: float, note: str = "") -> None:
        self.rows.append(Row(what, unit, None, ours, goal, note))

    def _latency(self, plane: Plane, jobs: int) -> None:
        what, goal = f"with {jobs:,} agents", 25.0 if jobs <= FEW else 100.0
        task = self._progress.add_task(f"updates, {what}", total=None)
        taken = uvloop.run(update_latencies(plane, self._plan.updates))
        self._progress.update(task, total=1, completed=1)
        note = f"of {len(taken)}; {self._plan.pace}"
        self._row(f"update latency {what}, p50", "ms", percentile(taken, 50), goal, note)
        self._row(f"update latency {what}, p99", "ms", percentile(taken, 99), goal, note)

    def _batch(self, plane: Plane, running: Load, jobs: int) -> None:
        what, goal = f"one update of {jobs:,} jobs", 300.0 if jobs <= FEW else 3_000.0
        task = self._progress.add_task(what, total=None)
        pids = plane.pid, running.pids
        rest, cost = Cost(), Cost()
        with rest.measured(*pids):
            time.sleep(REST_SECONDS)
        batch_milliseconds(plane, jobs, 1)  # the first compiles statements
        time.sleep(REST_SECONDS)
        with cost.measured(*pids):
            taken = batch_milliseconds(plane, jobs, self._plan.batches)
            time.sleep(REST_SECONDS)
        self._progress.update(task, total=1, completed=1)
        least, bare = self._floor(jobs)
        self.rows.append(
            Row(
                *(f"{what}, median", "ms", least, percentile(taken, 50), goal),
                "floor: a message and an answer on each of as many bare streams, then one commit; "
                + self._plan.pace,
            )
        )
        beyond, each = cost.beyond(rest), 1e6 / jobs / self._plan.batches
        for name, ours, base in (
            ("server", beyond.server * each, bare.server * each),
            ("load", beyond.load * each, bare.load * each),
        ):
            self.rows.append(
                Row(
                    *(f"{what}, processor time of the {name} for each", "µs", base),
                    ours if ours > 0 else None,
                    note="beyond that of the heartbeats meanwhile",
                    failure="" if ours > 0 else "the agents fell behind with their heartbeats",
                )
            )
        beats = rest.wall * jobs / self._plan.heartbeat
        what = f"a heartbeat of one of {jobs:,} agents, processor time of the server"
        self.rows.append(Row(what, "µs", None, 1e6 * rest.server / beats))

    def _floor(self, jobs: int) -> tuple[float, Cost]:
        """The median of the floor in milliseconds, and what it costs, for as many updates."""
        directory = self._directory / f"floor-{jobs}"
        directory.mkdir()
        task = self._progress.add_task("its floor", total=None)
        cost = Cost()
        with floor(jobs, directory) as bare:
            bare.update()
            with cost.measured(bare.server, [bare.client]):
                taken = [bare.update() for _ in range(self._plan.batches)]
        self._progress.update(task, total=1, completed=1)
        return percentile(taken, 50), cost

    # ------------------------------------------------------------------------------- few agents

    def _few(self) -> None:
        plan, jobs = self._plan, self._plan.few
        with plane_in(self._directory / "few", plan.heartbeat) as plane:
            wanted = light_jobs(plan, plane, jobs, "few", processes=LOADS_OF_FEW)
            with load(wanted) as running:
                running.wait(lambda totals: totals.connected >= jobs, "all agents connected", 120)
                self._latency(plane, jobs)
                self._batch(plane, running, jobs)
                self._restart(plane, running, jobs)

    def _restart(self, plane: Plane, running: Load, jobs: int) -> None:
        task = self._progress.add_task("kill -9 and start", total=None)
        before = running.totals.sessions
        began = time.monotonic()
        plane.restart()
        running.wait(
            lambda totals: totals.connected >= jobs and totals.sessions >= before + jobs,
            "all agents back",
            60,
        )
        self._row(
            f"kill -9 and start, until {jobs:,} agents are back",
            "s",
            time.monotonic() - began,
            5.0,
            "told twice a second; with the start of the process",
        )
        until(lambda: heard(plane, 10.0)[0] == jobs, "all heard")
        self._progress.update(task, total=1, completed=1)

    # ------------------------------------------------------------------------------ many agents

    def _many(self) -> None:
        plan = self._plan
        with plane_in(self._directory / "many", plan.heartbeat) as plane, load() as running:
            served = self._ramp(plane, running)
            if served:
                self._latency(plane, served)
                self._batch(plane, running, served)

    def _ramp(self, plane: Plane, running: Load) -> int:
        """Adds agents until there are as many as asked for, or as are served; returns those."""
        plan = self._plan
        step = plan.many // plan.steps
        task = self._progress.add_task(f"up to {plan.many:,} agents", total=plan.many)
        served, ramp, first_kilobytes, why = 0, 0.0, 0, ""
        used = Cost()
        while served < plan.many and not why:
            jobs = min(plan.many, served + step)
            running.add(light_jobs(plan, plane, jobs - served, "many", first=served))
            began = time.monotonic()
            if not self._all_connected(running, jobs):
                why = f"{jobs - running.totals.connected:,} without a session after a minute"
                break
            ramp += time.monotonic() - began
            time.sleep(REST_SECONDS)
            seen = Cost()
            why = self._watch(plane, running, jobs, seen)
            if not why:
                served, used = jobs, seen
                first_kilobytes = first_kilobytes or rss_kilobytes(plane.pid)
                self._progress.update(task, completed=served)
        if why:
            why = f"with {served + step:,}: {why}"
            running.take_back()
            lately = 2 * plan.heartbeat
            until(lambda: heard(plane, lately)[0] == served, "the others are served again")
        self.rows.append(
            Row(
                *(f"agents served, {plan.pace}", "", None, served, plan.many, why),
                at_least=True,
            )
        )
        if served:
            kilobytes = rss_kilobytes(plane.pid)
            self._row(f"ramp to {served:,} agents", "s", ramp, served / 50)
            if served > step:
                self._row(
                    f"memory of the server for each agent, from {step:,} to {served:,}",
                    "kB",
                    (kilobytes - first_kilobytes) / (served - step),
                    60.0,
                    f"{kilobytes / 1e3:,.0f} MB in all",
                )
            self._row(
                f"processors of the server, {served:,} agents",
                "cores",
                used.server / used.wall,
                1.0,
                f"those of the load: {used.load / used.wall:.2g}; there are {os.cpu_count()}",
            )
        return served

    def _all_connected(self, running: Load, jobs: int) -> bool:
        return running.comes_to(lambda totals: totals.connected >= jobs, 60.0)

    def _watch(self, plane: Plane, running: Load, jobs: int, cost: Cost) -> str:
        """Watches all agents for a while; returns what was not as it should be, "": nothing."""
        sessions = running.totals.sessions
        with cost.measured(plane.pid, running.pids):
            time.sleep(self._plan.seconds / self._plan.steps)
        totals = running.totals
        if lost := jobs - totals.connected + totals.sessions - sessions:
            return f"{lost:,} dropped"
        lately, dropped = heard(plane, MISSED * self._plan.heartbeat)
        if lately < jobs:
            return f"{jobs - lately:,} unheard for {MISSED} heartbeats"
        return f"{dropped:,} with dropped samples" if dropped else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--agents", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--steps", type=int, default=10, help="that agents come in (default: 10)")
    parser.add_argument(
        "--few", type=int, default=1_000, help="of the first part (default: 1000); 0: without it"
    )
    parser.add_argument("--updates", type=int, default=500, help="for latencies (default: 500)")
    parser.add_argument("--batches", type=int, default=3, help="selector updates (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=100, help="that all steps are watched (default: 100)"
    )
    parser.add_argument(
        "--heartbeat", type=float, default=1.0, help="seconds between two of one (default: 1)"
    )
    parser.add_argument(
        "--connections",
        type=int,
        default=None,
        help="connections of each process (default: one for each agent, as real agents have)",
    )
    parser.add_argument("--output", type=Path, default=Path("out/bench-scale.json"))
    asked = parser.parse_args()
    if not 0 < asked.steps <= asked.agents:
        parser.error(f"--steps: got {asked.steps}, allowed: from 1 to --agents ({asked.agents})")
    configure_logging(level="error", log_format="auto")
    plan = Plan(
        few=asked.few,
        many=asked.agents,
        steps=asked.steps,
        updates=asked.updates,
        batches=asked.batches,
        seconds=asked.seconds,
        heartbeat=asked.heartbeat,
        connections=asked.connections,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console()
    console.print(f"on {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start")
    with (
        tempfile.TemporaryDirectory(prefix="midcourse-scale-") as directory,
        Progress(*columns, console=console) as progress,
    ):
        bench = Bench(plan, Path(directory), progress)
        try:
            bench.run()
        finally:
            show(bench.rows, asked.output)


if __name__ == "__main__":
    main()
