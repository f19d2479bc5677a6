"""Replicas on one database: what one does, the others know of, and nobody serves a job twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState, Progress
from control_plane.domain.parameter import MultiplyChange
from control_plane.domain.selector import parse
from control_plane.domain.session import Phase, TrainerEvent
from control_plane.domain.update import Cancelled, Reading, UpdateSpec, UpdateState
from control_plane.services.bus import JOBS, session_topic
from control_plane.services.ports import Transaction
from control_plane.services.updates import accept_in
from control_plane.services.watch import WatchItem, WatchKind
from tests.support.domain_values import NOW, SECOND, applied, hello, set_rate, settled, update
from tests.support.replicas import Replica, replicas
from tests.support.use_cases import (
    Clock,
    Talk,
    UseCases,
    eventually,
    heartbeat,
    welcome,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cluster(address: str, clock: Clock) -> AsyncIterator[list[Replica]]:
    async with replicas(address, 3, clock) as opened:
        yield opened


@pytest.fixture
def planes(cluster: list[Replica]) -> list[UseCases]:
    return [replica.cases for replica in cluster]


class Served:
    """A session as a stream has it: what is accepted is sent by itself."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        talk.session.deliveries.begin()

    def end(self) -> None:
        self.talk.session.deliveries.close()


async def serve(plane: UseCases, **fields: object) -> Served:
    session = await plane.session(**fields)
    await welcome(session)
    return Served(Talk(session))


async def receive(served: Served) -> list[int]:
    """Waits for deliveries and answers them."""
    outbox = served.talk.session.outbox
    await eventually(lambda: len(outbox), "a delivery")
    return await served.talk.receive_all()


async def test_an_update_reaches_its_job_through_any_replica(planes: list[UseCases]) -> None:
    a, b, c = planes
    served = await serve(a)
    for revision, plane in enumerate((a, b, c), start=1):
        waiting = asyncio.create_task(planes[revision % 3].updates.wait("j", revision, 20))
        if plane is not b:  # a wait may begin before there is anything to wait for, but not here
            waiting.cancel()
        assert (await plane.submit(set_rate())).revision == revision
        assert await receive(served) == [revision]
        waited = asyncio.create_task(planes[revision % 3].updates.wait("j", revision, 20))
        await served.talk.session.outcome(served.talk.next(), settled(revision))
        assert (await waited).outcome == applied()
        await asyncio.wait([waiting])
    served.end()


async def test_only_whom_it_concerns_is_woken(planes: list[UseCases]) -> None:
    a, b, _ = planes
    await serve_and_leave(a)
    mine, other = (a.bus.subscribe(session_topic(name)) for name in ("j", "k"))
    await b.submit(set_rate())
    assert await mine.wait(20)
    assert not await other.wait(0)


async def serve_and_leave(plane: UseCases) -> None:
    served = await serve(plane)
    served.end()


async def test_a_watch_on_a_third_replica_sees_everything_in_order(planes: list[UseCases]) -> None:
    a, b, c = planes
    items: list[WatchItem] = []

    async def watch() -> None:
        async for item in c.watches.watch(parse("")):
            items.append(item)  # noqa: PERF401 - one by one, as they come

    watching = asyncio.create_task(watch())
    await eventually(lambda: items, "the bookmark")
    served = await serve(a)
    await b.submit(set_rate())
    await receive(served)
    await served.talk.session.outcome(served.talk.next(), settled(1))

    def states() -> list[UpdateState]:
        return [item.update.state for item in items if item.update is not None]

    await eventually(lambda: len(states()) == 3, "all changes of the update")
    watching.cancel()
    await asyncio.wait([watching])
    served.end()
    assert items[1].kind is WatchKind.CREATED
    positions = [item.position for item in items if item.position is not None]
    assert positions == sorted(set(positions))


