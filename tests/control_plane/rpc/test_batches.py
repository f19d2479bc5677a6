"""Batches and labels over the wire; watchers that do not read."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
import pytest

from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import update_pb2
from tests.support.plane import RunningPlane, error_of, running_plane, set_rate
from tests.support.scripted_agent import hello
from tests.support.use_cases import eventually


async def send(plane: RunningPlane, selector: str = "job", **fields: Any) -> Any:
    fields.setdefault("spec", set_rate())
    return await plane.control.BatchUpdateParameters(
        pb.BatchUpdateParametersRequest(selector=selector, **fields)
    )


async def test_a_batch_from_end_to_end(plane: RunningPlane) -> None:
    agents = {name: await plane.agent(name) for name in ("a", "b")}
    spec = update_pb2.UpdateSpec(reason="plateau")
    spec.changes.add(parameter="learning_rate").multiply.factor = 0.5
    would = await send(plane, spec=spec, validate_only=True)
    assert (would.batch.name, would.items[0].revision) == ("", 0)
    assert not would.items[0].HasField("refusal")
    assert would.items[0].transitions[0].new_value.number == pytest.approx(1e-5)
    made = await send(plane, spec=spec, request_id="r")
    assert await send(plane, spec=spec, request_id="r") == made
    name = made.batch.name
    assert [(i.job, i.revision) for i in made.items] == [("jobs/a", 1), ("jobs/b", 1)]
    assert (await plane.get_update(1, "a")).batch == name
    watch = plane.control.WatchBatch(pb.WatchBatchRequest(name=name))
    assert [i.job for i in (await watch.read()).items] == ["jobs/a", "jobs/b"]
    for agent in agents.values():
        await agent.receive()
        await agent.apply(1)
    last = None
    while (news := await watch.read()) is not grpc.aio.EOF:
        last = news.batch
    assert await watch.code() is grpc.StatusCode.OK
    assert last is not None
    assert (last.progress.applied, last.progress.total) == (2, 2)
    got = (await plane.control.GetBatch(pb.GetBatchRequest(name=name))).batch
    assert got == last
    listed = (await plane.control.ListBatches(pb.ListBatchesRequest(page_size=1))).batches
    assert list(listed) == [got]
    late = await error_of(plane.control.CancelBatch(pb.CancelBatchRequest(name=name)))
    assert (late.code, late.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BATCH_SETTLED")


async def test_what_a_refused_batch_says(plane: RunningPlane) -> None:
    for number in range(30):
        request = pb.CreateJobRequest(job_id=f"waits-{number:02}", labels={"fleet": ""})
        await plane.control.CreateJob(request)
    await plane.agent("good", labels={"fleet": ""})
    error = await error_of(send(plane, "fleet"))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_STARTED")
    assert error.metadata == {"refused": "30", "total": "31"}
    assert [v.field for v in error.violations][:2] == ["jobs/waits-00", "jobs/waits-01"]
    assert "more" in error.violations[-1].description
    some = await send(plane, "fleet", best_effort=True)
    assert [i.revision for i in some.items] == [1] + [0] * 30
    assert some.items[1].refusal.reason == "JOB_NOT_STARTED"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"selector": ""}, "selector"),
        ({"selector": "a=b", "jobs": ["jobs/j"]}, "selector"),
        ({"selector": "a=("}, "selector"),
        ({"selector": "", "jobs": ["j"]}, "jobs[0]"),
        ({"spec": update_pb2.UpdateSpec()}, "spec.changes"),
    ],
)
async def test_requests_that_make_no_sense(
    plane: RunningPlane, fields: dict[str, Any], field: str
) -> None:
    await plane.agent()
    error = await error_of(send(plane, **fields))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations[0].field == field


@pytest.mark.parametrize("name", ["batches/0", "batches/x", "7", "batches/", "batches/99"])
async def test_there_is_no_such_batch(plane: RunningPlane, name: str) -> None:
    error = await error_of(plane.control.GetBatch(pb.GetBatchRequest(name=name)))
    gone = name == "batches/99"
    assert error.code is (grpc.StatusCode.NOT_FOUND if gone else grpc.StatusCode.INVALID_ARGUMENT)


async def test_labels_by_callers_stay(plane: RunningPlane) -> None:
    agent = await plane.agent(labels={"team": "nlp", "tier": "low"})
    watch = plane.control.WatchJobs(pb.WatchJobsRequest(selector="tier=gold"))
    assert (await watch.read()).type == pb.JOB_EVENT_TYPE_BOOKMARK
    etag = (await plane.get_job()).etag
    request = pb.UpdateJobRequest(
        name="jobs/j", set_labels={"tier": "gold"}, remove_labels=["team"], etag=etag
    )
    check = pb.UpdateJobRequest(validate_only=True)
    check.MergeFrom(request)
    assert (await plane.control.UpdateJob(check)).job.labels == {"tier": "gold"}
    assert (await plane.get_job()).etag == etag
    changed = (await plane.control.UpdateJob(request)).job
    assert changed.labels == {"tier": "gold"}
    seen = await watch.read()
    assert (seen.type, seen.job.labels["tier"]) == (pb.JOB_EVENT_TYPE_MODIFIED, "gold")
    stale = await error_of(plane.control.UpdateJob(request))
    assert (stale.code, stale.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    await agent.leave()
    await plane.agent(labels={"team": "nlp", "tier": "low", "new": "1"})
    assert (await plane.get_job()).labels == {"tier": "gold", "new": "1"}


async def test_updates_of_all_jobs(plane: RunningPlane) -> None:
    for name, team in (("a", "nlp"), ("b", "vision")):
        await plane.agent(name, labels={"team": team})
        for _ in range(3):
            await plane.update(name)

    async def names(**fields: Any) -> list[str]:
        found: list[str] = []
        request = pb.ListUpdatesRequest(parent="jobs/-", page_size=2, **fields)
        while True:
            page = await plane.control.ListUpdates(request)
            found += [update.name for update in page.updates]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    assert await names(order=pb.UPDATE_ORDER_OLDEST_FIRST) == [
        f"jobs/{name}/updates/{number}" for name in "ab" for number in (1, 2, 3)
    ]
    assert len(await names(author="anonymous")) == 6
    assert await names(author="somebody") == []
    assert [name[:6] for name in await names(selector="team=nlp")] == ["jobs/a"] * 3
    page = await plane.control.ListUpdates(pb.ListUpdatesRequest(parent="jobs/-", page_size=2))
    other = pb.ListUpdatesRequest(parent="jobs/-", author="me", page_token=page.next_page_token)
    assert (await error_of(plane.control.ListUpdates(other))).reason == "PAGE_TOKEN_INVALID"
    wrong = pb.ListUpdatesRequest(parent="jobs/a", selector="team=nlp")
    assert (await error_of(plane.control.ListUpdates(wrong))).violations[0].field == "selector"


async def test_page_tokens_outlive_a_restart(tmp_path: Path) -> None:
    asked = pb.ListUpdatesRequest(parent="jobs/-", page_size=2)
    async with running_plane(tmp_path / "control.db") as plane:
        await plane.agent()
        for _ in range(3):
            await plane.update()
        asked.page_token = (await plane.control.ListUpdates(asked)).next_page_token
    async with running_plane(tmp_path / "control.db") as plane:
        [rest] = (await plane.control.ListUpdates(asked)).updates
        assert rest.revision == 1


async def test_a_watcher_who_does_not_read_is_cut(tmp_path: Path) -> None:
    """It holds up nobody, and learns why once it reads."""
    async with running_plane(tmp_path / "control.db", watch_patience=0.3) as plane:
        large = hello()
        large.state.parameters[0].description = "x" * 300_000
        await plane.agent(state=large.state)
        idle, busy = (plane.control.WatchJobs(pb.WatchJobsRequest()) for _ in range(2))
        for watch in (idle, busy):
            assert (await watch.read()).type == pb.JOB_EVENT_TYPE_SNAPSHOT
            assert (await watch.read()).type == pb.JOB_EVENT_TYPE_BOOKMARK
        # More than the buffers on the way to somebody who does not read can hold.
        for number in range(30):
            put = pb.UpdateJobRequest(name="jobs/j", set_labels={"n": str(number)})
            await plane.control.UpdateJob(put)
            seen = await asyncio.wait_for(busy.read(), 10)
            assert seen.job.labels["n"] == str(number)
        await eventually(lambda: plane.plane.watches.count == 1, "one is cut")
        cut = await error_of(_read_on(idle))
        assert (cut.code, cut.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "WATCHER_TOO_SLOW",
        )
        assert not busy.done()


async def test_a_watcher_who_was_cut_and_still_does_not_read_counts_as_a_watcher(
    tmp_path: Path,
) -> None:
    """Its status waits for it, and what waits has to have a limit."""
    limits = {"watch_patience": 0.3, "max_watches_per_principal": 1}
    async with running_plane(tmp_path / "control.db", **limits) as plane:
        large = hello()
        large.state.parameters[0].description = "x" * 300_000
        await plane.agent(state=large.state)
        idle = plane.control.WatchJobs(pb.WatchJobsRequest())
        assert (await idle.read()).type == pb.JOB_EVENT_TYPE_SNAPSHOT
        for number in range(30):
            put = pb.UpdateJobRequest(name="jobs/j", set_labels={"n": str(number)})
            await plane.control.UpdateJob(put)
        await eventually(lambda: plane.plane.watches.count == 0, "it is cut")
        refused = await error_of(_read_on(plane.control.WatchJobs(pb.WatchJobsRequest())))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason != "WATCHER_TOO_SLOW"
        idle.cancel()
        async with asyncio.timeout(30):
            while True:
                again = plane.control.WatchJobs(pb.WatchJobsRequest())
                with contextlib.suppress(grpc.aio.AioRpcError):
                    assert (await again.read()).type == pb.JOB_EVENT_TYPE_SNAPSHOT
                    break
                await asyncio.sleep(0.01)  # the server hears of it in a moment


async def _read_on(watch: Any) -> None:
    while await asyncio.wait_for(watch.read(), 10) is not grpc.aio.EOF:
        pass
