"""Heartbeats: the newest in memory, all of it to the store, acknowledged once it is there."""

from __future__ import annotations

import asyncio
import math
import threading
from pathlib import Path

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Progress
from control_plane.domain.series import Sample, Statistics, describe
from control_plane.domain.session import Phase
from control_plane.domain.update import Reading
from control_plane.services import metrics
from control_plane.services.metrics import MetricSeries, MetricsQuery
from control_plane.services.outbox import Acknowledgement, ItemError
from tests.support.domain_values import NOW, applied, hello, set_rate, settled
from tests.support.use_cases import (
    MICROS,
    Clock,
    Talk,
    UseCases,
    eventually,
    heartbeat,
    only,
    said,
    use_cases,
    welcome,
)


async def query(plane: UseCases, *names: str, **options: int) -> dict[str, MetricSeries]:
    found = await plane.metrics.query(MetricsQuery("j", names, **options))
    assert len({series.name for series in found}) == len(found)
    return {series.name: series for series in found}


async def steps(plane: UseCases, **options: int) -> list[int]:
    found = await query(plane, "loss", **options)
    return [sample.step for sample in found["loss"].samples] if found else []


async def test_the_newest_is_seen_at_once_and_acknowledged_once_it_is_on_disk(
    plane: UseCases,
) -> None:
    talk = Talk(await plane.session())
    await welcome(talk.session)
    await talk.session.heartbeat(talk.next(), heartbeat(3, loss=[3.0, 2.0, math.nan], lr=[1e-5]))
    view = await plane.jobs.get("j")
    assert view.progress == Progress(3)
    newest = {m.name: (m.step, m.value) for m in view.metrics}
    assert newest["lr"] == (3, 1e-5)
    assert newest["loss"][0] == 3
    assert math.isnan(newest["loss"][1])
    assert await said(talk.session) == []
    await plane.telemetry.flush()
    assert only(await said(talk.session), Acknowledgement) == [Acknowledgement(2)]
    (loss, lr) = (await query(plane)).values()
    assert [(s.step, s.time) for s in loss.samples] == [
        (1, MICROS),
        (2, MICROS + 1),
        (3, MICROS + 2),
    ]
    assert math.isnan(loss.samples[-1].value)
    assert (loss.statistics.count, loss.statistics.non_finite_count) == (3, 1)
    assert (lr.statistics.last, lr.reduced) == (1e-5, False)


async def test_what_a_store_that_is_away_did_not_take_waits_and_is_not_acknowledged(
    plane: UseCases,
) -> None:
    talk = Talk(await plane.session())
    await welcome(talk.session)
    plane.store.away = True
    flushing = asyncio.ensure_future(plane.telemetry.run())
    try:
        await talk.session.heartbeat(talk.next(), heartbeat(2, loss=[3.0, 2.0]))
        with pytest.raises(Refusal) as refused:
            await plane.telemetry.flush()
        assert refused.value.reason is Reason.STORE_UNAVAILABLE
        await talk.session.heartbeat(talk.next(), heartbeat(3, loss=[1.0]))
        assert await said(talk.session) == []
        plane.store.away = False
        acknowledged = await asyncio.wait_for(talk.session.outbox.get(), 10)
        assert acknowledged == Acknowledgement(3)
    finally:
        flushing.cancel()
    assert await steps(plane) == [1, 2, 3]


