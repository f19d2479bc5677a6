"""examples/backend_service.py: a service on top of the client."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.client import AsyncClient
from examples.backend_service import Guard, Rule, serve
from midcourse.control.v1 import update_pb2
from tests.support.applying_agent import ScriptedAgent
from tests.support.fake_control_plane import make_series
from tests.support.plane import running_plane

RULE = Rule(rises=3)


@pytest.mark.parametrize(
    ("values", "answered", "due"),
    [
        ([1, 2, 3, 4], 0, 4),
        ([9, 1, 2, 3, 4], 0, 5),
        ([1, 2, 3], 0, None),
        ([1, 2, 2, 3], 0, None),
        ([1, 2, 3, 4], 1, 4),
        ([1, 2, 3, 4], 2, None),
        ([1, 2, math.nan, 3, 4], 0, 5),
        ([], 0, None),
    ],
)
def test_when_it_is_time(values: Sequence[float], answered: int, due: int | None) -> None:
    assert RULE.due_at(make_series("eval_loss", list(values)), answered) == due


@given(st.lists(st.floats(0, 10), max_size=12), st.integers(1, 4))
def test_what_falls_or_stays_is_left_alone(values: list[float], rises: int) -> None:
    falling = make_series("eval_loss", sorted(values, reverse=True))
    assert Rule(rises=rises).due_at(falling, 0) is None


@contextlib.asynccontextmanager
async def agent(
    address: str, job: str, instance: str = "instance-1", **labels: str
) -> AsyncIterator[ScriptedAgent]:
    agent = await asyncio.to_thread(ScriptedAgent, address, job, instance=instance, **labels)
    try:
        yield agent
    finally:
        await asyncio.to_thread(agent.close)


async def applied(plane: AsyncClient, job: str, revision: int) -> update_pb2.Update:
    """Waits until there is such an update and it is in force."""
    async with plane.watch_jobs(job=job) as watch:
        async for event in watch:
            if event.job.last_update.revision >= revision:
                break
    return await plane.wait_applied(job, revision, timeout=20)


async def test_each_rise_is_answered_once_whatever_is_killed(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(60),
        running_plane(tmp_path / "c.db") as running,
        AsyncClient(running.address) as plane,
        agent(running.address, "worse", team="nlp") as worse,
        agent(running.address, "better", team="nlp") as better,
        agent(running.address, "foreign", team="vision") as foreign,
    ):
        service = await asyncio.create_subprocess_exec(
            sys.executable,
            "examples/backend_service.py",
            *("--selector", "team=nlp", "--control-plane", running.address),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=asyncio.subprocess.PIPE,
        )
        assert service.stderr is not None
        for n, step in enumerate((10, 20, 30, 40)):
            worse.beat(step, eval_loss=1.0 + n / 10)
            foreign.beat(step, eval_loss=1.0 + n / 10)
            better.beat(step, eval_loss=1.0 - n / 10)
        first = await applied(plane, "worse", 1)
        assert first.spec.reason == "eval_loss rose 3 times in a row up to step 40"
        (moved,) = first.applied.transitions
        assert (moved.old_value.number, moved.new_value.number) == (2e-5, 1e-5)
        log = b""
        while b"learning rate 2e-05 -> 1e-05 from step 121 on" not in log:
            line = await service.stderr.readline()
            assert line, log
            log += line
        service.send_signal(signal.SIGTERM)
        assert (await service.communicate())[1].endswith(b"INFO ended\n")
        assert service.returncode == 0

        # Another one sees the same rise, and that it has been answered.
        guard = asyncio.create_task(Guard(plane, "team=nlp", RULE).run())
        for n, step in enumerate((50, 60, 70)):
            worse.beat(step, eval_loss=1.4 + n / 10)
        await applied(plane, "worse", 2)

        # Another process trains the same job from the start, and gets worse at the same steps.
        await asyncio.to_thread(worse.close)
        async with agent(running.address, "worse", "instance-2", team="nlp") as anew:
            for n, step in enumerate((10, 20, 30, 40)):
                anew.beat(step, eval_loss=1.0 + n / 10)
            await applied(plane, "worse", 3)
        guard.cancel()
        with pytest.raises(asyncio.CancelledError):
            await guard
        uid = (await plane.get_job("worse")).uid
        assert [update.request_id async for update in plane.list_updates()] == [
            f"guard:{uid}:instance-2:40",
            f"guard:{uid}:instance-1:70",
            f"guard:{uid}:instance-1:40",
        ]


async def test_a_service_that_reaches_nobody_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert await serve("127.0.0.1:9", "", RULE) == 1
    assert "no control plane answers at 127.0.0.1:9" in caplog.text
