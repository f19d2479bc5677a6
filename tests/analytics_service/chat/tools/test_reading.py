"""The tools against a real control plane with a run whose course is known."""

from __future__ import annotations

import asyncio
import math
import statistics

import pytest

from analytics_service.chat.conversation import Citation
from analytics_service.chat.tools import Toolbox
from analytics_service.chat.tools.sentences import sentences
from control_plane.client import Client
from midcourse.agent.v1 import session_pb2 as agent_pb
from midcourse.control.v1 import update_pb2
from tests.support import known_run as run
from tests.support.plane import RunningPlane
from tests.support.scripted_agent import LEARNING_RATE
from tests.support.tool_calls import asked, fail, read


async def test_list_jobs(demo: RunningPlane, tools: Toolbox, client: Client) -> None:
    await asyncio.to_thread(client.create_job, "idle", labels={"team": "vision"})
    listed = await read(tools, "list_jobs")
    assert [each["job"] for each in listed["jobs"]] == ["demo", "idle"]
    assert listed["more"] is False
    assert listed["read_at"] == "2026-11-23T08:30:00Z"
    first = listed["jobs"][0]
    assert (first["state"], first["step"], first["max_steps"]) == ("running", 60, 100)
    assert first["labels"] == {"team": "nlp"}
    assert first["newest_revision"] == 2
    selected = await read(tools, "list_jobs", selector="team=vision", states=["pending"])
    assert [each["job"] for each in selected["jobs"]] == ["idle"]
    short = await read(tools, "list_jobs", limit=1)
    assert (len(short["jobs"]), short["more"]) == (1, True)


async def test_get_job(demo: RunningPlane, tools: Toolbox) -> None:
    outcome = await tools.call(asked("get_job", job="jobs/demo"))
    assert outcome.result is not None
    job = outcome.result
    assert (job["job"], job["state"], job["method"]) == ("demo", "running", "sft")
    (rate,) = job["parameters"]
    assert rate["parameter"] == "learning_rate"
    assert rate["in_force"] == [{"value": run.NEW_RATE, "since_step": 30, "by_revision": 1}]
    assert rate["bounds"] == {"minimum": 0.0, "maximum": 1.0}
    assert "multiply" in rate["operations"]
    assert {"metric": "loss", "step": 60, "value": run.LOSS[-1]} in job["metrics"]
    assert job["last_update"]["rejected"]["message"] == "not at this boundary"
    assert outcome.citations == (Citation("demo", "job"),)
    assert (outcome.call_id, outcome.tool, outcome.by_service) == ("call_1", "get_job", False)
    assert outcome.duration > 0


async def test_the_known_spike_and_the_change_before_it(demo: RunningPlane, tools: Toolbox) -> None:
    outcome = await tools.call(
        asked("metric_series", job="demo", metrics=["loss"], compare_step=30, compare_window=10)
    )
    assert outcome.result is not None
    (loss,) = outcome.result["series"]
    (spike,) = loss["spikes"]
    assert spike["start_step"] == run.SPIKE_STEP
    assert (spike["peak_step"], spike["peak_value"]) == (run.PEAK_STEP, run.PEAK)
    assert (spike["end_step"], spike["ending"]) == (run.RECOVERED_STEP, "recovered")
    assert spike["direction"] == "up"
    assert loss["points"] == [[i + 1, value] for i, value in enumerate(run.LOSS)]
    numbers = loss["statistics"]
    assert (numbers["count"], numbers["exact"]) == (60, True)
    assert (numbers["maximum_value"], numbers["maximum_step"]) == (run.PEAK, run.PEAK_STEP)
    assert numbers["minimum_value"] == min(run.LOSS)
    assert numbers["mean"] == pytest.approx(statistics.fmean(run.LOSS))
    before, after = loss["comparison"]["before"], loss["comparison"]["after"]
    assert before["mean"] == pytest.approx(statistics.fmean(run.LOSS[19:29]))
    assert after["median"] == pytest.approx(statistics.median(run.LOSS[29:39]))
    assert outcome.citations == (Citation("demo", "metric", "loss", 1, 60),)

    history = await tools.call(asked("update_history", job="demo"))
    assert history.result is not None
    rejected, applied = history.result["updates"]
    assert (applied["revision"], applied["state"], applied["author"]) == (1, "applied", "anonymous")
    assert applied["applied_at_step"] == run.CHANGE_STEP
    assert applied["reason"] == run.REASON
    assert applied["changes"] == [
        {"parameter": "learning_rate", "operation": "set", "value": run.NEW_RATE}
    ]
    assert applied["transitions"] == [
        {"parameter": "learning_rate", "old": run.OLD_RATE, "new": run.NEW_RATE}
    ]
    assert applied["time"].endswith("Z")
    assert rejected["rejected"]["reason"] == "TRAINER_BUSY"
    assert history.citations == (Citation("demo", "updates", "", 30, 30),)
    only = await read(tools, "update_history", job="demo", states=["applied"], limit=1)
    assert [each["revision"] for each in only["updates"]] == [1]