async def test_progress_is_watched_through_any_replica(planes: list[UseCases]) -> None:
    a, b, _ = planes
    talk = Talk(await a.session())
    steps: list[int] = []

    async def watch() -> None:
        async for item in b.watches.watch(parse(""), progress_interval=0.01):
            if item.view is not None and item.view.progress is not None:
                steps.append(item.view.progress.step)  # noqa: PERF401 - as they come

    await talk.session.heartbeat(talk.next(), heartbeat(1, loss=[1.0]))
    await a.telemetry.flush()
    watching = asyncio.create_task(watch())
    await eventually(lambda: steps, "the snapshot")
    # Until it is seen: whether the watch has looked once before can not be seen from here.
    for step in range(2, 1_000):
        await talk.session.heartbeat(talk.next(), heartbeat(step, loss=[float(step)]))
        await a.telemetry.flush()
        if steps[-1] > 1:
            break
        await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.wait([watching])
    assert len(steps) > 1
    assert steps == sorted(set(steps))


async def test_the_newer_stream_is_served_whichever_replica_it_comes_to(
    planes: list[UseCases],
) -> None:
    a, b, _ = planes
    first = await serve(a)
    second = await serve(b)
    ended = await asyncio.wait_for(asyncio.shield(first.talk.session.ended), 20)
    assert ended.reason is Reason.SESSION_FENCED
    assert ended.metadata == {"epoch": "1", "current_epoch": "2"}
    await b.submit(set_rate())
    before = await b.job()
    with pytest.raises(Refusal) as refused:
        await first.talk.session.outcome(first.talk.next(), settled(1))
    assert refused.value.reason is Reason.SESSION_FENCED
    await a.sessions.close(first.talk.session)
    assert await b.job() == before
    assert (await a.jobs.get("j")).job.session == (await b.jobs.get("j")).job.session
    # Another process takes the job over for good.
    third = await serve(a, instance_id="two")
    ended = await asyncio.wait_for(asyncio.shield(second.talk.session.ended), 20)
    assert ended.reason is Reason.INSTANCE_SUPERSEDED
    assert not third.talk.session.ended.done()
    for served in (first, second, third):
        served.end()


async def test_of_streams_that_come_at_once_one_is_served(planes: list[UseCases]) -> None:
    """Also where nobody has heard of the job before."""
    for name in ("j", "k", "l"):
        opened = await asyncio.gather(*(p.sessions.open(1, hello(name)) for p in planes))
        assert sorted(session.epoch for session in opened) == [1, 2, 3]
        newest = max(opened, key=lambda session: session.epoch)
        job = await planes[0].job(name)
        assert job.session is not None
        assert job.session.replica == planes[opened.index(newest)].store.replica


async def test_telemetry_of_an_older_session_does_not_come_back(planes: list[UseCases]) -> None:
    a, b, c = planes
    old = Talk(await a.session())
    await old.session.heartbeat(old.next(), heartbeat(5, loss=[5.0]))
    new = Talk(await b.session())
    await new.session.heartbeat(new.next(), heartbeat(9, loss=[9.0]))
    await b.telemetry.flush()
    await a.telemetry.flush()  # late
    for plane in (a, b, c):
        view = await plane.jobs.get("j")
        assert view.progress == Progress(9)
        assert [m.value for m in view.metrics] == [9.0]
    # Back to where it was: what this replica remembers is older than what is stored.
    again = Talk(await a.session())
    assert (await a.jobs.get("j")).progress == Progress(9)
    await again.session.heartbeat(again.next(), heartbeat(10, loss=[10.0]))
    await a.telemetry.flush()
    assert (await c.jobs.get("j")).progress == Progress(10)
    assert (await b.jobs.get("j")).progress == Progress(10)


async def test_updates_are_checked_against_what_is_in_force_elsewhere(
    planes: list[UseCases],
) -> None:
    a, b, _ = planes
    talk = Talk(await a.session())
    reading = (Reading("learning_rate", "", 0.25),)
    await talk.session.heartbeat(talk.next(), heartbeat(30, readings=reading))
    await a.telemetry.flush()
    with pytest.raises(Refusal) as refused:
        await b.submit(set_rate(at_step=30))
    assert refused.value.reason is Reason.STEP_IN_PAST
    with pytest.raises(Refusal, match=r"1\.25"):
        await b.submit(UpdateSpec(changes=(MultiplyChange("learning_rate", 5.0),)))
    await b.submit(set_rate(0.5))
    # Confirmed, while the older reading is in the store still.
    outcome = settled(1, applied(step=31, value=0.5))
    await talk.session.outcome(talk.next(), outcome)
    with pytest.raises(Refusal, match=r"1\.5"):
        await b.submit(UpdateSpec(changes=(MultiplyChange("learning_rate", 3.0),)))


