"""Who is taken for lost: silence counts, whatever anybody sets the clock to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState
from control_plane.domain.session import Phase, TrainerEvent
from control_plane.domain.update import Cancelled
from control_plane.services.attention import Attention
from control_plane.services.ports import Transaction
from tests.support.domain_values import NOW, SECOND, set_rate
from tests.support.use_cases import (
    Clock,
    Talk,
    UseCases,
    delivered,
    heartbeat,
    use_cases,
)

HOUR = 3_600.0
LIMIT = 15.0
"""Seconds of silence after which a job is lost, at the default settings."""


async def state(plane: UseCases, job_id: str = "j") -> JobState:
    return (await plane.job(job_id)).state


async def connected(plane: UseCases, job_id: str = "j") -> bool:
    """Whether the store has the job's stream down as open."""
    session = (await plane.job(job_id)).session
    assert session is not None
    return session.connected


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_clock_that_is_set_loses_nobody(plane: UseCases, clock: Clock, jump: float) -> None:
    connected, left = await plane.session("connected"), await plane.session("left")
    clock.advance(100)
    for session in (connected, left):
        Talk(session).next()
    await plane.sessions.close(left)
    clock.set(jump)
    clock.advance(LIMIT - 1)
    await plane.sessions.find_lost(100 + LIMIT - 1)
    assert [await state(plane, job) for job in ("connected", "left")] == [JobState.RUNNING] * 2


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_clock_that_is_set_keeps_nobody_alive(
    plane: UseCases, clock: Clock, jump: float
) -> None:
    await plane.session("silent")
    left = await plane.session("left")
    await plane.sessions.close(left)
    clock.set(jump)
    clock.advance(LIMIT + 1)
    await plane.sessions.find_lost(LIMIT + 1)
    for job_id in ("silent", "left"):
        job = await plane.job(job_id)
        assert job.state is JobState.LOST, job_id
        assert "for 16 s" in job.state_message
        assert job.session is not None
        # A time, as the clock is now: what was set is not undone.
        assert job.session.last_seen_time == NOW + timedelta(seconds=jump)


async def test_a_clock_that_was_set_back_before_a_restart_keeps_nobody_alive(
    tmp_path: Path,
) -> None:
    """What is stored lies in the future then, and tells nothing."""
    clock = Clock()
    async with use_cases(tmp_path / "c.db", clock) as first:
        await first.sessions.close(await first.session())
    clock.set(-HOUR)
    async with use_cases(tmp_path / "c.db", clock) as second:
        clock.advance(LIMIT - 1)
        await second.sessions.find_lost(LIMIT - 1)
        assert await state(second) is JobState.RUNNING, "it may be on its way back"
        clock.advance(2)
        await second.sessions.find_lost(LIMIT + 1)
        assert await state(second) is JobState.LOST


async def test_what_callers_see_of_the_last_sign_of_life_is_a_time(
    plane: UseCases, clock: Clock
) -> None:
    await plane.session()
    clock.advance(4)
    clock.set(HOUR)
    clock.advance(3)
    session = (await plane.jobs.get("j")).job.session
    assert session is not None
    assert session.last_seen_time == clock.now - 7 * SECOND


async def test_silence_is_noticed_and_forgiven(plane: UseCases, clock: Clock) -> None:
    talk = Talk(await plane.session())
    limit = plane.limits.heartbeat_interval * plane.limits.lost_after_intervals
    clock.advance(limit)
    await plane.sessions.find_lost(limit)
    assert (await plane.job()).state is JobState.RUNNING
    clock.advance(1)
    await plane.sessions.find_lost(limit + 1)
    lost = await plane.job()
    assert lost.state is JobState.LOST
    assert "16 s" in lost.state_message
    await plane.sessions.find_lost(limit + 2)
    assert (await plane.job()).version == lost.version, "it is told once"
    await talk.session.heartbeat(talk.next(), heartbeat(5, Phase.UNKNOWN))
    assert (await plane.job()).state is JobState.RUNNING


