"""Short runs with faults; `make faults` has longer ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.callers import Servers
from tests.faults.engagement import Setup, _Engagement, engage
from tests.faults.history import History, recording
from tests.faults.impostor import pretend
from tests.faults.mutant_stage import Place, one_server
from tests.faults.records import Answered, Confirmed, Fault, StoredUpdate, Watched
from tests.faults.report import lacking, late_lies, unexpected
from tests.faults.schedule import FaultKind, kinds, schedule
from tests.faults.validators import validate


def _setup(seed: int, seconds: float, **more: Any) -> Setup:
    return Setup(seed=seed, seconds=seconds, jobs=8, callers=6, watchers=2, **more)


async def run(setup: Setup, directory: Path) -> History:
    path = directory / "history.jsonl"
    with recording(path) as recorder:
        await engage(setup, recorder)
    return History.load(path)


def check(history: History) -> None:
    """All that was promised holds, and there was enough of everything to tell."""
    found = validate(history)
    assert not found, "\n".join(map(str, found[:10]))
    assert not unexpected(history)
    assert not lacking(history)
    faults = {fault.fault for fault in history.of(Fault)}
    assert {FaultKind.KILL_REPLICA, FaultKind.IMPOSTOR} <= faults
    assert len(history.of(Answered)) > 10
    assert len(history.of(Watched)) > 50
    states = Counter(update.state for update in history.of(StoredUpdate))
    assert states["applied"] > 10, states


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_replicas_keep_their_promises_while_everything_fails(tmp_path: Path) -> None:
    check(await run(_setup(1409, 12.0), tmp_path))


@pytest.mark.timeout(180)
async def test_one_server_on_a_file_keeps_its_promises(tmp_path: Path) -> None:
    check(await run(_setup(8009, 5.0, replicas=1, postgres=False), tmp_path))


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_training_processes_and_agents_that_fail(tmp_path: Path) -> None:
    setup = Setup(seed=8, seconds=8.0, replicas=1, postgres=False, jobs=2, processes=1)
    history = await run(setup, tmp_path)
    found = validate(history)
    assert not found, "\n".join(map(str, found[:10]))
    assert history.of(Confirmed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 104))
async def test_more_courses_of_faults(seed: int, tmp_path: Path) -> None:
    check(await run(_setup(seed, 40.0), tmp_path))


async def test_an_impostor_lies_once_its_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with recording(path) as recorder:
        async with one_server(Place(tmp_path, ""), recorder) as (stage, plane):
            job = await stage.job(step_time=0.002)  # the lie is about something some steps ahead
            await stage.watch()
            assert job.ear is not None
            assert job.ear.hello is not None
            servers = Servers([plane.address], recorder)
            assert await pretend(job, job.ear.hello, plane.address, servers, seconds=60.0)
            await servers.close()
            await stage.quiet()
    history = History.load(path)
    assert late_lies(history) == 1
    assert not validate(history)
    assert not lacking(history)


async def test_what_has_ended_somebody_is_told_at_once() -> None:
    async def breaks() -> None:
        raise OSError("no checkpoint")

    engagement = _Engagement.__new__(_Engagement)
    engagement._always = [asyncio.create_task(breaks())]
    await asyncio.wait(engagement._always)
    with pytest.raises(OSError, match="no checkpoint"):
        engagement._all_served()


def test_a_seed_is_a_course_of_faults() -> None:
    assert schedule(1, 60, postgres=True) == schedule(1, 60, postgres=True)
    assert schedule(1, 60, postgres=True) != schedule(2, 60, postgres=True)


@pytest.mark.parametrize("postgres", [True, False])
@pytest.mark.parametrize("processes", [True, False])
def test_faults_of_every_kind_come_in_time(*, postgres: bool, processes: bool) -> None:
    planned = schedule(1, 300, postgres=postgres, processes=processes)
    possible = kinds(postgres=postgres, processes=processes)
    assert {each.kind for each in planned} == set(possible)
    assert [each.at for each in planned] == sorted(each.at for each in planned)
    assert all(each.at > 0 and each.at + each.lasting <= 300 for each in planned)
