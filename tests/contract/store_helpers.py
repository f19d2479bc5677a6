"""What the parts of the store contract share."""

from __future__ import annotations

from collections.abc import Sequence

from control_plane.domain.job import (
    Job,
)
from control_plane.domain.session import MetricColumn
from control_plane.domain.update import (
    Update,
)
from control_plane.services.ports import Store, Transaction
from control_plane.services.records import Event, EventKind, Telemetry, TelemetryBatch
from tests.support.domain_values import NOW, SECOND, job

START = 1_800_000_000_000_000
"""A time in microseconds since 1970."""
NO_TELEMETRY = Telemetry(None, (), 0)


class WorkError(Exception):
    """Raised by work."""


async def add_job(store: Store, job_id: str = "j", **fields: object) -> Job:
    return await store.write(
        lambda tx: tx.insert_job(job(id=job_id, uid=f"uid-{job_id}", **fields))
    )


async def add_updates(store: Store, of: Job, *updates: Update) -> None:
    def work(tx: Transaction) -> None:
        tx.insert_updates((of, one) for one in updates)

    await store.write(work)


async def add_samples(
    store: Store,
    of: Job,
    steps: Sequence[int],
    values: Sequence[float] | None = None,
    *,
    name: str = "loss",
    run: int = 1,
    start: int = START,
) -> None:
    """Samples, one a second; the time follows from the step."""
    column = MetricColumn(
        name,
        steps,
        [float(step) for step in steps] if values is None else values,
        [start + step * 1_000_000 for step in steps],
    )
    batch = TelemetryBatch(of.key, run, [column], NO_TELEMETRY)
    await store.write(lambda tx: tx.add_telemetry([batch]))


async def steps_of(
    store: Store,
    of: Job,
    *,
    name: str = "loss",
    spans: Sequence[tuple[int, int, int | None]] = ((1, 0, None),),
    **limits: int | None,
) -> list[int]:
    found = await store.read(lambda tx: tx.samples(of, name, spans=spans, **limits))
    return [sample.step for sample in found]


def event(number: int, kind: EventKind = EventKind.MODIFIED) -> Event:
    return Event(kind, "j", "uid", number, NOW + number * SECOND)


async def add_events(store: Store, count: int) -> None:
    def work(tx: Transaction) -> None:
        for number in range(1, count + 1):
            tx.append_event(event(number))

    await store.write(work)