async def test_what_a_roll_back_took_away_is_said(plane: RunningPlane, tools: Toolbox) -> None:
    cut, back = (agent_pb.LocalUpdate(request_id=f"guard-{number}") for number in (1, 2))
    cut.spec.changes.add(parameter="learning_rate").multiply.factor = 0.5
    back.spec.action.roll_back.checkpoint = "/runs/checkpoint-20"
    came_back = agent_pb.FullState(
        parameters=[LEARNING_RATE],
        actions=[update_pb2.ACTION_KIND_ROLL_BACK],
        phase=agent_pb.TRAINER_PHASE_TRAINING,
        local_updates=[cut, back],
    )
    agent = await plane.agent("demo", start_step=20, state=came_back)
    await agent.receive(2)
    outcome = agent_pb.UpdateOutcome(revision=1, rolled_back=True)
    outcome.applied.step = 25
    await agent.acknowledged(await agent.say(outcome=outcome))
    history = await tools.call(asked("update_history", job="demo"))
    assert history.result is not None
    roll_back, gone = history.result["updates"]
    assert (gone["revision"], gone["state"], gone["rolled_back_by"]) == (1, "applied", 2)
    assert "rolled_back_by" not in roll_back
    assert "Change 2 rolled it back: it is in force no more." in sentences([history])


async def test_actions_and_the_guard_in_a_history(plane: RunningPlane, tools: Toolbox) -> None:
    agent = await plane.agent("demo")
    local = agent_pb.LocalUpdate(request_id="guard-1")
    local.spec.reason = "loss is not finite"
    local.spec.changes.add(parameter="learning_rate").multiply.factor = 0.1
    local.spec.action.roll_back.checkpoint = "/runs/checkpoint-20"
    await agent.say(local_update=local)
    await agent.receive()
    outcome = agent_pb.UpdateOutcome(revision=1)
    outcome.applied.step = 21
    outcome.applied.action_result.checkpoint = "/runs/checkpoint-20"
    outcome.applied.action_result.metrics["eval_loss"] = 1.25
    await agent.acknowledged(await agent.say(outcome=outcome))
    (update,) = (await read(tools, "update_history", job="demo"))["updates"]
    assert (update["author"], update["action"]) == ("guard", "roll_back")
    assert update["to_checkpoint"] == update["checkpoint"] == "/runs/checkpoint-20"
    assert update["evaluated"] == {"eval_loss": 1.25}
    assert update["changes"] == [
        {"parameter": "learning_rate", "operation": "multiply", "factor": 0.1}
    ]


async def test_ranges_and_thinning_keep_the_statistics(demo: RunningPlane, tools: Toolbox) -> None:
    (loss,) = (
        await read(
            tools, "metric_series", job="demo", metrics=["loss"], first_step=11, max_points=6
        )
    )["series"]
    assert loss["statistics"]["count"] == 50
    assert loss["statistics"]["first_step"] == 11
    assert len(loss["points"]) <= 6
    assert loss["points_thinned_out"] is True
    assert [run.PEAK_STEP, run.PEAK] in loss["points"]
    assert loss["spikes"][0]["start_step"] == run.SPIKE_STEP
    (quiet,) = (await read(tools, "metric_series", job="demo", metrics=["loss"], last_step=30))[
        "series"
    ]
    assert quiet["spikes"] == []