async def test_the_jobs_of_a_dead_replica_are_lost_and_those_of_a_living_one_are_not(
    cluster: list[Replica], clock: Clock
) -> None:
    a, b, c = (replica.cases for replica in cluster)
    await a.sessions.open(1, hello("on-a"))
    await b.sessions.open(1, hello("on-b"))
    alive = Talk(await c.sessions.open(1, hello("on-c")))
    for plane in (a, b, c):
        await look(plane, 100)
    await a.submit(set_rate(), "on-a")
    await cluster[0].die()
    for second in range(40):
        clock.advance(1)
        alive.session.begin(alive.number + 1)
        alive.number += 1
        for plane in (b, c):
            if plane is b:
                b.telemetry.seen((await b.job("on-b")).key)
            await look(plane, 100 + second)
        if second == 10:
            assert (await b.job("on-a")).state is JobState.RUNNING
            assert await connected(b, "on-a")
    assert (await b.job("on-a")).state is JobState.LOST
    assert not await connected(b, "on-a")
    assert (await c.job("on-b")).state is JobState.RUNNING
    assert (await b.job("on-c")).state is JobState.RUNNING
    assert await connected(b, "on-c")
    # What was accepted while it was alive may have been sent.
    cancelled = await b.updates.cancel("on-a", 1, "ann", "", 0)
    assert cancelled.state is UpdateState.PENDING
    await c.submit(set_rate(), "on-a")
    cancelled = await b.updates.cancel("on-a", 2, "ann", "", 0)
    assert cancelled.outcome == Cancelled("ann", "")


async def look(plane: UseCases, since_start: float) -> None:
    """What a server does once a second."""
    await plane.sessions.beat()
    await plane.sessions.find_lost(since_start)


async def connected(plane: UseCases, job_id: str) -> bool:
    session = (await plane.jobs.get(job_id)).job.session
    assert session is not None
    return session.connected


async def test_a_replica_that_was_taken_for_dead_takes_its_jobs_back(
    planes: list[UseCases], clock: Clock
) -> None:
    a, b, _ = planes
    served = await serve(a)
    await look(b, 100)
    for second in range(20):
        clock.advance(1)
        await look(b, 100 + second)

    assert (await b.job()).state is JobState.LOST
    # It hears of that, and says otherwise before it sends anything.
    await until_connected(b)
    await look(a, 120)
    await look(b, 120)
    assert await connected(b, "j")
    await served.talk.session.heartbeat(served.talk.next(), heartbeat(7))
    assert (await b.job()).state is JobState.RUNNING
    await b.submit(set_rate())
    assert await receive(served) == [1]
    served.end()


async def until_connected(plane: UseCases) -> None:
    """Waits until it is stored that the job's stream is open."""
    subscription = plane.bus.subscribe(JOBS)
    async with asyncio.timeout(20):
        while (session := (await plane.job()).session) is None or not session.connected:
            await subscription.wait()
    subscription.close()


async def test_a_finished_job_whose_server_died_can_be_deleted(
    cluster: list[Replica], clock: Clock
) -> None:
    a, b, c = (replica.cases for replica in cluster)
    for plane, name in ((a, "on-a"), (c, "on-c")):
        talk = Talk(await plane.session(name))
        await talk.session.event(talk.next(), TrainerEvent(Phase.FINISHED, "", NOW))
    await look(a, 100)
    await cluster[0].die()
    for second in range(40):
        for plane in (b, c):
            await look(plane, 100 + second)
        clock.advance(1)
    assert (await b.job("on-a")).state is JobState.FINISHED
    await b.jobs.delete("on-a", "")
    assert await connected(b, "on-c"), "its agent is there still"
    with pytest.raises(Refusal) as refused:
        await b.jobs.delete("on-c", "")
    assert refused.value.reason is Reason.JOB_HAS_LIVE_SESSION