async def test_a_server_that_was_held_up_gives_everybody_the_time_anew(
    plane: UseCases, clock: Clock
) -> None:
    """It has yet to read what they said meanwhile."""
    attention = Attention(clock.steady, LIMIT / 2)
    await plane.session()
    await plane.sessions.close(await plane.session("left"))
    clock.advance(LIMIT / 2)
    assert attention.lasted() == LIMIT / 2
    clock.advance(HOUR)
    for seconds in (0, LIMIT / 2, LIMIT / 2):
        clock.advance(seconds)
        await plane.sessions.find_lost(attention.lasted())
        assert [await state(plane, job) for job in ("j", "left")] == [JobState.RUNNING] * 2
    clock.advance(1)
    await plane.sessions.find_lost(attention.lasted())
    assert [await state(plane, job) for job in ("j", "left")] == [JobState.LOST] * 2


async def test_a_trainer_whose_stream_is_gone_is_lost_in_time(
    plane: UseCases, clock: Clock
) -> None:
    session = await plane.session()
    clock.advance(2)
    await plane.sessions.close(session)
    clock.advance(15)
    await plane.sessions.find_lost(17)
    assert (await plane.job()).state is JobState.RUNNING
    clock.advance(1)
    await plane.sessions.find_lost(18)
    job = await plane.job()
    assert job.state is JobState.LOST
    assert job.session is not None
    assert job.session.last_seen_time == NOW + 2 * SECOND


async def test_a_look_for_the_lost_passes_over_sessions_that_are_over_elsewhere(
    plane: UseCases, clock: Clock
) -> None:
    """This server has heard of none of that yet: the chore that looks must not end of it."""
    for name in ("fenced", "superseded", "deleted"):
        await plane.session(name)

    def elsewhere(tx: Transaction) -> None:
        for name, change in (("fenced", {"epoch": 9}), ("superseded", {"instance_id": "other"})):
            job = tx.job(name)
            assert job is not None
            assert job.session is not None
            tx.save_job(replace(job, session=replace(job.session, **change)))
        deleted = tx.job("deleted")
        assert deleted is not None
        tx.delete_job(deleted)

    await plane.store.write(elsewhere)
    clock.advance(HOUR)
    await plane.sessions.find_lost(HOUR)
    assert (await plane.job("superseded")).state is JobState.RUNNING


async def test_a_server_that_was_away_blames_nobody_for_its_own_silence(tmp_path: Path) -> None:
    clock = Clock()
    async with use_cases(tmp_path / "c.db", clock) as first:
        await first.session()
    clock.advance(3_600)
    async with use_cases(tmp_path / "c.db", clock) as second:
        clock.advance(10)
        await second.sessions.find_lost(10)
        assert (await second.job()).state is JobState.RUNNING
        await second.submit(set_rate())
        clock.advance(10)
        await second.sessions.find_lost(20)
        assert (await second.job()).state is JobState.LOST
        # Accepted after the trainer could last have been reached: nobody has it.
        cancelled = await second.updates.cancel("j", 1, "ann", "", 0)
        assert cancelled.outcome == Cancelled("ann", "")


