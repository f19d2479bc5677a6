"""What a control plane does by itself: chores go on, and what is old is forgotten bit by bit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from control_plane.domain import selector
from control_plane.domain.access import Access, Role
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState, TrainerExit
from control_plane.domain.session import Phase, TrainerEvent
from control_plane.domain.update import UpdateState
from control_plane.services import upkeep
from control_plane.services.access import Secrets, TokenService
from control_plane.services.audit import AuditRecords
from control_plane.services.metrics import MetricsQuery
from control_plane.services.ports import Transaction
from control_plane.services.upkeep import Retention
from grpc_runtime.audit.records import AuditPlace, AuditRecord
from tests.support.domain_values import NOW, SECOND, set_rate
from tests.support.use_cases import Talk, UseCases, eventually, heartbeat, use_cases

DAY = timedelta(days=1)
BRIEF = 0.02


@contextlib.asynccontextmanager
async def upkeep_of(plane: UseCases) -> AsyncIterator[dict[str, asyncio.Task[NoReturn]]]:
    """Has the chores done while the block runs; they are known by their names."""
    chores = {name: asyncio.create_task(each) for name, each in plane.upkeep.chores().items()}
    try:
        yield chores
    finally:
        for chore in chores.values():
            chore.cancel()
        await asyncio.wait(chores.values())


async def job_state(plane: UseCases) -> JobState:
    return (await plane.job()).state


async def span(plane: UseCases) -> tuple[int, int]:
    return await plane.store.read(lambda tx: tx.event_span())


async def test_the_chores_notice_silence_and_what_is_due(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "c.db", heartbeat_interval=0.2) as plane:
        await plane.sessions.close(await plane.session())
        await plane.submit(set_rate(deadline=NOW + SECOND))
        plane.clock.advance(60)
        async with upkeep_of(plane):
            expired = await plane.updates.wait("j", 1, 30)
            assert expired.state is UpdateState.EXPIRED
            async with asyncio.timeout(30):
                while await job_state(plane) is not JobState.LOST:  # noqa: ASYNC110 - nothing else tells
                    await asyncio.sleep(BRIEF)


async def test_the_chores_wait_for_a_store_that_is_away(tmp_path: Path) -> None:
    retention = Retention(None, timedelta(seconds=1), interval=BRIEF)
    database = tmp_path / "c.db"
    async with use_cases(database, heartbeat_interval=BRIEF, retention=retention) as plane:
        for name in "ab":
            await plane.jobs.create(name, {}, "")
        plane.clock.advance(60)
        plane.store.away = True
        async with upkeep_of(plane) as chores:
            await eventually(lambda: plane.store.refused >= 2, "that they have tried")
            assert not any(chore.done() for chore in chores.values())
            plane.store.away = False
            async with asyncio.timeout(30):
                while await span(plane) != (1, 2):  # noqa: ASYNC110 - nothing else tells
                    await asyncio.sleep(BRIEF)


async def test_a_chore_that_fails_for_another_reason_is_no_silent_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_listened: float) -> None:
        raise Refusal(Reason.PROTOCOL_VIOLATION, "a bug")

    async with use_cases(tmp_path / "c.db", heartbeat_interval=BRIEF) as plane:
        monkeypatch.setattr(plane.sessions, "find_lost", refuse)
        async with upkeep_of(plane) as chores:
            await asyncio.wait(chores.values(), timeout=30, return_when=asyncio.FIRST_COMPLETED)
            assert [name for name, chore in chores.items() if chore.done()] == ["look for silence"]
            with pytest.raises(Refusal, match="a bug"):
                await chores["look for silence"]


async def test_time_in_which_the_server_was_held_up_is_no_time_in_which_it_listened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listened: list[float] = []

    async def look(seconds: float) -> None:
        listened.append(seconds)

    async with use_cases(tmp_path / "c.db", heartbeat_interval=BRIEF) as plane:
        monkeypatch.setattr(plane.sessions, "find_lost", look)
        async with upkeep_of(plane):
            await eventually(lambda: listened, "that it looks")
            time.sleep(1)  # noqa: ASYNC251 - so that it can hear nobody
            before = len(listened)
            await eventually(lambda: len(listened) > before, "that it looks again")
            assert listened[before] < 1


@pytest.mark.parametrize(
    ("interval", "intervals", "allowed"), [(5.0, 3.0, 7.5), (1.0, 1.5, 0.75), (0.05, 1.5, 0.125)]
)
async def test_a_host_that_is_merely_busy_does_not_count_as_held_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interval: float,
    intervals: float,
    allowed: float,
) -> None:
    """Else nobody would ever be lost: each look comes half an interval after the last, or later."""
    told: list[float] = []
    monkeypatch.setattr(upkeep, "Attention", lambda _steady, seconds: told.append(seconds))
    database = tmp_path / "c.db"
    async with use_cases(
        database, heartbeat_interval=interval, lost_after_intervals=intervals
    ) as plane:
        for chore in plane.upkeep.chores().values():
            chore.close()
    assert told == [pytest.approx(allowed)]


@pytest.mark.parametrize("long", ["forget_jobs", "prune", "find_lost"])
async def test_a_chore_that_takes_long_keeps_no_server_from_saying_that_it_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, long: str
) -> None:
    """Else the others would take all of its jobs for lost."""
    begun = asyncio.Event()
    beats = looks = 0

    async def for_ever(*_listened: float) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def beat() -> None:
        nonlocal beats
        beats += 1

    async def look(_listened: float) -> None:
        nonlocal looks
        looks += 1

    retention = Retention(None, None, interval=BRIEF)
    async with use_cases(tmp_path / "c.db", heartbeat_interval=BRIEF, retention=retention) as plane:
        monkeypatch.setattr(plane.sessions, "beat", beat)
        monkeypatch.setattr(plane.sessions, "find_lost", look)
        monkeypatch.setattr(plane.sessions if long == "find_lost" else plane.upkeep, long, for_ever)
        async with upkeep_of(plane):
            await asyncio.wait_for(begun.wait(), 30)
            before = beats, looks
            await eventually(lambda: beats > before[0] + 1, "that it says so all the same")
            if long != "find_lost":
                await eventually(lambda: looks > before[1] + 1, "that it looks for silence")


def record(number: int) -> AuditRecord:
    return AuditRecord(
        time=NOW + number * DAY,
        principal="ops",
        peer="",
        method="/a.B/C",
        resource="jobs/j",
        summary="",
        reason="",
        code="OK",
        error_reason="",
        request_id=str(number),
    )


async def fill(plane: UseCases) -> None:
    """Three samples, three audit records and two tokens, of the days 0, 1 and 2."""
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(3, loss=[3.0, 2.0, 1.0]))
    await plane.telemetry.flush()
    await plane.store.write(lambda tx: tx.add_audit_records([record(n) for n in range(3)]))
    tokens = TokenService(plane.store, plane.clock, Secrets(lambda: "s", str))
    access = Access(Role.VIEWER)
    await tokens.create("ann", access, creator="root", lifetime=DAY)


async def kept(plane: UseCases) -> tuple[int, list[str], int]:
    """Samples, audit records by their numbers, tokens."""
    series = await plane.metrics.query(MetricsQuery("j"))
    records = await AuditRecords(plane.store).scan_audit_records(
        beyond=AuditPlace(NOW + 99 * DAY, 0), start=NOW, limit=9
    )

    def tokens(tx: Transaction) -> int:
        return len(tx.tokens(active_at=None, beyond=None, limit=9))

    samples = sum(each.statistics.count for each in series)
    return samples, [each.request_id for each in records], await plane.store.read(tokens)


async def test_nothing_is_forgotten_unless_that_is_asked_for(plane: UseCases) -> None:
    await fill(plane)
    plane.clock.advance(10_000 * 86_400)
    await end(plane, "ended", Phase.FINISHED)
    plane.clock.advance(10_000 * 86_400)
    await plane.upkeep.forget_jobs()
    await plane.upkeep.prune()
    assert await kept(plane) == (3, ["2", "1", "0"], 1)
    assert await jobs(plane) == ["ended", "j"]


async def end(plane: UseCases, job_id: str, phase: Phase) -> None:
    talk = Talk(await plane.session(job_id))
    ended = TrainerExit(1, None, "", plane.clock.now) if phase is Phase.EXITED else None
    await talk.session.event(talk.next(), TrainerEvent(phase, "", plane.clock.now, exit=ended))
    await plane.sessions.close(talk.session)


async def jobs(plane: UseCases) -> list[str]:
    page = await plane.jobs.list(selector.parse(""), (), after="", limit=99)
    return [view.job.id for view in page.jobs]


async def test_jobs_that_ended_long_ago_go_with_all_that_is_theirs_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_JOBS_AT_ONCE", 2)
    retention = Retention(None, None, jobs=7 * DAY)
    async with use_cases(tmp_path / "c.db", retention=retention) as plane:
        for name in ("failed", "finished", "labelled", "zero"):
            await end(plane, name, Phase.EXITED if name == "failed" else Phase.FINISHED)
        await plane.jobs.create("pending", {}, "")
        await plane.sessions.close(await plane.session("lost"))
        await plane.session("running")
        plane.clock.advance(60)
        await plane.sessions.find_lost(60)
        plane.clock.advance(7 * 86_400 - 61)
        await plane.jobs.label("labelled", {"keep": "me"}, (), "")
        await end(plane, "new", Phase.FINISHED)
        await plane.upkeep.forget_jobs()
        assert len(await jobs(plane)) == 8
        plane.clock.advance(2)
        await plane.upkeep.forget_jobs()
        assert await jobs(plane) == ["labelled", "lost", "new", "pending", "running"]
        with pytest.raises(Refusal) as refused:
            await plane.jobs.get("finished")
        assert refused.value.reason is Reason.JOB_NOT_FOUND


async def test_a_job_that_begins_anew_as_it_is_about_to_go_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with use_cases(tmp_path / "c.db", retention=Retention(None, None, jobs=DAY)) as plane:
        for name in ("again", "gone"):
            await end(plane, name, Phase.FINISHED)
        plane.clock.advance(2 * 86_400)
        delete = plane.jobs.delete

        async def after_it_has_begun(job_id: str, etag: str) -> None:
            if job_id == "again":
                await plane.session("again")
            else:
                await delete(job_id, "")  # somebody else was first
            await delete(job_id, etag)

        monkeypatch.setattr(plane.jobs, "delete", after_it_has_begun)
        await plane.upkeep.forget_jobs()
        assert await jobs(plane) == ["again"]


async def test_each_kind_is_kept_for_its_own_time_and_goes_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_PRUNE_CHUNK", 1)
    retention = Retention(samples=7 * DAY, events=None, audit=5 * DAY, tokens=2 * DAY)
    async with use_cases(tmp_path / "c.db", retention=retention) as plane:
        await fill(plane)
        plane.clock.advance(2.5 * 86_400)
        await plane.upkeep.prune()
        assert await kept(plane) == (3, ["2", "1", "0"], 1), "a token is kept after its end"
        plane.clock.advance(4 * 86_400)
        await plane.upkeep.prune()
        assert await kept(plane) == (3, ["2"], 0)
        plane.clock.advance(86_400)
        await plane.upkeep.prune()
        assert await kept(plane) == (0, [], 0)