async def test_a_hello_whose_commit_nobody_knew_of_holds_no_job(
    planes: list[UseCases], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = planes
    write = a.store.write

    async def unknown(work: Callable[[Transaction], Any]) -> Any:
        await write(work)
        raise Refusal(Reason.STORE_UNAVAILABLE, "the connection was lost during the commit")

    monkeypatch.setattr(a.store, "write", unknown)
    with pytest.raises(Refusal, match="lost during"):
        await a.session()
    monkeypatch.undo()
    for second in range(20):
        await look(a, 100 + second)
        await look(b, 100 + second)
        clock.advance(1)
    assert (await b.job()).state is JobState.LOST
    assert not await connected(b, "j")


async def test_nobody_is_lost_before_it_was_looked_who_is_alive(
    planes: list[UseCases], clock: Clock
) -> None:
    """The database is back, and the chore that looks for silence is the first to see it."""
    a, b, c = planes
    await a.session("on-a")
    await look(a, 100)
    await look(b, 100)
    b.store.away = True
    clock.advance(60)
    with pytest.raises(Refusal):
        await b.sessions.beat()
    b.store.away = False
    await b.sessions.find_lost(160)
    await c.sessions.find_lost(160)
    assert (await b.job("on-a")).state is JobState.RUNNING


async def test_nobody_is_lost_for_the_time_that_the_database_was_away(
    planes: list[UseCases], clock: Clock
) -> None:
    a, b, _ = planes
    await a.session()
    await look(a, 100)
    await look(b, 100)
    b.store.away = True
    clock.advance(60)
    with pytest.raises(Refusal):
        await look(b, 160)
    b.store.away = False
    await look(b, 161)
    clock.advance(10)
    await look(b, 171)
    assert (await b.job()).state is JobState.RUNNING
    clock.advance(10)
    await look(b, 181)
    assert (await b.job()).state is JobState.LOST


async def test_chores_may_be_done_by_all_at_once(planes: list[UseCases], clock: Clock) -> None:
    a, *_ = planes
    for name in ("b", "a", "c"):
        await serve_and_close(a, name)
        for number in range(3):
            due = set_rate(deadline=clock.now + (3 - number) * SECOND)
            await a.submit(due, name)
    await asyncio.gather(*(plane.sessions.beat() for plane in planes))
    clock.advance(10)
    await asyncio.gather(*(plane.sessions.beat() for plane in planes))
    clock.advance(10)
    await asyncio.gather(*(plane.updates.expire_due() for plane in planes for _ in range(2)))
    for name in ("a", "b", "c"):
        assert await a.states(name) == ["expired"] * 3
    await asyncio.gather(*(look(plane, 1_000) for plane in planes for _ in range(2)))
    lost = replace((await a.job("a")), key=0)
    assert lost.state is JobState.LOST
    events = await a.store.read(lambda tx: tx.events(after=0, limit=1_000))
    changes = [event for event in events if event.job_id == "a" and event.revision is None]
    # Created, begun, ended, lost; no more than once each.
    assert len(changes) == 4


async def serve_and_close(plane: UseCases, name: str) -> None:
    session = await plane.sessions.open(1, hello(name))
    await plane.sessions.close(session)


async def test_a_caller_who_hangs_up_has_changed_something_all_the_same(
    planes: list[UseCases],
) -> None:
    """And nobody else would tell the session of it."""
    a, b, _ = planes
    served = await serve(a)
    for number, plane in enumerate((a, b), start=1):
        begun, may_go_on = threading.Event(), threading.Event()

        def work(tx: Transaction, number: int = number) -> None:
            job = tx.job("j")
            assert job is not None
            begun.set()  # noqa: B023 - of this round
            assert may_go_on.wait(20)  # noqa: B023 - of this round
            accept_in(tx, job, update(number), NOW)

        asking = asyncio.create_task(plane.store.write(work))
        assert await asyncio.to_thread(begun.wait, 20)
        asking.cancel()
        await asyncio.wait([asking])
        may_go_on.set()
        assert await receive(served) == [number]
    served.end()
