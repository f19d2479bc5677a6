"""A backend service: where a job's evaluation gets worse, it lowers that job's learning rate.

It watches all jobs with some labels. Where the evaluation loss of one rises several times in a
row, its learning rate is halved, and what becomes of that is logged::

    python examples/backend_service.py --selector team=nlp

What it has done it reads from the control plane: it may be killed and started again at any time,
or run twice, and still answers the same rise once. SIGTERM and Ctrl-C end it in good order.

To try it without training anything, with light jobs, which report a training loss only::

    midcourse serve
    midcourse simulate --label team=nlp --report-every 0.5
    python examples/backend_service.py --selector team=nlp --metric loss --rises 2
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from control_plane.client import (
    AsyncClient,
    MidcourseError,
    OutOfRangeError,
    UpdateNotAppliedError,
    is_settled,
    job_id,
)
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2

log = logging.getLogger("guard")

WORKERS = 8
"""Jobs that are looked into at the same time."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When to do something, and what.

    Attributes:
        metric: What is to fall, sample by sample.
        rises: How many times in a row it rises until something is done.
        factor: What the learning rate is multiplied by then.
    """

    metric: str = "eval_loss"
    rises: int = 3
    factor: float = 0.5

    def due_at(self, series: control_pb2.Series, answered: int) -> int | None:
        """Returns the step of the newest sample if it is time; None: it is not.

        Args:
            series: The newest samples of the metric.
            answered: Step of the rise that was answered last; rises up to it do not count again.
        """
        samples = [
            (step, value)
            for step, value in zip(series.steps, series.values, strict=True)
            if step >= answered and math.isfinite(value)
        ][-self.rises - 1 :]
        if len(samples) <= self.rises:
            return None
        if any(later <= earlier for (_, earlier), (_, later) in pairwise(samples)):
            return None
        return samples[-1][0]


class Guard:
    """Watches jobs and applies a rule to each."""

    def __init__(self, plane: AsyncClient, selector: str, rule: Rule) -> None:
        """Prepares the guard.

        Args:
            plane: The control plane; whoever made the client closes it.
            selector: Labels of the jobs to watch; empty: all.
            rule: What to do for them.
        """
        self._plane = plane
        self._selector = selector
        self._rule = rule
        self._due: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: dict[str, job_pb2.Job] = {}
        self._checked: dict[str, int] = {}
        self._followed: set[str] = set()

    async def run(self) -> None:
        """Goes on until the task is cancelled, or the control plane refuses.

        Raises:
            ExceptionGroup: Of the :class:`MidcourseError` that it was refused with.
        """
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(self._work(tasks))
            await self._watch()

    async def _watch(self) -> None:
        """Notes which jobs have something new, and nothing else: a watch must not be slow."""
        while True:
            try:
                async with self._plane.watch_jobs(self._selector, progress_interval=1.0) as watch:
                    log.info("watching %s", self._selector or "all jobs")
                    async for event in watch:
                        self._note(event)
            except OutOfRangeError:
                log.info("was away for too long to go on; beginning with a snapshot")

    def _note(self, event: control_pb2.WatchJobsResponse) -> None:
        name = event.job.name
        if event.type == control_pb2.JOB_EVENT_TYPE_DELETED:
            self._checked.pop(name, None)
        newest = [m.step for m in event.job.metrics if m.name == self._rule.metric]
        if newest and newest[0] != self._checked.get(name):
            if name not in self._waiting:
                self._due.put_nowait(name)
            self._waiting[name] = event.job

    async def _work(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            job = self._waiting.pop(await self._due.get())
            try:
                await self._check(job, tasks)
            except MidcourseError as error:
                # The next event of this job has the same sample, and it is looked into again.
                log.warning("%s: %s", job_id(job.name), error)

    async def _check(self, job: job_pb2.Job, tasks: asyncio.TaskGroup) -> None:
        rule, name = self._rule, job_id(job.name)
        found = await self._plane.query_metrics(name, [rule.metric], last=rule.rises + 1)
        for series in found:
            if rule.due_at(series, 0) is not None:
                update = await self._answered(job, series)
                if update is not None and not is_settled(update):
                    self._follow(update, tasks)
            self._checked[job.name] = series.steps[-1]

    async def _answered(
        self, job: job_pb2.Job, series: control_pb2.Series
    ) -> update_pb2.Update | None:
        """Returns what was done about a rise: now, or before if it has been answered already."""
        rule, name = self._rule, job_id(job.name)
        newest, last, answered = 0, None, 0
        mine = f"guard:{job.uid}:"
        async for update in self._plane.list_updates(name, page_size=50):
            newest = max(newest, update.revision)
            if update.request_id.startswith(mine):
                step = int(update.request_id.rpartition(":")[2])
                # One further on is of an earlier run, or was gone back from.
                if step <= series.steps[-1]:
                    last, answered = update, step
                break
        if (due := rule.due_at(series, answered)) is None:
            return last
        made = await self._plane.multiply(
            name,
            {"learning_rate": rule.factor},
            reason=f"{rule.metric} rose {rule.rises} times in a row up to step {due}",
            # The same for everybody who sees this rise: it is answered once. Another process
            # that trains this job may come to the same step, with a rise of its own.
            request_id=f"{mine}{job.session.instance_id}:{due}",
            # Somebody else may have done something about it meanwhile.
            expected_revision=newest,
        )
        log.info("%s: %s; asked for update %d", name, made.spec.reason, made.revision)
        return made

    def _follow(self, update: update_pb2.Update, tasks: asyncio.TaskGroup) -> None:
        if update.name not in self._followed:
            self._followed.add(update.name)
            tasks.create_task(self._log_outcome(update))

    async def _log_outcome(self, update: update_pb2.Update) -> None:
        name = job_id(update.name)
        try:
            update = await self._plane.wait_applied(name, update.revision)
        except UpdateNotAppliedError as error:
            log.warning("%s", error)
        except MidcourseError as error:
            log.warning("%s: cannot tell what became of %s: %s", name, update.name, error)
        else:
            for moved in update.applied.transitions:
                log.info(
                    "%s: learning rate %g -> %g from step %d on",
                    name,
                    moved.old_value.number,
                    moved.new_value.number,
                    update.applied.step,
                )
        finally:
            self._followed.discard(update.name)


async def serve(address: str | None, selector: str, rule: Rule) -> int:
    """Runs the service until it is told to end; returns the exit status."""
    async with AsyncClient(address) as plane:
        guard = asyncio.create_task(Guard(plane, selector, rule).run())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, guard.cancel)
        await asyncio.wait([guard])
    if guard.cancelled():
        log.info("ended")
        return 0
    failures = guard.exception()
    refused = [] if failures is None else getattr(failures, "exceptions", [failures])
    for error in refused:
        if not isinstance(error, MidcourseError):
            raise error
        log.error("%s", error)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and runs the service; returns the exit status."""
    usual = Rule()
    parser = argparse.ArgumentParser(description="Lowers learning rates where evaluation worsens.")
    parser.add_argument("--control-plane", help="host:port; default: $MIDCOURSE_CONTROL_PLANE")
    parser.add_argument("--selector", default="", help="labels of the jobs, such as team=nlp")
    parser.add_argument("--metric", default=usual.metric, help="default: %(default)s")
    parser.add_argument("--rises", type=int, default=usual.rises, help="default: %(default)s")
    parser.add_argument("--factor", type=float, default=usual.factor, help="default: %(default)s")
    given = parser.parse_args(arguments)
    if given.rises < 1 or not 0 < given.factor < 1:
        parser.error("allowed: --rises 1 or more, --factor between 0 and 1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    rule = Rule(given.metric, given.rises, given.factor)
    return asyncio.run(serve(given.control_plane, given.selector, rule))


if __name__ == "__main__":
    sys.exit(main())
