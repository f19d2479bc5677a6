"""What was answered survives a kill, and the next process settles what was left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from analytics_service.chat.conversation import MessageState
from analytics_service.store import open_store
from analytics_service.usage.records import CallOutcome
from grpc_runtime.sql import DatabaseOpenError
from tests.support.analytics_store import (
    ALL_DAY,
    NOW,
    all_usage,
    call,
    finish,
    next_turn,
    run_sql,
    turn,
)
from tests.support.processes import ROOT

BEGIN_AND_WAIT = """
import asyncio, sys
from decimal import Decimal
from analytics_service.store import open_store
from tests.support.analytics_store import ALL_DAY, NOW, call, turn

async def main():
    store = await open_store(sys.argv[1])
    await store.beat("r1", NOW)
    await store.set_budget(ALL_DAY, Decimal("2.5"), NOW)
    await store.begin_turn(turn(request_id="q"), call("u1", estimated_cost=Decimal("0.125")))
    print("begun", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}


def begin_and_be_killed(address: str | Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", BEGIN_AND_WAIT, str(address)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as child:
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        assert "begun\n" in lines
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


async def check_recovery(address: str | Path) -> None:
    store = await open_store(address)
    # Nothing was lost: the session is busy, the request known, the money set aside.
    begun = await store.begin_turn(turn(request_id="q"), call("u2"))
    assert begun.replayed
    assert begun.answer.state is MessageState.RUNNING
    budget = await store.get_budget(ALL_DAY, NOW)
    assert budget.limit == Decimal("2.5")
    assert budget.reserved == 1
    # Alive as far as anybody knows, then silent for too long.
    later = NOW + timedelta(minutes=1)
    assert await store.recover("r2", {}, later) == 0
    assert await store.recover("r2", {"r1": NOW}, later) == 2
    budget = await store.get_budget(ALL_DAY, NOW)
    assert budget.spent == 1
    assert budget.reserved == 0
    [settled] = await all_usage(store)
    assert settled.outcome is CallOutcome.INTERRUPTED
    again = await store.begin_turn(
        await next_turn(store, request_id="q2", replica="r2"), call("u3", replica="r2")
    )
    assert again.answer.number == 4
    assert (await finish(store, again)).state is MessageState.COMPLETE
    await store.close()


async def test_a_killed_process_leaves_nothing_unsettled_in_sqlite(path: Path) -> None:
    begin_and_be_killed(path)
    await check_recovery(path)


async def test_a_killed_process_leaves_nothing_unsettled_in_postgresql(
    postgres_address: str,
) -> None:
    begin_and_be_killed(postgres_address)
    await check_recovery(postgres_address)


async def test_an_address_of_nothing_that_is_known_is_refused() -> None:
    with pytest.raises(DatabaseOpenError, match="mysql://"):
        await open_store("mysql://root:secret@localhost/x")


async def test_a_database_of_the_control_plane_is_left_alone(path: Path) -> None:
    from control_plane.store import open_store as open_control_plane

    theirs = await open_control_plane(path)
    await theirs.close()
    with pytest.raises(DatabaseOpenError, match="has schema 0001"):
        await open_store(path)


async def test_a_database_is_opened_again_as_it_was(path: Path) -> None:
    store = await open_store(f"sqlite:///{path}")
    begun = await store.begin_turn(turn(), call("u1"))
    await store.close()
    store = await open_store(path)
    assert await store.get_message("s", 2) == begun.answer
    assert await run_sql(store, "SELECT version_num FROM alembic_version") == [("analytics_0001",)]
    await store.close()
