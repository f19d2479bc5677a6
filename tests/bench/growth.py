"""Whether it stays as it is when there are ten times the jobs and a hundred times the history.

Two databases are filled through the store's own way of writing, and a control plane serves each;
they are asked in turns. One job has a long history itself, and it is the one that is updated: from
the call to the delivery on its agent's stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import uvloop

from control_plane.domain.job import Progress
from control_plane.domain.session import MetricColumn, Run
from control_plane.domain.update import Rejected, settle
from control_plane.services.jobs import job_event
from control_plane.services.ports import Transaction
from control_plane.services.records import EventKind, Telemetry, TelemetryBatch
from control_plane.store import open_store
from grpc_runtime.options import client_options
from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench.replicas import measure
from tests.bench.report import Row, percentile
from tests.bench.scale_load import rss_kilobytes
from tests.support import domain_values as given
from tests.support.processes import Process, free_port, serve

PROBE = "probe"
FLAT = 1.5
"""So many times as long is no more than chance."""


@dataclass
class Size:
    """How much there is, and what was measured with it.

    Attributes:
        jobs: Jobs beside the probe.
        updates: Settled updates of each of them.
        history: Settled updates and a tenth of the samples of the probe.
        taken: Milliseconds, by what was asked.
    """

    jobs: int
    updates: int
    history: int
    taken: dict[str, list[float]] = field(default_factory=dict)
    kilobytes: int = 0

    @property
    def total(self) -> int:
        """All updates."""
        return self.jobs * self.updates + self.history


def sizes(*, quick: bool) -> tuple[Size, Size]:
    """The smaller one, and the one with ten times the jobs and a hundred times the history."""
    if quick:
        return Size(20, 5, 50), Size(200, 50, 5_000)
    return Size(100, 10, 100), Size(1_000, 100, 10_000)


async def fill(path: Path, size: Size) -> None:
    """Makes a database of that size."""
    store = await open_store(path)
    try:
        await store.write(lambda tx: add_job(tx, PROBE, size.history, samples=10 * size.history))
        for first in range(0, size.jobs, 50):
            some = range(first, min(first + 50, size.jobs))

            def work(tx: Transaction, some: range = some) -> None:
                for number in some:
                    add_job(tx, f"job-{number:05}", size.updates, samples=10)

            await store.write(work)
    finally:
        await store.close()


def add_job(tx: Transaction, job_id: str, updates: int, *, samples: int) -> None:
    """A job with settled updates, and with samples of one process."""
    now = datetime.now(UTC)
    job = tx.insert_job(
        given.job(
            id=job_id,
            uid=f"uid-{job_id}",
            create_time=now,
            update_time=now,
            labels={"team": "nlp"},
            revision=updates,
            settled_revision=updates,
        )
    )
    tx.append_event(job_event(EventKind.CREATED, job, now))
    settled = Rejected("OUT_OF_RANGE", "it was not to be")
    made = (
        replace(given.update(revision), job_id=job_id, create_time=now)
        for revision in range(1, updates + 1)
    )
    tx.insert_updates([(job, settle(update, settled, now)) for update in made])
    for revision in range(1, updates + 1):
        tx.append_event(job_event(EventKind.MODIFIED, job, now, revision))
    tx.save_run(job, Run(1, "instance-0", 0))
    steps = range(1, samples + 1)
    micros = time.time_ns() // 1_000
    column = MetricColumn("loss", steps, [1 / step for step in steps], [micros] * samples)
    tx.add_telemetry([TelemetryBatch(job.key, 1, [column], Telemetry(Progress(samples), (), 0))])


def questions(stub: ControlPlaneServiceStub, size: Size) -> dict[str, Callable[[], object]]:
    """What is asked for."""
    probe = f"jobs/{PROBE}"
    middle = api.ListUpdatesRequest(parent=probe, page_size=20)
    for _ in range(min(20, size.history // 40)):
        middle.page_token = stub.ListUpdates(middle).next_page_token
    return {
        "list of jobs, a page of 20": lambda: stub.ListJobs(api.ListJobsRequest(page_size=20)),
        "history of a job, a page of 20": lambda: stub.ListUpdates(middle),
        "history of all jobs, a page of 20": lambda: stub.ListUpdates(
            api.ListUpdatesRequest(parent="jobs/-", page_size=20)
        ),
        "the newest 100 samples": lambda: stub.QueryMetrics(
            api.QueryMetricsRequest(job=probe, names=["loss"], last=100)
        ),
    }


def ask(both: Sequence[tuple[Size, dict[str, Callable[[], object]]]], times: int) -> None:
    """Asks for everything so many times, the one and the other in turns."""
    for what in both[0][1]:
        for number in range(-3, times):
            for size, asked in both:
                begun = time.perf_counter()
                asked[what]()
                if number >= 0:  # the first few fill caches
                    taken = (time.perf_counter() - begun) * 1e3
                    size.taken.setdefault(what, []).append(taken)


def rows(directory: Path, *, quick: bool) -> Iterator[Row]:
    """The rows of growth."""
    both = sizes(quick=quick)
    times, count = (20, 40) if quick else (100, 250)
    running: list[tuple[Size, Process, str]] = []
    try:
        for number, size in enumerate(both):
            folder = directory / str(number)
            folder.mkdir()
            asyncio.run(fill(folder / "control.db", size))
            port = free_port()
            running.append((size, serve(port, folder, log_level="warning"), f"127.0.0.1:{port}"))
        channels = [
            grpc.insecure_channel(address, options=client_options()) for *_, address in running
        ]
        stubs = [ControlPlaneServiceStub(channel) for channel in channels]
        for channel in channels:
            grpc.channel_ready_future(channel).result(60)
        asked = [questions(stub, size) for stub, size in zip(stubs, both, strict=True)]
        ask(list(zip(both, asked, strict=True)), times)
        for _ in range(4):
            for size, _, address in running:
                taken = uvloop.run(measure(PROBE, address, address, count // 4))
                size.taken.setdefault("update, call to delivery", []).extend(taken)
        for size, process, _ in running:
            size.kilobytes = rss_kilobytes(process.pid)
        for channel in channels:
            channel.close()
    finally:
        for _, process, _ in running:
            process.end()
    small, big = both
    times_more = f"{big.jobs // small.jobs} × jobs, {big.total // small.total} × history"
    note = f"floor: with {small.jobs} jobs and {small.total:,} updates"
    for what, taken in big.taken.items():
        base = percentile(small.taken[what], 50)
        yield Row(
            f"{what}, {times_more}, p50", "ms", base, percentile(taken, 50), FLAT * base, note
        )
    yield Row(
        f"memory of the server, {times_more}",
        "kB",
        small.kilobytes,
        big.kilobytes,
        FLAT * small.kilobytes,
        f"{note}; {(big.kilobytes - small.kilobytes) / (big.jobs - small.jobs):.2g} kB for each "
        "job more",
    )