async def test_the_flusher_survives_a_store_that_comes_and_goes(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await welcome(talk.session)
    flushing = asyncio.ensure_future(plane.telemetry.run())
    try:
        for step in (1, 2):
            plane.store.away = True
            await talk.session.heartbeat(talk.next(), heartbeat(step, loss=[1.0]))
            await eventually(lambda: not plane.telemetry._flushing.locked(), "a try")
            plane.store.away = False
            assert await asyncio.wait_for(talk.session.outbox.get(), 10) == Acknowledgement(
                1 + step
            )
        assert not flushing.done()
    finally:
        flushing.cancel()


async def test_with_too_much_in_memory_whoever_reads_waits(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "c.db", max_pending_samples=10) as plane:
        talk = Talk(await plane.session())
        await talk.session.heartbeat(talk.next(), heartbeat(10, loss=[1.0] * 10))
        late = asyncio.ensure_future(talk.session.heartbeat(talk.next(), heartbeat(11, loss=[2.0])))
        await eventually(lambda: plane.telemetry._room._waiters, "that it waits")
        assert (await plane.jobs.get("j")).progress == Progress(10)
        await plane.telemetry.flush()
        await asyncio.wait_for(late, 5)
        assert await steps(plane) == list(range(1, 12))


async def test_too_many_samples_in_one_heartbeat_are_refused_alone(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "c.db", max_samples=3) as plane:
        talk = Talk(await plane.session())
        await talk.session.heartbeat(talk.next(), heartbeat(2, loss=[1.0, 2.0], lr=[1.0, 2.0]))
        messages = await said(talk.session)
        assert [e.reason for e in only(messages, ItemError)] == ["PROTOCOL_VIOLATION"]
        assert only(messages, Acknowledgement) == [Acknowledgement(2)]
        assert (await plane.jobs.get("j")).progress is None or (
            await plane.jobs.get("j")
        ).progress == Progress(0)
        assert await steps(plane) == []


async def test_a_sample_that_comes_again_counts_once(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(2):
        await talk.session.heartbeat(talk.next(), heartbeat(3, loss=[1.0, 2.0, 3.0]))
    assert await steps(plane) == [1, 2, 3]
    again = Talk(await plane.session())
    await again.session.heartbeat(again.next(), heartbeat(4, loss=[2.0, 3.0, 4.0]))
    assert await steps(plane) == [1, 2, 3, 4]


async def test_samples_of_a_job_that_is_gone_harm_nobody(plane: UseCases) -> None:
    gone, here = Talk(await plane.session("gone")), Talk(await plane.session("j"))
    await gone.session.heartbeat(gone.next(), heartbeat(1, loss=[1.0]))
    await here.session.heartbeat(here.next(), heartbeat(1, loss=[1.0]))
    await plane.sessions.close(gone.session)
    was = await plane.job("gone")
    assert plane.telemetry.current(was) is not None
    await plane.jobs.delete("gone", "")
    await plane.telemetry.flush()
    assert await steps(plane) == [1]
    assert plane.telemetry.current(was) is None


async def test_the_newest_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    async with use_cases(tmp_path / "c.db", clock) as first:
        talk = Talk(await first.session())
        await talk.session.heartbeat(
            talk.next(), heartbeat(9, dropped=5, loss=[1.0], eval_loss=[2.0])
        )
        await first.telemetry.flush()
        before = await first.jobs.get("j")
    async with use_cases(tmp_path / "c.db", clock) as second:
        after = await second.jobs.get("j")
        assert (after.progress, after.metrics, after.dropped_samples) == (
            before.progress,
            before.metrics,
            5,
        )
        # The agent comes back and has news of the loss alone.
        talk = Talk(await second.session(progress=Progress(10)))
        assert {m.name for m in (await second.jobs.get("j")).metrics} == {"loss", "eval_loss"}
        await talk.session.heartbeat(talk.next(), heartbeat(10, loss=[0.5]))
        newest = {m.name: m.value for m in (await second.jobs.get("j")).metrics}
        assert newest == {"loss": 0.5, "eval_loss": 2.0}
        await second.telemetry.flush()
    async with use_cases(tmp_path / "c.db", clock) as third:
        assert {m.name: m.value for m in (await third.jobs.get("j")).metrics} == newest


async def test_what_a_resumed_run_takes_back_is_not_its_newest(plane: UseCases) -> None:
    one = Talk(await plane.session(instance_id="one"))
    await one.session.heartbeat(one.next(), heartbeat(5, loss=[5.0], early=[5.0]))
    await one.session.heartbeat(one.next(), heartbeat(9, loss=[9.0]))
    await plane.session(instance_id="two", start_step=6)
    view = await plane.jobs.get("j")
    assert view.progress == Progress(6)
    assert {m.name: m.step for m in view.metrics} == {"early": 5}


async def test_the_course_of_a_resumed_run_is_its_lineage(plane: UseCases) -> None:
    for instance, start, last in (("one", 0, 10), ("two", 8, 14), ("three", 5, 7)):
        talk = Talk(await plane.session(instance_id=instance, start_step=start))
        values = [float(start)] * (last - start)
        await talk.session.heartbeat(talk.next(), heartbeat(last, loss=values))
    (loss,) = (await query(plane)).values()
    assert [(s.step, s.value) for s in loss.samples] == [
        *((step, 0.0) for step in range(1, 6)),
        *((step, 5.0) for step in (6, 7)),
    ]
    assert loss.statistics.maximum == 5.0


async def test_an_evaluation_before_the_first_step_is_told(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(0, loss=[9.0]))
    await talk.session.heartbeat(talk.next(), heartbeat(1, loss=[8.0]))
    assert await steps(plane) == [0, 1]


async def test_ranges_of_a_course(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await talk.session.heartbeat(
        talk.next(), heartbeat(20, loss=[float(i) for i in range(20)], lr=[1.0])
    )
    assert await steps(plane, first_step=5, last_step=7) == [5, 6, 7]
    assert await steps(plane, first_step=19) == [19, 20]
    assert await steps(plane, last_step=2) == [1, 2]
    assert await steps(plane, last=3) == [18, 19, 20]
    assert await steps(plane, last=3, last_step=10) == [8, 9, 10]
    assert await steps(plane, start_time=MICROS + 18) == [19, 20]
    assert await steps(plane, end_time=MICROS + 2) == [1, 2]
    assert await steps(plane, first_step=99) == []
    assert set(await query(plane)) == {"loss", "lr"}
    assert set(await query(plane, "lr", "nothing", "lr")) == {"lr"}
    (reduced,) = (await query(plane, "loss", max_points=6)).values()
    assert reduced.reduced
    assert len(reduced.samples) == 6
    assert reduced.statistics.count == 20
    with pytest.raises(Refusal) as refused:
        await plane.metrics.query(MetricsQuery("k"))
    assert refused.value.reason is Reason.JOB_NOT_FOUND


async def test_readings_are_what_the_guard_rail_compares_with(plane: UseCases) -> None:
    """A schedule moves the learning rate on; the value declared at the start is long past."""
    talk = Talk(await plane.session())
    moved = Reading("learning_rate", "", 1e-7)
    await talk.session.heartbeat(talk.next(), heartbeat(900, readings=(moved,)))
    with pytest.raises(Refusal) as refused:
        await plane.submit(set_rate(2e-5))
    assert refused.value.reason is Reason.GUARD_RAIL
    assert "(1e-07)" in refused.value.message
    assert (await plane.submit(set_rate(1e-6))).revision == 1


async def test_a_reading_counts_until_something_newer_is_known(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    moved = Reading("learning_rate", "", 1e-7)
    await talk.session.heartbeat(talk.next(), heartbeat(900, readings=(moved,)))
    await plane.submit(set_rate(1e-4, force=True))
    await talk.session.outcome(talk.next(), settled(1, applied(901, 1e-4)))
    assert (await plane.submit(set_rate(9e-4))).revision == 2, "nine times what is in force"
    # A new process declares anew what is in force.
    await talk.session.heartbeat(talk.next(), heartbeat(950, readings=(moved,)))
    await plane.session(instance_id="two", start_step=900)
    assert (await plane.submit(set_rate(1e-4))).revision == 3


async def test_what_came_without_samples_is_there_after_a_restart(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "c.db") as first:
        await first.session(progress=Progress(20, 100))
        await first.telemetry.flush()
    async with use_cases(tmp_path / "c.db") as second:
        assert (await second.jobs.get("j")).progress == Progress(20, 100)
        with pytest.raises(Refusal) as refused:
            await second.submit(set_rate(at_step=20))
        assert refused.value.reason is Reason.STEP_IN_PAST


async def test_a_metric_without_samples_in_range_has_no_series(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(3, loss=[3.0, 2.0, 1.0], late=[1.0]))
    found = await plane.metrics.query(MetricsQuery("j", last_step=2))
    assert [(each.name, list(each.samples)[-1].step) for each in found] == [("loss", 2)]
    assert await plane.metrics.query(MetricsQuery("j", first_step=4)) == []
    assert await plane.metrics.query(MetricsQuery("j", names=("nothing",))) == []


async def test_a_series_is_made_where_the_store_is_read(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is long must not hold up the event loop."""
    where: list[threading.Thread] = []

    def noted(samples: list[Sample]) -> Statistics:
        where.append(threading.current_thread())
        return describe(samples)

    monkeypatch.setattr(metrics, "describe", noted)
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(2, a=[1.0], b=[2.0]))
    assert list(await query(plane)) == ["a", "b"]
    assert len(where) == 2
    assert threading.current_thread() not in where


async def test_too_many_samples_are_not_told_at_once(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_SAMPLES", 3)
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(4, loss=[4.0, 3.0, 2.0, 1.0], lr=[1.0]))
    with pytest.raises(Refusal, match="loss has more than 3 samples in range") as refused:
        await query(plane)
    assert refused.value.reason is Reason.INVALID_ARGUMENT
    assert [v.field for v in refused.value.violations] == ["steps"]
    with pytest.raises(Refusal, match="more than 3"):
        await query(plane, last=4)
    assert list(await query(plane, "lr")) == ["lr"]
    assert await steps(plane, last=3) == [2, 3, 4]
    assert await steps(plane, first_step=2) == [2, 3, 4]


async def test_a_phase_in_a_heartbeat_costs_a_write_only_when_it_is_new(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    before = plane.store.writes
    for step in range(1, 6):
        await talk.session.heartbeat(talk.next(), heartbeat(step, Phase.TRAINING))
    assert plane.store.writes == before


async def test_anything_said_counts_as_a_sign_of_life(plane: UseCases, clock: Clock) -> None:
    talk = Talk(await plane.session())
    clock.advance(40)
    talk.next()
    session = (await plane.jobs.get("j")).job.session
    assert session is not None
    assert session.last_seen_time == clock.now > NOW
    await plane.sessions.find_lost(40)
    assert (await plane.job()).state.value == "running"
    assert hello().state.progress is None


async def test_jobs_whose_streams_are_elsewhere_or_nowhere_are_forgotten_here(
    plane: UseCases, clock: Clock
) -> None:
    talks = {name: Talk(await plane.session(name)) for name in ("gone", "silent", "waits")}
    for name in ("gone", "waits"):
        talk = talks[name]
        await talk.session.heartbeat(talk.next(), heartbeat(3, loss=[1.0]))
        if name == "gone":
            await plane.telemetry.flush()
        await plane.sessions.close(talk.session)
    kept = {name: await plane.job(name) for name in talks}

    async def known() -> set[str]:
        await plane.sessions.forget_silent()
        return {name for name, job in kept.items() if plane.telemetry.current(job) is not None}

    assert await known() == {"gone", "silent", "waits"}, "they may come back"
    clock.advance(31)
    before = await plane.jobs.get("gone")
    assert await known() == {"silent", "waits"}
    assert (await plane.jobs.get("gone")).progress == before.progress == Progress(3)
    await plane.telemetry.flush()
    assert await known() == {"silent"}
    assert (await plane.jobs.get("waits")).progress == Progress(3)
    # Its stream is open still.
    silent = talks["silent"]
    await silent.session.heartbeat(silent.next(), heartbeat(4))
    assert (await plane.jobs.get("silent")).progress == Progress(4)


async def test_a_stream_that_begins_while_the_store_is_slow_is_not_forgotten(
    plane: UseCases, clock: Clock
) -> None:
    """Else what its agent says is acknowledged, and nobody has it."""
    await plane.sessions.close(await plane.session())
    await plane.telemetry.flush()
    async with plane.telemetry._flushing:  # which takes long
        forgetting = asyncio.ensure_future(plane.sessions.forget_silent())
        await eventually(lambda: plane.telemetry._flushing._waiters, "that it waits")
        talk = Talk(await plane.session())
        await plane.telemetry._store.write(lambda _: None)
        clock.advance(3_600)
    await forgetting
    await talk.session.heartbeat(talk.next(), heartbeat(3, loss=[3.0, 2.0, 1.0]))
    await plane.telemetry.flush()
    assert await steps(plane) == [1, 2, 3]


async def test_what_agents_dropped_adds_up_over_agents(tmp_path: Path) -> None:
    """Each counts from when it began."""

    async def dropped(plane: UseCases, instance: str, count: int) -> int:
        talk = Talk(await plane.session(instance_id=instance))
        await talk.session.heartbeat(talk.next(), heartbeat(1, dropped=count))
        await plane.telemetry.flush()
        return (await plane.jobs.get("j")).dropped_samples

    async with use_cases(tmp_path / "c.db") as plane:
        assert await dropped(plane, "one", 5) == 5
        assert await dropped(plane, "two", 2) == 7
        assert await dropped(plane, "two", 2) == 7
        assert await dropped(plane, "two", 3) == 8
        assert await dropped(plane, "three", 9) == 17
        assert plane.telemetry.dropped == 17
    async with use_cases(tmp_path / "c.db") as plane:
        assert await dropped(plane, "four", 1) == 18
        assert await dropped(plane, "four", 4) == 21
        assert plane.telemetry.dropped == 4
        most = 2**63 - 1
        assert await dropped(plane, "five", most) == most, "no more can be stored"