async def test_a_clock_that_is_set_back_does_not_hide_what_a_dead_server_had_sent(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with use_cases(tmp_path / "c.db", clock) as first:
        session = await first.session()
        clock.advance(7_200)
        await first.submit(set_rate())
        session.deliveries.send([await first.update(1)])
        assert await delivered(session) == [1]
    clock.advance(-7_200)
    async with use_cases(tmp_path / "c.db", clock) as second:
        clock.advance(20)
        await second.sessions.find_lost(20)
        assert (await second.job()).state is JobState.LOST
        # Only the trainer can tell what became of it.
        assert (await second.updates.cancel("j", 1, "ann", "", 0)).is_open


async def test_a_stream_that_ends_while_others_are_marked_lost_stays_ended(
    plane: UseCases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plane.session("first")
    second = await plane.session("second")
    clock.advance(LIMIT + 1)
    write = plane.store.write

    async def while_the_second_ends(work: Callable[[Transaction], Any]) -> Any:
        monkeypatch.setattr(plane.store, "write", write)
        await plane.sessions.close(second)
        return await write(work)

    monkeypatch.setattr(plane.store, "write", while_the_second_ends)
    await plane.sessions.find_lost(HOUR)
    assert await state(plane, "first") is JobState.LOST
    assert await state(plane, "second") is JobState.RUNNING
    assert not await connected(plane, "second")
    clock.advance(LIMIT + 1)
    await plane.sessions.find_lost(LIMIT + 1)
    assert await state(plane, "second") is JobState.LOST
    assert not await connected(plane, "second")


async def test_only_a_live_job_whose_stream_is_open_is_marked_lost(plane: UseCases) -> None:
    """What the transaction finds counts, not what was known before it."""
    ended = await plane.session("ended")
    await plane.sessions.close(ended)
    done = Talk(await plane.session("done"))
    done.session._state = JobState.RUNNING
    await done.session.event(done.next(), TrainerEvent(Phase.FINISHED, "", NOW))
    before = [await plane.job("ended"), await plane.job("done")]
    await ended.mark_lost(16)
    await done.session.mark_lost(16)
    assert [await plane.job("ended"), await plane.job("done")] == before
    assert done.session.state is JobState.FINISHED


async def test_a_hello_that_was_stored_though_the_store_said_otherwise_holds_no_job(
    plane: UseCases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection to it broke during the commit, so that nobody knew."""
    write = plane.store.write

    async def unknown(work: Callable[[Transaction], Any]) -> Any:
        await write(work)
        raise Refusal(Reason.STORE_UNAVAILABLE, "the connection was lost during the commit")

    monkeypatch.setattr(plane.store, "write", unknown)
    for name in ("gone", "back"):
        with pytest.raises(Refusal, match="lost during"):
            await plane.session(name)
    monkeypatch.setattr(plane.store, "write", write)
    assert await connected(plane, "gone")
    await plane.session("back")
    clock.advance(LIMIT - 1)
    Talk(await plane.session("back")).next()
    clock.advance(2)
    await plane.sessions.find_lost(LIMIT + 1)
    assert (await state(plane, "gone"), await connected(plane, "gone")) == (JobState.LOST, False)
    assert (await state(plane, "back"), await connected(plane, "back")) == (JobState.RUNNING, True)
    # Nobody can have what was accepted meanwhile.
    await plane.submit(set_rate(), "gone")
    assert (await plane.updates.cancel("gone", 1, "ann", "", 0)).outcome == Cancelled("ann", "")


async def test_streams_of_jobs_that_were_not_alive_end_with_their_server_too(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with use_cases(tmp_path / "c.db", clock) as first:
        done = Talk(await first.session("done"))
        await done.session.event(done.next(), TrainerEvent(Phase.FINISHED, "", NOW))
        await first.session("lost")
        clock.advance(LIMIT + 1)
        await first.sessions.find_lost(LIMIT + 1)
        assert await connected(first, "lost"), "it may only have been stopped"
    async with use_cases(tmp_path / "c.db", clock) as second:
        await second.sessions.find_lost(0)
        assert await connected(second, "done"), "nobody could come back yet"
        clock.advance(LIMIT + 1)
        await second.submit(set_rate(), "lost")
        await second.sessions.find_lost(LIMIT + 1)
        for name, was in (("done", JobState.FINISHED), ("lost", JobState.LOST)):
            assert (await state(second, name), await connected(second, name)) == (was, False)
        cancelled = await second.updates.cancel("lost", 1, "ann", "", 0)
        assert cancelled.outcome == Cancelled("ann", ""), "nobody can have it"
        before = await second.job("done")
        await second.sessions.find_lost(LIMIT + 2)
        assert await second.job("done") == before, "it is told once"