async def test_metrics_that_are_not_there_are_named(demo: RunningPlane, tools: Toolbox) -> None:
    answer = await read(tools, "metric_series", job="demo", metrics=["losss", "loss"])
    assert answer["no_samples_in_range"] == ["losss"]
    assert answer["metrics_of_the_job"] == ["learning_rate", "loss"]
    assert [each["metric"] for each in answer["series"]] == ["loss"]
    by_default = await read(tools, "metric_series", job="demo")
    assert [each["metric"] for each in by_default["series"]] == ["loss"]


async def test_what_is_no_number_is_told_as_text(plane: RunningPlane, tools: Toolbox) -> None:
    agent = await run.start_run(plane)
    values = [1.0, math.nan, math.inf, -math.inf]
    await run.report(agent, run.column("loss", values), step=4)
    (loss,) = (await read(tools, "metric_series", job="demo"))["series"]
    assert loss["points"] == [[1, 1.0], [2, "NaN"], [3, "Infinity"], [4, "-Infinity"]]
    assert loss["statistics"]["non_finite_count"] == 3
    assert loss["statistics"]["first_non_finite_step"] == 2
    job = await read(tools, "get_job", job="demo")
    assert job["metrics"] == [{"metric": "loss", "step": 4, "value": "-Infinity"}]


async def test_a_job_without_anything_says_so(tools: Toolbox, client: Client) -> None:
    await asyncio.to_thread(client.create_job, "idle")
    assert (await read(tools, "metric_series", job="idle"))["series"] == []
    assert (await read(tools, "update_history", job="idle"))["updates"] == []
    job = await read(tools, "get_job", job="idle")
    assert job["state"] == "pending"
    assert "step" not in job


async def test_results_are_bounded_and_say_what_is_missing(
    plane: RunningPlane, tools: Toolbox
) -> None:
    labels = {f"key-{i}": "v" * 60 for i in range(60)}
    agents = [await plane.agent(f"job-{i:02}", labels=labels) for i in range(12)]
    listed = await read(tools, "list_jobs", limit=50)
    assert listed["left_out"]["jobs"] == 12 - len(listed["jobs"]) > 0
    assert listed["jobs"][0]["labels_left_out"] == 40
    names = [f"metric/{i}/" + "m" * 150 for i in range(8)]
    values = [1 / 3 + i for i in range(3_000)]
    for name in names:
        await run.report(agents[0], run.column(name, values), step=3_000)
    answer = await read(tools, "metric_series", job="job-00", metrics=names, max_points=200)
    assert len(answer["series"]) == 8
    assert all(each["statistics"]["count"] == 3_000 for each in answer["series"])
    for result in (listed, answer):
        assert len(str(result).encode()) < 20_000


async def test_a_long_series_is_examined_reduced_and_its_spike_is_found(
    plane: RunningPlane, tools: Toolbox
) -> None:
    agent = await run.start_run(plane)
    values = [2 + 0.05 * math.sin(i) for i in range(9_000)]
    values[6_543] = 30.0
    for first in range(0, 9_000, 3_000):
        column = run.column("loss", values[first : first + 3_000], first + 1)
        await run.report(agent, column, step=9_000)
    (loss,) = (await read(tools, "metric_series", job="demo"))["series"]
    assert loss["statistics"]["exact"] is False
    assert loss["statistics"]["count"] == 9_000
    assert [each["start_step"] for each in loss["spikes"]] == [6_544]


async def test_how_a_trainer_ended_is_told(plane: RunningPlane, tools: Toolbox) -> None:
    agent = await run.start_run(plane)
    event = agent_pb.TrainerEvent()
    event.exited.exit_code = 137
    event.exited.message = "killed: out of memory"
    await agent.acknowledged(await agent.say(event=event))
    job = await read(tools, "get_job", job="demo")
    assert job["state"] == "failed"
    assert job["trainer_exit"]["exit_code"] == 137
    assert job["trainer_exit"]["message"] == "killed: out of memory"


async def test_what_the_control_plane_refuses_is_told(tools: Toolbox) -> None:
    assert "'nowhere'" in await fail(tools, "get_job", job="nowhere")
    assert "selector" in await fail(tools, "list_jobs", selector="((")
