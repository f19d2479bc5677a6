"""What the service reads by itself for a model that can not call tools."""

from __future__ import annotations

import asyncio

import pytest

from analytics_service.chat.conversation import ToolCallPart
from analytics_service.chat.tools import Toolbox, ToolOutcome
from analytics_service.chat.tools.digest import metrics_in_question, named_in
from analytics_service.chat.tools.metrics import telling_metrics
from analytics_service.chat.tools.sentences import MAX_LENGTH, sentences
from analytics_service.threads import Threads
from control_plane.client import Client
from tests.support import known_run as run
from tests.support.plane import RunningPlane
from tests.support.tool_calls import asked


def jobs_of(outcomes: tuple[ToolOutcome, ...]) -> list[str]:
    return list(dict.fromkeys(str((each.arguments or {})["job"]) for each in outcomes))


async def test_the_known_run_in_plain_sentences(demo: RunningPlane, tools: Toolbox) -> None:
    outcomes = await tools.digest("Why did the loss of demo spike?")
    assert [each.tool for each in outcomes] == ["get_job", "metric_series", "update_history"]
    assert all(each.by_service and not each.error for each in outcomes)
    assert len({each.call_id for each in outcomes}) == 3
    assert {each.what for outcome in outcomes for each in outcome.citations} == {
        "job",
        "metric",
        "updates",
    }
    text = sentences(outcomes)
    baseline = f"{sorted(run.LOSS[5:30])[12]:.4g}"
    for said in (
        "Job demo: running, sft, step 60 of 100.",
        f"loss of demo spiked at step 31 ({baseline} → 9.84, peak at step 33), back by step 40.",
        "Change 1 of demo, applied at step 30: learning_rate 0.001 → 0.008 by anonymous.",
        "Reason given: “faster, please”",
        "Change 2 of demo, rejected: set learning_rate 0.004 by anonymous.",
        "Rejected because: not at this boundary. Reason given: “back again”.",
        "learning_rate of demo is 0.008 now.",
    ):
        assert said in text
    assert len(text) < 1_500


async def test_the_jobs_given_are_read_and_no_others(demo: RunningPlane, client: Client) -> None:
    await asyncio.to_thread(client.create_job, "other")
    given = Toolbox(client, Threads(4, "tools"), ["jobs/other"])
    assert jobs_of(await given.digest("how is demo?")) == ["other"]
    text = sentences(await given.digest(""))
    assert "Job other has no metrics yet." in text
    assert "Nothing was changed in other." in text


async def test_else_those_that_the_question_names_else_the_last_active(
    demo: RunningPlane, tools: Toolbox, client: Client
) -> None:
    for name in ("a", "b", "c-1"):
        await asyncio.to_thread(client.create_job, name)
    assert jobs_of(await tools.digest("Compare C-1 with demo, please.")) == ["c-1", "demo"]
    assert jobs_of(await tools.digest("how are things?")) == ["c-1", "b"]


async def test_no_jobs_and_jobs_that_are_not_there(tools: Toolbox, client: Client) -> None:
    outcomes = await tools.digest("how is it going?")
    assert sentences(outcomes) == "There are no jobs."
    missing = await Toolbox(client, Threads(4, "tools"), ["nowhere"]).digest("?")
    assert "get_job of job nowhere could not be read: " in sentences(missing)


def test_the_metrics_that_are_asked_about_are_read_else_the_most_telling_one() -> None:
    names = ["grad_norm", "learning_rate", "loss", "eval_loss"]
    assert metrics_in_question("What was the learning rate, and grad_norm?", names) == [
        "grad_norm",
        "learning_rate",
    ]
    assert metrics_in_question("Did the LOSS spike?", names) == ["loss"]
    assert metrics_in_question("how is it going?", names) == ["loss"]
    assert metrics_in_question("how are the glosses?", names) == ["loss"]
    assert metrics_in_question("anything", []) == []


def test_ids_count_as_words_of_their_own() -> None:
    ids = ["demo", "run.1", "x"]
    assert named_in("is Demo's loss like run.1? (not demo-2, xyz)", ids) == ["demo", "run.1"]


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["grad_norm", "eval_loss", "loss", "reward"], ["loss", "eval_loss", "reward"]),
        (["b", "a"], ["a", "b"]),
        (["rewards/std", "rewards/mean"], ["rewards/mean"]),
        ([], []),
    ],
)
def test_the_most_telling_metrics_come_first(names: list[str], first: list[str]) -> None:
    assert telling_metrics(names, 3)[: len(first)] == first


async def test_the_digest_is_small_whatever_there_is_and_shares_its_room(
    plane: RunningPlane, client: Client
) -> None:
    long = {f"label-{i}": "v" * 60 for i in range(40)}
    for name in ("one", "two", "three"):
        agent = await run.known_run(plane, name, labels=long)
        wild = [(-1.0) ** i * 10**6 if i % 7 == 0 else 1.0 for i in range(60)]
        columns = [run.column(f"loss/{'m' * 80}/{i}", wild) for i in range(6)]
        await run.report(agent, *columns)
    asked_about = " ".join(f"loss/{'m' * 80}/{i}" for i in range(6))
    toolbox = Toolbox(client, Threads(4, "tools"), ["one", "two", "three"])
    outcomes = await toolbox.digest(asked_about)
    text = sentences(outcomes)
    assert len(text) <= MAX_LENGTH
    assert all(f"Job {name}: running" in text for name in ("one", "two", "three"))
    assert "(More was left out here.)" in text


async def test_what_was_kept_reads_like_what_was_just_read(
    demo: RunningPlane, tools: Toolbox
) -> None:
    outcomes = await tools.digest("demo?")
    kept = [
        ToolCallPart(each.call_id, each.tool, each.arguments, each.result, by_service=True)
        for each in outcomes
    ]
    assert sentences(kept) == sentences(outcomes)


async def test_numbers_that_are_none_and_unknown_values(
    plane: RunningPlane, tools: Toolbox
) -> None:
    agent = await run.start_run(plane)
    await run.report(agent, run.column("loss", [float("nan"), 2.0]), step=2)
    text = sentences([await tools.call(asked("metric_series", job="demo"))])
    assert "from NaN to 2, highest 2 at step 2" in text
    assert "1 samples are NaN or infinite, the first at step 1." in text
