"""Light jobs against a control plane in this very loop."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from pathlib import Path

import pytest

from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2
from tests.support.plane import RunningPlane, error_of, running_plane, set_rate
from tests.support.processes import free_port
from trainer_agent.simulate import LightJobs
from trainer_agent.simulate.curve import CRITICAL_RATE
from trainer_agent.steering.actions import ActionKind

STEP = 0.01


def changing(parameter: str, value: float) -> update_pb2.UpdateSpec:
    spec = update_pb2.UpdateSpec()
    spec.changes.add(parameter=parameter).set.value.number = value
    return spec


def acting(kind: ActionKind) -> update_pb2.UpdateSpec:
    spec = update_pb2.UpdateSpec()
    getattr(spec.action, kind).SetInParent()
    return spec


def open_sockets() -> int:
    """How many sockets this process has open: two for each connection of a server in here."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += descriptor.readlink().name.startswith("socket:")
    return found


async def samples(plane: RunningPlane, job: str, metric: str) -> list[tuple[int, float]]:
    request = api.QueryMetricsRequest(job=f"jobs/{job}", names=[metric])
    answer = await plane.control.QueryMetrics(request)
    return [
        (step, value) for s in answer.series for step, value in zip(s.steps, s.values, strict=True)
    ]


async def test_a_job_declares_what_it_is(plane: RunningPlane) -> None:
    labels = {"team": "nlp"}
    async with LightJobs(
        plane.address, prefix="run", first=7, labels=labels, step_time=STEP, max_steps=90_000
    ) as jobs:
        await jobs[0].until(lambda: jobs[0].step > 5)
        job = await plane.get_job("run-00007")
    assert job.labels == labels
    assert job.method == "sft"
    assert job.state == job_pb2.JOB_STATE_RUNNING
    assert job.progress.max_steps == 90_000
    specs = {each.name: each for each in job.parameters}
    assert list(specs) == [
        "learning_rate",
        "weight_decay",
        "max_grad_norm",
        "gradient_accumulation_steps",
    ]
    assert specs["gradient_accumulation_steps"].kind == parameter_pb2.PARAMETER_KIND_INTEGER
    assert specs["learning_rate"].current_value.number == jobs[0].values["learning_rate"]


async def test_updates_come_into_force_at_the_next_step_as_read_back(plane: RunningPlane) -> None:
    async with LightJobs(plane.address, step_time=STEP, values={"learning_rate": 2e-4}) as jobs:
        job = jobs[0]
        before = job.step
        first = await plane.update(job.job_id, value=1e-4)
        multiplied = update_pb2.UpdateSpec()
        multiplied.changes.add(parameter="learning_rate").multiply.factor = 0.5
        second = await plane.update(job.job_id, spec=multiplied)
        applied = (await plane.wait(second.revision, job.job_id)).applied
        earlier = (await plane.wait(first.revision, job.job_id)).applied
        assert job.values == {"learning_rate": 5e-5}
        assert job.applied == [1, 2]
    assert before < earlier.step <= applied.step
    told = [(each.old_value.number, each.new_value.number) for each in applied.transitions]
    assert told == [(1e-4, 5e-5)]
    assert earlier.transitions[0].old_value.number == 2e-4


async def test_what_a_trainer_would_reject_is_rejected(plane: RunningPlane) -> None:
    """Beyond the bounds it is refused before; what only a trainer can see, it rejects."""
    async with LightJobs(plane.address, step_time=STEP) as jobs:
        job = jobs[0]
        error = await error_of(plane.update(job.job_id, value=-1.0))
        assert error.reason == "INVALID_ARGUMENT"
        doubled = update_pb2.UpdateSpec()
        doubled.changes.add(parameter="gradient_accumulation_steps").multiply.factor = 0.6
        doubled.changes.add(parameter="weight_decay").set.value.number = 0.5
        with pytest.raises(AssertionError, match="did not fail"):
            # Valid as far as the control plane can tell, where it does not know the rules.
            await error_of(plane.update(job.job_id, spec=doubled))
        rejected = (await plane.wait(1, job.job_id)).rejected
        assert (rejected.reason, rejected.parameter) == (
            "INVALID_VALUE",
            "gradient_accumulation_steps",
        )
        assert job.values["weight_decay"] == 0.01, "all of it or nothing"
        assert job.counts == {"rejected": 1}


