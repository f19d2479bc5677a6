"""What the frozen version has left behind: checkpoints, and a database."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from midcourse.control.v1 import control_pb2, update_pb2
from tests.compatibility import frozen
from tests.support.plain_loop import PlainLoop
from tests.support.plane import request, running_plane, set_rate


@pytest.fixture
def resumed() -> tuple[PlainLoop, dict[str, Any]]:
    """A loop of the present version that has loaded what a loop of the frozen one had saved."""
    saved = json.loads(frozen.CHECKPOINT.read_text("utf-8"))
    loop = PlainLoop(shape=lambda step: 1.0 - step / 100)
    group = loop.optimizer.param_groups[0]
    group["lr"], group["initial_lr"] = saved["optimizer_rate"], saved["initial_rate"]
    loop.scheduler.load_state_dict({**loop.scheduler.state_dict(), **saved["scheduler"]})
    loop.controller.load_state_dict(saved["controller"])
    loop.global_step = saved["step"]
    return loop, saved


def test_a_checkpoint_is_gone_on_from(resumed: tuple[PlainLoop, dict[str, Any]]) -> None:
    loop, saved = resumed
    assert loop.rate == saved["rate"]
    # What was in force is not applied again, and is answered as it was.
    for revision in (1, 2, 3):
        loop.deliver(revision, request("j").spec.changes[0])
    loop.steps(2)
    assert loop.used[saved["step"] + 1] == saved["rate"]
    told = {each.revision: each for each in loop.outcomes}
    assert told[1].applied.step == 2
    assert told[2].rejected.reason == "INVALID_VALUE"
    assert told[3].applied.step == 4
    assert [(each.first, each.last) for each in loop.controller.in_force()] == [(1, 1), (3, 3)]


async def test_a_database_is_served_on(tmp_path: Path) -> None:
    """It fails where the schema has changed without a migration.

    Before the first release the one migration may change, and the fixture with it; from then on a
    change is a migration more.
    """
    path = tmp_path / "control.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(frozen.DATABASE.read_text("utf-8"))
    async with running_plane(path) as plane:
        updates = [await plane.get_update(revision, "job") for revision in (1, 2, 3, 4)]
        assert [each.state for each in updates] == [
            update_pb2.UPDATE_STATE_APPLIED,
            update_pb2.UPDATE_STATE_CANCELLED,
            update_pb2.UPDATE_STATE_REJECTED,
            update_pb2.UPDATE_STATE_APPLIED,
        ]
        asked = control_pb2.QueryMetricsRequest(job="jobs/job", names=["loss"])
        (series,) = (await plane.control.QueryMetrics(asked)).series
        assert list(series.steps) == [1, 2, 3]
        agent = await plane.agent("job", instance_id="instance-1", start_step=4)
        update = await plane.update("job", spec=set_rate(5e-5, force=True))
        assert update.revision == 5
        await agent.receive()
