"""Events and telemetry: what grows for ever, in order, until it is pruned."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta

from control_plane.domain.job import (
    MetricPoint,
    Progress,
)
from control_plane.domain.series import Sample, lineage
from control_plane.domain.session import MetricColumn, Run
from control_plane.services.ports import Store, Transaction
from control_plane.services.records import EventKind, Telemetry, TelemetryBatch
from tests.contract.store_helpers import (
    NO_TELEMETRY,
    START,
    WorkError,
    add_events,
    add_job,
    add_samples,
    event,
    steps_of,
)
from tests.support.domain_values import NOW, SECOND


class SeriesContract:
    """What a store keeps of events and samples."""

    # Events

    async def test_events_come_in_order_without_gaps(self, store: Store) -> None:
        assert await store.read(lambda tx: tx.event_span()) == (0, 0)

        def append(number: int) -> Awaitable[None]:
            def work(tx: Transaction) -> None:
                tx.append_event(event(number))
                if number % 5 == 0:
                    raise WorkError
                tx.append_event(event(number))

            return store.write(work)

        await asyncio.gather(*(append(n) for n in range(100)), return_exceptions=True)
        found = await store.read(lambda tx: tx.events(after=0, limit=1_000))
        assert [one.position for one in found] == list(range(1, 161))
        assert [one.revision for one in found[::2]] == [one.revision for one in found[1::2]]
        assert await store.read(lambda tx: tx.event_span()) == (0, 160)

    async def test_events_come_back_in_pages(self, store: Store) -> None:
        events = [event(1, EventKind.CREATED), replace(event(2), revision=None), event(3)]

        def work(tx: Transaction) -> None:
            for one in events:
                tx.append_event(one)

        await store.write(work)
        numbered = [replace(one, position=n) for n, one in enumerate(events, start=1)]
        assert await store.read(lambda tx: tx.events(after=0, limit=2)) == numbered[:2]
        assert await store.read(lambda tx: tx.events(after=2, limit=2)) == numbered[2:]
        assert await store.read(lambda tx: tx.events(after=3, limit=2)) == []

    async def test_pruned_events_can_not_be_gone_on_from(self, store: Store) -> None:
        await add_events(store, 10)

        async def prune(before: int, limit: int = 100) -> int:
            time = NOW + before * SECOND
            return await store.write(
                lambda tx: tx.prune(samples_before=None, events_before=time, limit=limit)
            )

        assert await prune(1) == 0
        assert await prune(6, limit=3) == 3
        assert await store.read(lambda tx: tx.event_span()) == (3, 10)
        assert await prune(6, limit=3) == 2
        assert await prune(6, limit=3) == 0
        assert await store.read(lambda tx: tx.event_span()) == (5, 10)
        assert [e.position for e in await store.read(lambda tx: tx.events(after=5, limit=9))] == [
            *range(6, 11)
        ]
        # Even when all are old, positions go on where they were.
        await prune(1_000)
        assert (await store.read(lambda tx: tx.event_span()))[1] == 10
        await store.write(lambda tx: tx.append_event(event(11)))
        assert (await store.read(lambda tx: tx.event_span()))[1] == 11

    async def test_a_clock_set_back_makes_no_hole_in_the_events(self, store: Store) -> None:
        def work(tx: Transaction) -> None:
            for number in (1, 9, 2, 10):
                tx.append_event(event(number))

        await store.write(work)
        before = NOW + 5 * SECOND
        await store.write(lambda tx: tx.prune(samples_before=None, events_before=before, limit=9))
        found = await store.read(lambda tx: tx.events(after=1, limit=9))
        assert [one.revision for one in found] == [9, 2, 10]
        assert await store.read(lambda tx: tx.event_span()) == (1, 4)

    # Telemetry

    async def test_the_newest_telemetry_is_kept(self, store: Store) -> None:
        of = await add_job(store)
        assert await store.read(lambda tx: tx.telemetry(of)) is None
        for step in (1, 2):
            latest = Telemetry(
                Progress(step, 100, 0.5, None, 3.25, START),
                (MetricPoint("loss", step, math.inf, START), MetricPoint("lr", step, 1e-5, START)),
                dropped_samples=step,
            )
            batch = TelemetryBatch(of.key, 1, [], latest)
            await store.write(lambda tx, batch=batch: tx.add_telemetry([batch]))  # type: ignore[misc]
            assert await store.read(lambda tx: tx.telemetry(of)) == latest

    async def test_samples_come_back_in_the_order_of_steps(self, store: Store) -> None:
        of, other = await add_job(store), await add_job(store, "k")
        values = [0.5, math.nan, math.inf, -math.inf, 5e-324, -1.7976931348623157e308]
        await add_samples(store, of, [3, 1, 2, 5, 4, 6], values)
        await add_samples(store, other, [7])
        found = await store.read(lambda tx: tx.samples(of, "loss", spans=[(1, 0, None)]))
        times = [START + step * 1_000_000 for step in range(1, 7)]
        assert [(s.step, s.time) for s in found] == list(zip(range(1, 7), times, strict=True))
        assert math.isnan(found[0].value)
        assert [s.value for s in found[1:]] == [
            values[2],
            values[0],
            values[4],
            values[3],
            values[5],
        ]

    async def test_a_sample_again_takes_the_place_of_the_older_one(self, store: Store) -> None:
        of = await add_job(store)
        await add_samples(store, of, [1, 2, 2], [0.1, 0.2, 0.3])
        await add_samples(store, of, [1], [0.4], start=START + 5)
        found = await store.read(lambda tx: tx.samples(of, "loss", spans=[(1, 0, None)]))
        assert found == [Sample(1, 0.4, START + 1_000_005), Sample(2, 0.3, START + 2_000_000)]

    async def test_samples_of_a_lineage(self, store: Store) -> None:
        of = await add_job(store)
        runs = [Run(1, "a", 0), Run(2, "b", 4), Run(3, "c", 2)]
        for run in runs:
            steps = range(run.start_step + 1, run.start_step + 7)
            await add_samples(
                store, of, steps, [run.number * 100.0 + s for s in steps], run=run.number
            )
        spans = lineage(runs)
        found = await store.read(lambda tx: tx.samples(of, "loss", spans=spans))
        assert [s.value for s in found] == [101, 102, 303, 304, 305, 306, 307, 308]
        assert await steps_of(store, of, spans=spans, last=7) == [2, 3, 4, 5, 6, 7, 8]
        assert await steps_of(store, of, spans=spans, last=3) == [6, 7, 8]
        assert await steps_of(store, of, spans=spans, last=0) == []
        assert await steps_of(store, of, spans=spans, last=99) == list(range(1, 9))
        assert await steps_of(store, of, spans=[(1, 2, 3), (2, 9, None)]) == [2, 3, 9, 10]
        assert await steps_of(store, of, spans=[]) == []

    async def test_samples_within_a_time(self, store: Store) -> None:
        of = await add_job(store)
        await add_samples(store, of, range(10))
        start, end = START + 3_000_000, START + 7_000_000
        assert await steps_of(store, of, start_time=start) == [3, 4, 5, 6, 7, 8, 9]
        assert await steps_of(store, of, end_time=start) == [0, 1, 2]
        assert await steps_of(store, of, start_time=start, end_time=end) == [3, 4, 5, 6]
        assert await steps_of(store, of, start_time=start, end_time=end, last=2) == [5, 6]

    async def test_metric_names_are_those_with_samples(self, store: Store) -> None:
        of = await add_job(store)
        for name, run in (("loss", 1), ("loss", 2), ("grad_norm", 1)):
            await add_samples(store, of, [1], name=name, run=run)
        await add_samples(store, of, [], name="nothing")
        assert await store.read(lambda tx: tx.metric_names(of)) == ["grad_norm", "loss"]
        assert await steps_of(store, of, name="nothing") == []

    async def test_many_samples_of_many_jobs_at_once(self, store: Store) -> None:
        jobs = [await add_job(store, f"j{number}") for number in range(40)]
        count = 41
        batches = [
            TelemetryBatch(
                of.key,
                1,
                [
                    MetricColumn(name, range(count), [of.key + 0.5] * count, [START] * count)
                    for name in ("a", "b", "c")
                ],
                NO_TELEMETRY._replace(dropped_samples=of.key),
            )
            for of in jobs
        ]
        await store.write(lambda tx: tx.add_telemetry(batches))
        for of in jobs:
            found = await store.read(lambda tx, of=of: tx.samples(of, "b", spans=[(1, 0, None)]))  # type: ignore[misc]
            assert found == [Sample(step, of.key + 0.5, START) for step in range(count)]
            latest = await store.read(lambda tx, of=of: tx.telemetry(of))  # type: ignore[misc]
            assert latest is not None
            assert latest.dropped_samples == of.key

    async def test_of_two_samples_at_one_step_the_later_stays(self, store: Store) -> None:
        """As when a run is evaluated twice while it is held, or a heartbeat comes again."""
        of = await add_job(store)
        batch = TelemetryBatch(
            of.key,
            1,
            [
                MetricColumn("loss", [1, 2, 2], [1.0, 2.0, 3.0], [START, START, START + 1]),
                MetricColumn("loss", [1, 3], [4.0, 5.0], [START + 2, START + 2]),
            ],
            NO_TELEMETRY,
        )
        await store.write(lambda tx: tx.add_telemetry([batch]))
        assert await store.read(lambda tx: tx.samples(of, "loss", spans=[(1, 0, None)])) == [
            Sample(1, 4.0, START + 2),
            Sample(2, 3.0, START + 1),
            Sample(3, 5.0, START + 2),
        ]

    # Retention

    async def test_old_samples_go_in_pieces(self, store: Store) -> None:
        of = await add_job(store)
        for name, steps in (("loss", range(10)), ("lr", range(4)), ("young", range(20, 25))):
            await add_samples(store, of, steps, name=name)

        async def prune(step: int, limit: int) -> int:
            before = START + step * 1_000_000
            return await store.write(
                lambda tx: tx.prune(samples_before=before, events_before=None, limit=limit)
            )

        assert await prune(0, 100) == 0
        assert await prune(6, 4) == 4
        assert [await prune(6, 4) for _ in range(3)] == [4, 2, 0]
        assert await steps_of(store, of) == [6, 7, 8, 9]
        assert await steps_of(store, of, name="lr") == []
        assert await store.read(lambda tx: tx.metric_names(of)) == ["loss", "young"]
        # A series that went comes back with its next sample, and goes again.
        await add_samples(store, of, [7], name="lr")
        assert await prune(8, 100) == 3
        assert await store.read(lambda tx: tx.metric_names(of)) == ["loss", "young"]
        assert await prune(100, 100) == 7
        assert await store.read(lambda tx: tx.metric_names(of)) == []

    async def test_a_late_sample_makes_no_hole(self, store: Store) -> None:
        of = await add_job(store)
        await add_samples(store, of, [1, 2], start=START)
        await add_samples(store, of, [3], start=START + 50_000_000)
        await add_samples(store, of, [4], start=START)
        before = START + 10_000_000
        await store.write(lambda tx: tx.prune(samples_before=before, events_before=None, limit=99))
        assert await steps_of(store, of) == [3, 4]

    async def test_nothing_is_pruned_unless_asked(self, store: Store) -> None:
        of = await add_job(store)
        await add_samples(store, of, range(5))
        await add_events(store, 5)
        pruned = await store.write(
            lambda tx: tx.prune(samples_before=None, events_before=None, limit=99)
        )
        assert pruned == 0
        later = NOW + timedelta(days=9)
        await store.write(lambda tx: tx.prune(samples_before=None, events_before=later, limit=99))
        assert await steps_of(store, of) == [0, 1, 2, 3, 4]
