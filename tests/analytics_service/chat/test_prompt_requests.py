"""The requests of an answer, round by round."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from analytics_service.catalogue.model import CatalogueModel, Tier
from analytics_service.chat.conversation import (
    ModelChoice,
    ModelSource,
    Part,
    TextPart,
    ToolCallPart,
)
from analytics_service.chat.fence import new_boundary
from analytics_service.chat.plan import Limits, Plan, Question
from analytics_service.chat.prompt import Prompt
from analytics_service.chat.tools import Toolbox
from analytics_service.errors import Refusal
from analytics_service.providers.base import AssistantTurn, ToolTurn, Turn, UserTurn
from analytics_service.threads import Threads
from control_plane.client import Client

BOUNDARY = new_boundary()
PARTS: list[Part] = [
    ToolCallPart("s", "get_job", {"job": "a"}, {"job": "a", "state": "lost"}, by_service=True),
    TextPart("Let me see."),
    ToolCallPart("c", "get_job", {"job": "b"}, {"job": "b"}),
]


def count(turn: Turn) -> int:
    return len(turn.content if isinstance(turn, ToolTurn) else turn.text)


def plan(*, tools: bool = True, window: int = 100_000, jobs: tuple[str, ...] = ()) -> Plan:
    model = CatalogueModel("m", "M", "p", "m-2026", window, 8_000, tools, Tier.SMALL)
    with Client("127.0.0.1:1") as client:
        toolbox = Toolbox(client, Threads(4, "tools"))
    choice = ModelChoice("m", ModelSource.REQUEST, "m")
    question = Question("why?", jobs=jobs, temperature=0.5)
    return Plan(question, choice, model, (), (), toolbox, BOUNDARY, 4_000)


@pytest.fixture
def prompt() -> Prompt:
    return Prompt(count, lambda: datetime(2026, 11, 23, tzinfo=UTC))


def test_a_round_with_tools(prompt: Prompt) -> None:
    with_tools = plan(jobs=("a",))
    request = prompt.request(with_tools, PARTS, limits=Limits(idle_seconds=7))
    assert (request.model, request.max_output_tokens) == ("m-2026", 4_000)
    assert (request.temperature, request.idle_timeout) == (0.5, 7)
    assert request.tools == with_tools.toolbox.specs
    assert "about these jobs: a." in request.system
    question, said, result = request.turns
    assert isinstance(question, UserTurn)
    assert "Job a: lost." in question.text
    assert isinstance(said, AssistantTurn)
    assert said.text == "Let me see."
    assert isinstance(result, ToolTurn)
    assert result.call_id == said.tool_requests[0].call_id


def test_the_last_round_has_no_tools_but_all_that_was_read(prompt: Prompt) -> None:
    request = prompt.request(plan(), PARTS, limits=Limits(), with_tools=False)
    assert request.tools == ()
    (question,) = request.turns
    assert isinstance(question, UserTurn)
    assert json.dumps({"job": "b"}) in question.text
    assert question.text.endswith("\n\nwhy?")


def test_a_model_without_tools_is_told_little(prompt: Prompt) -> None:
    request = prompt.request(plan(tools=False, window=8_000), PARTS[:1], limits=Limits())
    assert request.tools == ()
    assert "tool" not in request.system.replace("other tools", "")
    assert request.max_output_tokens == 4_000
    small = prompt.request(plan(tools=False, window=2_048), PARTS[:1], limits=Limits())
    assert small.max_output_tokens == 1_024


def test_room_is_what_system_tools_and_answer_leave(prompt: Prompt) -> None:
    with pytest.raises(Refusal, match="the model has room for") as caught:
        prompt.request(plan(window=8_000), PARTS, limits=Limits())
    assert caught.value.metadata["room"] == "0"