async def test_an_update_for_a_later_step_is_held_until_then(plane: RunningPlane) -> None:
    async with LightJobs(plane.address, step_time=STEP) as jobs:
        job = jobs[0]
        due = job.step + 60
        spec = set_rate(5e-4)
        spec.apply_at.step = due
        held = await plane.update(job.job_id, spec=spec)
        now = await plane.update(job.job_id, value=6e-4)
        assert (await plane.wait(now.revision, job.job_id)).applied.step < due
        assert (await plane.wait(held.revision, job.job_id)).applied.step == due
        assert job.applied == [2, 1]


async def test_a_pause_holds_it_and_updates_still_come_into_force(plane: RunningPlane) -> None:
    async with LightJobs(plane.address, step_time=STEP) as jobs:
        job = jobs[0]
        paused = await plane.update(job.job_id, spec=acting(ActionKind.PAUSE))
        held_at = (await plane.wait(paused.revision, job.job_id)).applied.step - 1
        await job.until(lambda: job.paused)
        await plane.update(job.job_id, value=7e-4)
        await job.until(lambda: job.values["learning_rate"] == 7e-4)
        assert job.step == held_at
        evaluated = await plane.update(job.job_id, spec=acting(ActionKind.EVALUATE))
        result = (await plane.wait(evaluated.revision, job.job_id)).applied.action_result
        assert 1.0 < result.metrics["eval_loss"] < 5.0
        assert (await plane.get_job(job.job_id)).state == job_pb2.JOB_STATE_PAUSED
        resumed = time.monotonic()
        await plane.update(job.job_id, spec=acting(ActionKind.RESUME))
        await job.until(lambda: job.step > held_at + 3)
        # The clock of its steps stood still meanwhile.
        assert job.step - held_at <= (time.monotonic() - resumed) / STEP + 1


async def test_a_stop_ends_it_in_good_order(plane: RunningPlane) -> None:
    async with LightJobs(plane.address, step_time=STEP) as jobs:
        stop = await plane.update(jobs[0].job_id, spec=acting(ActionKind.STOP))
        assert (await plane.wait(stop.revision, jobs[0].job_id)).HasField("applied")
        await jobs[0].until(lambda: jobs[0].finished)
        await jobs[0].until(lambda: jobs[0].everything_stored and not jobs[0].connected)
        job = await plane.get_job(jobs[0].job_id)
    assert job.state == job_pb2.JOB_STATE_FINISHED
    assert job.exit.exit_code == 0


async def test_what_it_can_not_do_it_does_not_offer(plane: RunningPlane) -> None:
    async with LightJobs(plane.address, step_time=STEP) as jobs:
        spec = acting(ActionKind.SAVE_CHECKPOINT)
        error = await error_of(plane.update(jobs[0].job_id, spec=spec))
        assert error.reason == "OPERATION_UNSUPPORTED"


async def test_it_ends_by_itself_after_its_last_step(plane: RunningPlane) -> None:
    async with LightJobs(plane.address, step_time=0.001, max_steps=50, report_every=0.001) as jobs:
        await jobs[0].until(lambda: jobs[0].finished and jobs[0].everything_stored)
        assert jobs[0].step == 50
        job = await plane.get_job(jobs[0].job_id)
        assert job.progress.step == 50
        assert (await samples(plane, jobs[0].job_id, "loss"))[-1][0] == 50


