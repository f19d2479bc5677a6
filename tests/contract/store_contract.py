"""What every store must do. A subclass gives the fixture `store`, an empty one."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import (
    Desired,
    Effective,
    Job,
    JobState,
    MetricPoint,
    Progress,
    SessionInfo,
    TrainerExit,
)
from control_plane.domain.parameter import SetChange
from control_plane.domain.series import Sample, lineage
from control_plane.domain.session import MetricColumn, Run
from control_plane.domain.update import (
    ActionKind,
    Cancelled,
    Update,
    UpdateState,
    deliver,
    request_cancel,
    settle,
)
from control_plane.services.ports import (
    Event,
    EventKind,
    Store,
    Telemetry,
    TelemetryBatch,
    Transaction,
)
from tests.support.domain_values import NOW, SECOND, applied, job, set_rate, update

START = 1_800_000_000_000_000
"""A time in microseconds since 1970."""
NO_TELEMETRY = Telemetry(None, (), 0)


class WorkError(Exception):
    """Raised by work."""


async def add_job(store: Store, job_id: str = "j", **fields: object) -> Job:
    return await store.write(lambda tx: tx.insert_job(job(id=job_id, uid=f"uid-{job_id}", **fields)))


async def add_updates(store: Store, of: Job, *updates: Update) -> None:
    def work(tx: Transaction) -> None:
        for one in updates:
            tx.insert_update(of, one)

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


class StoreContract:
    """The contract of `control_plane.services.ports.Store`."""

    # Units of work

    async def test_a_result_is_returned_after_the_commit(self, store: Store) -> None:
        stored = await store.write(lambda tx: tx.insert_job(job()))
        assert stored.key > 0
        assert await store.read(lambda tx: tx.job("j")) == stored

    async def test_a_transaction_sees_its_own_writes(self, store: Store) -> None:
        def work(tx: Transaction) -> Job | None:
            stored = tx.insert_job(job())
            tx.save_job(replace(stored, revision=5))
            return tx.job("j")

        seen = await store.write(work)
        assert seen is not None
        assert seen.revision == 5

    async def test_a_failure_undoes_its_own_writes_only(self, store: Store) -> None:
        def good(job_id: str) -> object:
            return store.write(lambda tx: tx.insert_job(job(id=job_id)))

        def bad(job_id: str) -> object:
            def work(tx: Transaction) -> None:
                tx.insert_job(job(id=job_id))
                tx.append_event(event(1))
                raise WorkError(job_id)

            return store.write(work)

        # All at once, so that they share transactions where the store does that.
        ids = [f"j{number:02}" for number in range(30)]
        results = await asyncio.gather(
            *(good(i) if n % 3 else bad(i) for n, i in enumerate(ids)), return_exceptions=True
        )
        failed = [i for n, i in enumerate(ids) if not n % 3]
        assert [str(r) for r in results if isinstance(r, WorkError)] == failed
        kept = await store.read(lambda tx: [found.id for found in tx.jobs(limit=100)])
        assert kept == [i for i in ids if i not in failed]
        assert await store.read(lambda tx: tx.event_span()) == (0, 0)

    async def test_a_refusal_reaches_its_caller_as_it_is(self, store: Store) -> None:
        refusal = Refusal(Reason.REVISION_MISMATCH, "stands at 3", metadata={"current": "3"})

        def work(tx: Transaction) -> None:
            raise refusal

        with pytest.raises(Refusal) as caught:
            await store.write(work)
        assert caught.value is refusal
        with pytest.raises(Refusal) as caught:
            await store.read(work)
        assert caught.value is refusal

    async def test_writes_take_effect_one_after_the_other(self, store: Store) -> None:
        await add_job(store)

        def increment(tx: Transaction) -> int:
            current = tx.job("j")
            assert current is not None
            tx.save_job(replace(current, revision=current.revision + 1))
            return current.revision

        seen = await asyncio.gather(*(store.write(increment) for _ in range(100)))
        assert sorted(seen) == list(range(100))

    async def test_a_read_sees_one_moment(self, store: Store) -> None:
        await add_job(store)
        has_read, may_go_on = threading.Event(), threading.Event()

        def look_twice(tx: Transaction) -> tuple[int, int]:
            before = len(tx.jobs(limit=10))
            has_read.set()
            assert may_go_on.wait(10)
            return before, len(tx.jobs(limit=10))

        looking = asyncio.create_task(store.read(look_twice))
        assert await asyncio.to_thread(has_read.wait, 10)
        await add_job(store, "k")
        may_go_on.set()
        assert await looking == (1, 1)
        assert await store.read(lambda tx: len(tx.jobs(limit=10))) == 2

    async def test_a_cancelled_write_is_done_whole_or_not_at_all(self, store: Store) -> None:
        def work(number: int) -> object:
            def insert(tx: Transaction) -> None:
                tx.insert_job(job(id=f"a{number}"))
                tx.insert_job(job(id=f"b{number}"))

            return store.write(insert)

        tasks = [asyncio.ensure_future(work(number)) for number in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results[::2])
        assert results[1::2] == [None] * 20
        # What the cancelled ones began has ended before a later write is answered.
        await add_job(store, "last")
        ids = {found.id for found in await store.read(lambda tx: tx.jobs(limit=100))}
        for number in range(40):
            assert (f"a{number}" in ids) == (f"b{number}" in ids)
            assert number % 2 == 0 or f"a{number}" in ids

    async def test_after_close_everything_is_refused(self, store: Store) -> None:
        pending = [asyncio.ensure_future(add_job(store, f"j{n}")) for n in range(10)]
        await asyncio.sleep(0)
        await store.close()
        # What was begun is finished.
        assert all(stored.key for stored in await asyncio.gather(*pending))
        with pytest.raises(Refusal, match="shutting down"):
            await add_job(store, "late")
        with pytest.raises(Refusal, match="shutting down"):
            await store.read(lambda tx: tx.job("j1"))
        await store.close()

    # Jobs

    async def test_a_job_comes_back_as_it_was(self, store: Store) -> None:
        full = job(
            labels={"team": "nlp", "x/y": ""},
            method="dpo",
            state=JobState.STALLED,
            state_message="no step for 31 s",
            actions=(ActionKind.PAUSE, ActionKind.STOP),
            version=7,
            revision=3,
            settled_revision=2,
            replay_floor=1,
            desired=(Desired(SetChange("learning_rate", 1e-5), 3),),
            effective=(Effective("learning_rate", "", 2e-5, 2, 17), Effective("b", "1", None)),
            session=SessionInfo(4, "i", "a", "host", 42, "0.1", NOW, NOW + SECOND, connected=False),
            exit=TrainerExit(None, 9, "killed", NOW),
        )
        stored = await store.write(lambda tx: tx.insert_job(full))
        assert stored == replace(full, key=stored.key)
        assert await store.read(lambda tx: tx.job("j")) == stored

        def work(tx: Transaction) -> Job:
            read = tx.job("j")
            assert read is not None
            changed = replace(read.changed(NOW + 2 * SECOND), session=None, exit=None, labels={})
            tx.save_job(changed)
            return changed

        changed = await store.write(work)
        assert await store.read(lambda tx: tx.job("j")) == changed

    async def test_an_unknown_job_is_none(self, store: Store) -> None:
        assert await store.read(lambda tx: tx.job("nobody")) is None

    async def test_a_job_id_is_used_once(self, store: Store) -> None:
        await add_job(store)
        with pytest.raises(IntegrityError):
            await add_job(store)

    async def test_a_job_is_saved_only_where_it_was_read(self, store: Store) -> None:
        stale = await add_job(store)
        with pytest.raises(RuntimeError, match="not read in this transaction"):
            await store.write(lambda tx: tx.save_job(replace(stale, revision=1)))
        assert await store.read(lambda tx: tx.job("j")) == stale

    async def test_jobs_are_listed_by_id_in_pages(self, store: Store) -> None:
        for job_id in ("b", "a", "b-1", "c", "a.1"):
            state = JobState.RUNNING if job_id.startswith("a") else JobState.LOST
            await add_job(store, job_id, state=state)

        async def ids(**arguments: object) -> list[str]:
            found = await store.read(lambda tx: tx.jobs(**arguments))  # type: ignore[arg-type]
            return [one.id for one in found]

        assert await ids(limit=3) == ["a", "a.1", "b"]
        assert await ids(limit=3, after="b") == ["b-1", "c"]
        assert await ids(limit=9, states=[JobState.LOST]) == ["b", "b-1", "c"]
        assert await ids(limit=1, after="b", states=[JobState.LOST, JobState.FAILED]) == ["b-1"]
        assert await ids(limit=9, states=[JobState.FAILED]) == []

    async def test_deleting_a_job_leaves_nothing_but_its_events(self, store: Store) -> None:
        first = await add_job(store)
        await add_updates(store, first, update(1))
        await store.write(lambda tx: tx.save_run(first, Run(1, "i", 0)))
        await add_samples(store, first, range(10))
        await store.write(lambda tx: tx.append_event(event(1)))
        await store.write(lambda tx: tx.delete_job(first))
        assert await store.read(lambda tx: tx.job("j")) is None

        second = await add_job(store)
        assert second.key != first.key
        for old in (first, second):
            seen = await store.read(
                lambda tx, old=old: (  # type: ignore[misc]
                    tx.updates(old, limit=9),
                    tx.runs(old),
                    tx.telemetry(old),
                    tx.metric_names(old),
                    tx.samples(old, "loss", spans=[(1, 0, None)]),
                )
            )
            assert seen == ([], [], None, [], [])
        assert await store.read(lambda tx: len(tx.events(after=0, limit=9))) == 1
        # Telemetry that was under way to it finds nobody.
        await add_samples(store, first, range(10))
        assert await store.read(lambda tx: tx.telemetry(first)) is None
        # Its samples go from the disk, however young, in pieces.
        prune = {"samples_before": None, "events_before": None, "limit": 4}
        gone = [await store.write(lambda tx: tx.prune(**prune)) for _ in range(4)]  # type: ignore[arg-type]
        assert gone == [4, 4, 2, 0]

    # Updates

    async def test_an_update_comes_back_as_it_was(self, store: Store) -> None:
        of = await add_job(store)
        first = update(1, batch="all-of-them")
        timed = replace(
            update(2), spec=set_rate(at_step=5, deadline=NOW + SECOND, reason="why", force=True)
        )
        await add_updates(store, of, first, timed)
        assert await store.read(lambda tx: tx.update(of, 1)) == first
        again = await store.read(lambda tx: tx.update_by_request(of, "r2"))
        assert again == timed
        # Requests are compared by what their specs look like.
        assert again is not None
        assert repr(again.spec) == repr(timed.spec)
        assert await store.read(lambda tx: tx.update(of, 3)) is None
        assert await store.read(lambda tx: tx.update_by_request(of, "r3")) is None

    async def test_every_stage_of_an_update_is_kept(self, store: Store) -> None:
        of = await add_job(store)
        one = update(1)
        await add_updates(store, of, one)
        outcome = replace(applied(), metrics={"loss": math.inf})
        by = Cancelled("somebody", "changed my mind")
        for change in (
            lambda u: deliver(u, NOW + SECOND),
            lambda u: request_cancel(u, by, NOW + SECOND),
            lambda u: settle(u, outcome, NOW + 2 * SECOND),
            lambda u: settle(u, applied(step=9, instance_id="second"), NOW + 3 * SECOND),
        ):
            one = change(one)
            await store.write(lambda tx, one=one: tx.save_update(of, one))  # type: ignore[misc]
            assert await store.read(lambda tx: tx.update(of, 1)) == one
        assert one.reapplied
        assert one.cancel_request == by

    async def test_a_revision_and_a_request_id_are_used_once(self, store: Store) -> None:
        of, other = await add_job(store), await add_job(store, "k")
        await add_updates(store, of, update(1))
        for again in (update(1, request_id="new"), update(2, request_id="r1")):
            with pytest.raises(IntegrityError):
                await add_updates(store, of, again)
        # Another job has ids of its own, and no id at all is not the same as none.
        await add_updates(store, other, replace(update(1), job_id="k"))
        nameless = [update(n, request_id="") for n in (2, 3)]
        await add_updates(store, of, *nameless)
        assert await store.read(lambda tx: tx.update_by_request(of, "")) is None
        assert await store.read(lambda tx: tx.update(of, 3)) == nameless[1]

    async def test_saving_an_unknown_update_fails(self, store: Store) -> None:
        of = await add_job(store)
        with pytest.raises(LookupError, match="no update with revision 1"):
            await store.write(lambda tx: tx.save_update(of, update(1)))

    async def test_updates_are_listed_in_pages_from_either_end(self, store: Store) -> None:
        of = await add_job(store)
        states = [UpdateState.APPLIED, UpdateState.PENDING, UpdateState.DELIVERED] * 3
        await add_updates(
            store, of, *(update(n, state=state) for n, state in enumerate(states, start=1))
        )

        async def revisions(**arguments: object) -> list[int]:
            found = await store.read(lambda tx: tx.updates(of, **arguments))  # type: ignore[arg-type]
            return [one.revision for one in found]

        assert await revisions(limit=3) == [9, 8, 7]
        assert await revisions(limit=3, beyond=7) == [6, 5, 4]
        assert await revisions(limit=3, newest_first=False) == [1, 2, 3]
        assert await revisions(limit=2, newest_first=False, beyond=3) == [4, 5]
        assert await revisions(limit=9, states=[UpdateState.PENDING]) == [8, 5, 2]
        both = [UpdateState.PENDING, UpdateState.APPLIED]
        assert await revisions(limit=2, states=both, beyond=7) == [5, 4]

        seen = await store.read(
            lambda tx: (
                [one.revision for one in tx.open_updates(of)],
                tx.count_open(of),
                tx.applied_above(of, 0),
                tx.applied_above(of, 4),
            )
        )
        assert seen == ([2, 3, 5, 6, 8, 9], 6, [1, 4, 7], [7])

    async def test_only_pending_updates_expire_the_most_overdue_first(self, store: Store) -> None:
        of, other = await add_job(store), await add_job(store, "k")

        def due(revision: int, seconds: int | None, state: UpdateState) -> Update:
            deadline = None if seconds is None else NOW + seconds * SECOND
            return update(revision, state=state, spec=set_rate(deadline=deadline))

        await add_updates(
            store,
            of,
            due(1, 5, UpdateState.PENDING),
            due(2, 1, UpdateState.DELIVERED),
            due(3, 7, UpdateState.PENDING),
            due(4, None, UpdateState.PENDING),
        )
        await add_updates(store, other, due(1, 2, UpdateState.PENDING))

        async def expired(seconds: int, limit: int = 9) -> list[tuple[str, int]]:
            return await store.read(lambda tx: tx.expired_pending(NOW + seconds * SECOND, limit))

        assert await expired(1) == []
        assert await expired(2) == [("k", 1)]
        assert await expired(6) == [("k", 1), ("j", 1)]
        assert await expired(99, limit=1) == [("k", 1)]

    # Runs

    async def test_runs_are_kept_by_number(self, store: Store) -> None:
        of = await add_job(store)
        runs = [Run(1, "first", 0), Run(2, "second", 40)]

        def work(tx: Transaction) -> None:
            for run in reversed(runs):
                tx.save_run(of, run)

        await store.write(work)
        assert await store.read(lambda tx: tx.runs(of)) == runs
        await store.write(lambda tx: tx.save_run(of, replace(runs[0], superseded=True)))
        assert await store.read(lambda tx: tx.runs(of)) == [Run(1, "first", 0, True), runs[1]]

    # Events

    async def test_events_come_in_order_without_gaps(self, store: Store) -> None:
        assert await store.read(lambda tx: tx.event_span()) == (0, 0)

        def append(number: int) -> object:
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
                Progress(step, 100, 0.5, None, 3.25, NOW),
                (MetricPoint("loss", step, math.inf, NOW), MetricPoint("lr", step, 1e-5, NOW)),
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
        assert [s.value for s in found[1:]] == [values[2], values[0], values[4], values[3], values[5]]

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
            await add_samples(store, of, steps, [run.number * 100.0 + s for s in steps], run=run.number)
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
                replace(NO_TELEMETRY, dropped_samples=of.key),
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
