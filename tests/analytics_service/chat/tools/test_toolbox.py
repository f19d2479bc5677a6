"""What a model may write and what may go wrong: an outcome, never an exception."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics_service.chat.tools import Toolbox
from analytics_service.chat.tools.bounds import bounded
from analytics_service.chat.tools.tool import ToolError
from analytics_service.chat.tools.toolbox import TOOLS
from analytics_service.chat.tools.values import plain_json, size_of
from analytics_service.providers.base import ToolRequest
from analytics_service.threads import Threads
from control_plane.client import Client, RetryPolicy
from tests.support.fake_control_plane import FakeControlPlane, make_job
from tests.support.plane import RunningPlane
from tests.support.tool_calls import asked, fail, read


def test_specs_are_plain_closed_schemas(tools: Toolbox) -> None:
    assert [each.name for each in tools.specs] == list(TOOLS)
    for spec in tools.specs:
        text = json.dumps(spec.parameters)
        assert spec.parameters["type"] == "object"
        assert spec.parameters["additionalProperties"] is False
        assert "$ref" not in text
        assert '"null"' not in text
        assert spec.description
        assert all(each["description"] for each in spec.parameters["properties"].values())


async def test_a_tool_that_is_not_there_is_answered_with_those_that_are(tools: Toolbox) -> None:
    error = await fail(tools, "set_learning_rate", job="demo", value=1.0)
    assert error.startswith("there is no tool 'set_learning_rate'; there are: list_jobs, get_job")


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("get_job", {}, "job: Field required"),
        ("get_job", {"job": "demo", "all": True}, "all: Extra inputs are not permitted"),
        ("get_job", {"job": 7}, "job: Input should be a valid string, got 7"),
        ("get_job", {"job": "x\ud800"}, "job: has halves of characters"),
        ("list_jobs", {"limit": 500}, "less than or equal to 50, got 500"),
        ("list_jobs", {"states": ["happy"]}, "'pending', 'running'"),
        (
            "metric_series",
            {"job": "j", "first_step": 9, "last_step": 3},
            "first_step 9 is after last_step 3",
        ),
        ("metric_series", {"job": "j", "max_points": 201}, "less than or equal to 200"),
        ("metric_series", {"job": "j", "metrics": ["m"] * 9}, "at most 8"),
        ("update_history", {"job": "j", "limit": 0}, "greater than or equal to 1"),
    ],
)
async def test_wrong_arguments_are_explained(
    tools: Toolbox, tool: str, arguments: dict[str, Any], said: str
) -> None:
    assert said in await fail(tools, tool, **arguments)


async def test_arguments_that_could_not_be_read(tools: Toolbox) -> None:
    request = ToolRequest("c", "get_job", None, '{"job": ', "Expecting value at character 8")
    outcome = await tools.call(request)
    assert "Expecting value at character 8" in outcome.error
    assert (outcome.arguments, outcome.raw) == (None, '{"job": ')


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({name for tool in TOOLS.values() for name in tool.spec.parameters["properties"]})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(sorted(TOOLS)) | st.text(max_size=10),
    arguments=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), ANYTHING),
)
async def test_whatever_a_model_writes_becomes_an_outcome_that_can_be_kept(
    tools: Toolbox, name: str, arguments: dict[str, Any]
) -> None:
    outcome = await tools.call(ToolRequest("c", name, arguments))
    assert (outcome.result is None) == bool(outcome.error)
    assert len(outcome.error) < 1_100
    json.dumps(outcome.arguments, allow_nan=False, ensure_ascii=False).encode()
    f"{outcome.error}{outcome.tool}{outcome.raw}".encode()


async def test_a_control_plane_that_is_not_there() -> None:
    retry = RetryPolicy(attempts=1)
    with Client("127.0.0.1:1", retry=retry, timeout=2) as nowhere:
        error = await fail(Toolbox(nowhere, Threads(4, "tools")), "list_jobs")
        digest = await Toolbox(nowhere, Threads(4, "tools")).digest("how is demo?")
    assert "no control plane answers at 127.0.0.1:1" in error
    assert [(each.tool, each.by_service) for each in digest] == [("list_jobs", True)]
    assert "no control plane answers" in digest[0].error


async def test_a_call_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    with FakeControlPlane() as fake, Client(fake.address) as client:
        fake.add(make_job("demo"))
        answer = client.get_job

        def slow(job: str) -> Any:
            released.wait(20)
            return answer(job)

        monkeypatch.setattr(client, "get_job", slow)
        hasty = Toolbox(client, Threads(4, "tools"), timeout=0.05)
        error = await fail(hasty, "get_job", job="demo")
        released.set()
    assert error == "the tool did not answer within 0.05 s; ask for less at once"


async def test_a_fault_of_our_own_is_not_swallowed(
    tools: Toolbox, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: str) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(client, "get_job", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        await tools.call(asked("get_job", job="demo"))


async def test_calls_may_come_side_by_side(demo: RunningPlane, tools: Toolbox) -> None:
    results = await asyncio.gather(*(read(tools, "get_job", job="demo") for _ in range(20)))
    assert all(each["job"] == "demo" for each in results)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), ANYTHING).map(plain_json), st.integers(600, 2_000))
def test_bounded_results_are_within_their_bound_or_refused(
    result: dict[str, Any], limit: int
) -> None:
    big = {**result, "points": [[i, i / 3] for i in range(100)], "jobs": ["x" * 50] * 60}
    try:
        smaller = bounded(big, limit)
    except ToolError:
        assert size_of({**result, "points": [[0, 0.0]], "jobs": ["x" * 50]}) > limit - 600
        return
    assert size_of(smaller) <= limit
    for name in ("points", "jobs"):
        missing = len(big[name]) - len(smaller[name])
        assert smaller["left_out"].get(name, 0) == missing
        assert smaller[name] == big[name][: len(smaller[name])]
    assert len(big["points"]) == 100  # the original is whole