async def test_the_same_seed_gives_the_same_samples(plane: RunningPlane) -> None:
    seen = []
    for prefix, report_every in (("a", 0.002), ("b", 0.01)):
        async with LightJobs(
            plane.address,
            prefix=prefix,
            report_every=report_every,
            seed=3,
            max_steps=40,
            step_time=0.002,
        ) as jobs:
            await jobs[0].until(lambda: jobs[0].finished and jobs[0].everything_stored)
            seen.append(dict(await samples(plane, jobs[0].job_id, "loss")))
    # Which steps are reported depends on the machine, what they come to does not.
    first, second = seen
    common = first.keys() & second.keys()
    assert 40 in common
    assert {step: first[step] for step in common} == {step: second[step] for step in common}


async def test_a_rate_that_is_too_high_shows_in_the_loss(plane: RunningPlane) -> None:
    async with LightJobs(plane.address, step_time=0.001, report_every=0.01) as jobs:
        job = jobs[0]
        before = job.loss
        await plane.update(job.job_id, value=CRITICAL_RATE * 1.8)
        await job.until(lambda: job.loss > before + 1.0)
        assert max(value for _, value in await samples(plane, job.job_id, "loss")) < 12.0


async def test_it_comes_back_after_a_restart_of_the_control_plane(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    settings = {"listen": listen, "heartbeat_interval": 0.2, "grace": 0.2}
    async with running_plane(tmp_path / "control.db", **settings) as plane:
        jobs = LightJobs(listen, 5, step_time=STEP, seed=1)
        await jobs.start()
        await plane.update(jobs[0].job_id, value=5e-4)
        await jobs[0].outcome(1)
    try:
        step = jobs[0].step
        await jobs.until(lambda: jobs.totals().connected == 0)
        async with running_plane(tmp_path / "control.db", **settings) as plane:
            await jobs.connected()
            await jobs[0].until(lambda: jobs[0].step > step)
            again = await plane.update(jobs[0].job_id, value=6e-4)
            assert (await plane.wait(again.revision, jobs[0].job_id)).HasField("applied")
            assert jobs.totals().sessions >= 10
            await jobs.until(lambda: all(job.everything_stored for job in jobs))
            first = await plane.get_update(1, jobs[0].job_id)
            assert first.state == update_pb2.UPDATE_STATE_APPLIED
            await jobs.end()
    finally:
        await jobs.kill()


async def test_it_ends_in_good_order_before_its_first_welcome_too(plane: RunningPlane) -> None:
    jobs = LightJobs(plane.address, 1, step_time=STEP)
    jobs[0].start()
    async with asyncio.timeout(30):
        while plane.plane.sessions.count < 1:  # noqa: ASYNC110 - one turn of the loop at a time
            await asyncio.sleep(0)
    assert jobs[0].sessions == 0, "the welcome has not come yet"
    await jobs[0].end()
    assert (await plane.get_job(jobs[0].job_id)).state == job_pb2.JOB_STATE_FINISHED


async def test_sessions_can_share_connections(plane: RunningPlane) -> None:
    before = open_sockets()
    async with LightJobs(plane.address, 12, step_time=STEP, connections=2) as jobs:
        updates = [await plane.update(job.job_id, value=5e-4) for job in jobs]
        for job, update in zip(jobs, updates, strict=True):
            assert (await job.outcome(update.revision)).HasField("applied")
        assert 4 <= open_sockets() - before <= 2 * (2 + 1), "theirs, and that of the callers"
        assert jobs.totals().connected == 12


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.long)])
async def test_many_in_one_process(plane: RunningPlane, count: int) -> None:
    async with LightJobs(plane.address, count, step_time=STEP, metrics=["loss"]) as jobs:
        updates = await asyncio.gather(*(plane.update(job.job_id, value=5e-4) for job in jobs))
        await jobs.until(lambda: jobs.totals().applied == count)
        assert {job.values["learning_rate"] for job in jobs} == {5e-4}
        assert [update.revision for update in updates] == [1] * count
        totals = jobs.totals()
        assert (totals.connected, totals.sessions, totals.rejected) == (count, count, 0)


async def test_a_control_plane_that_is_not_there_is_told(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    with pytest.raises(TimeoutError, match=re.escape("0 of 3 light jobs had a session")):
        async with LightJobs(nowhere, 3, ready_within=0.3):
            pass
