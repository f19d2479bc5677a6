"""Conversations and usage in all formats: tables and rules."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.providers import anthropic_wire, openai_responses_wire, openai_wire
from analytics_service.providers.base import (
    AssistantTurn,
    ToolRequest,
    ToolTurn,
    Turn,
    UserTurn,
)
from analytics_service.providers.prompt import normalized
from analytics_service.usage.tokens import UNKNOWN, TokenUsage
from tests.support.provider_calls import QUESTION

CONVERSATION: tuple[Turn, ...] = (
    UserTurn("Compare them."),
    AssistantTurn(
        "Looking.",
        (
            ToolRequest("functions.get:0", "get_job", {"job": "a"}),
            ToolRequest("functions.get:1", "get job!", None, '{"job', "the arguments are not JSON"),
        ),
    ),
    ToolTurn("functions.get:0", "loss 0.5"),
    ToolTurn("functions.get:1", "the arguments are not JSON", is_error=True),
    AssistantTurn("  "),
    AssistantTurn("A is better."),
    UserTurn(""),
    UserTurn("Why?"),
    UserTurn("Be brief."),
)


def test_a_conversation_for_openai() -> None:
    def call(number: str, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": number, "type": "function", "function": function}

    messages = openai_wire.messages_of(replace(QUESTION, turns=CONVERSATION))
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Compare them."},
        {
            "role": "assistant",
            "content": "Looking.",
            "tool_calls": [
                call("call00001", "get_job", '{"job": "a"}'),
                call("call00002", "get_job_", "{}"),
            ],
        },
        {"role": "tool", "tool_call_id": "call00001", "content": "loss 0.5"},
        {"role": "tool", "tool_call_id": "call00002", "content": "the arguments are not JSON"},
        {"role": "assistant", "content": "A is better."},
        {"role": "user", "content": "Why?"},
        {"role": "user", "content": "Be brief."},
    ]


def test_a_conversation_for_the_responses_api() -> None:
    def call(number: str, name: str, arguments: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": number, "name": name, "arguments": arguments}

    def result(number: str, output: str) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": number, "output": output}

    items = openai_responses_wire.items_of(replace(QUESTION, turns=CONVERSATION))
    assert items == [
        {"role": "user", "content": "Compare them."},
        {"role": "assistant", "content": "Looking."},
        call("call00001", "get_job", '{"job": "a"}'),
        call("call00002", "get_job_", "{}"),
        result("call00001", "loss 0.5"),
        result("call00002", "the arguments are not JSON"),
        {"role": "assistant", "content": "A is better."},
        {"role": "user", "content": "Why?"},
        {"role": "user", "content": "Be brief."},
    ]


def test_a_conversation_for_anthropic() -> None:
    def result(number: str, content: str, is_error: bool) -> dict[str, Any]:
        return {
            "type": "tool_result",
            "tool_use_id": number,
            "content": content,
            "is_error": is_error,
        }

    messages = anthropic_wire.messages_of(replace(QUESTION, turns=CONVERSATION))
    assert messages == [
        {"role": "user", "content": [{"type": "text", "text": "Compare them."}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "call00001", "name": "get_job", "input": {"job": "a"}},
                {"type": "tool_use", "id": "call00002", "name": "get_job_", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                result("call00001", "loss 0.5", False),
                result("call00002", "the arguments are not JSON", True),
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A is better."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Why?"}, {"type": "text", "text": "Be brief."}],
        },
    ]


def test_an_empty_system_is_left_out() -> None:
    request = replace(QUESTION, system=" ")
    assert "system" not in anthropic_wire.arguments_of(request)
    assert "instructions" not in openai_responses_wire.arguments_of(request)
    assert openai_wire.messages_of(request)[0]["role"] == "user"


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    broken = ToolRequest("b", "x", None, "{", "the arguments are not JSON")
    turns = (AssistantTurn("", (ToolRequest("a", "x", {}), broken)), UserTurn("Go on."))
    [called, _] = normalized(turns)
    assert not isinstance(called, UserTurn)
    assert [(r.call_id, r.content, r.is_error) for r in called.results] == [
        ("call00001", "The call was not carried out.", True),
        ("call00002", "the arguments are not JSON", True),
    ]


@pytest.mark.parametrize(
    "turns",
    [
        (ToolTurn("a", "x"),),
        (UserTurn("hi"), ToolTurn("a", "x")),
        (AssistantTurn("", (ToolRequest("b", "x", {}),)), ToolTurn("a", "x")),
    ],
)
def test_results_of_calls_that_nobody_made_are_refused(turns: Sequence[Turn]) -> None:
    with pytest.raises(ValueError, match="'a'"):
        normalized(turns)


texts = st.sampled_from(["", " ", "hi", "there"])
rounds = st.lists(
    st.tuples(texts, st.lists(st.booleans(), max_size=3), texts), min_size=1, max_size=6
)


@given(rounds)
def test_anthropic_gets_roles_by_turns_and_a_result_for_each_call(
    told: list[tuple[str, list[bool], str]],
) -> None:
    turns: list[Turn] = [UserTurn("Begin.")]
    for said, calls, asked in told:
        requests = tuple(ToolRequest(f"c{i}", "x", {}) for i in range(len(calls)))
        turns.append(AssistantTurn(said, requests))
        turns += [ToolTurn(f"c{i}", "y") for i, has_result in enumerate(calls) if has_result]
        turns.append(UserTurn(asked))
    messages = anthropic_wire.messages_of(replace(QUESTION, turns=tuple(turns)))
    roles = [message["role"] for message in messages]
    assert roles[0] == "user"
    assert all(a != b for a, b in itertools.pairwise(roles))
    made: list[str] = []
    for message in messages:
        assert message["content"]
        results = [b["tool_use_id"] for b in message["content"] if b["type"] == "tool_result"]
        assert results == (made if message["role"] == "user" else [])
        made = [b["id"] for b in message["content"] if b["type"] == "tool_use"]
        assert all(b["text"].strip() for b in message["content"] if b["type"] == "text")
    assert made == []


def usage(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            name: SimpleNamespace(**value) if isinstance(value, dict) else value
            for name, value in fields.items()
        }
    )


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        # OpenAI: cached is part of the prompt, reasoning of the completion
        (
            usage(
                prompt_tokens=100,
                completion_tokens=50,
                total_tokens=150,
                prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 10},
                completion_tokens_details={"reasoning_tokens": 30},
            ),
            TokenUsage(input=30, output=50, cache_read=60, cache_write=10, reasoning=30),
        ),
        # xAI: reasoning lies beside the completion, as the total shows
        (
            usage(
                prompt_tokens=100,
                completion_tokens=50,
                total_tokens=180,
                completion_tokens_details={"reasoning_tokens": 30},
            ),
            TokenUsage(input=100, output=80, reasoning=30),
        ),
        # more reasoning than completion, and no total
        (
            usage(
                prompt_tokens=100,
                completion_tokens=5,
                completion_tokens_details={"reasoning_tokens": 30},
            ),
            TokenUsage(input=100, output=35, reasoning=30),
        ),
        # the total is of no help
        (
            usage(
                prompt_tokens=100,
                completion_tokens=50,
                total_tokens=7,
                completion_tokens_details={"reasoning_tokens": 30},
            ),
            TokenUsage(input=100, output=50, reasoning=30),
        ),
        (
            usage(
                prompt_tokens=9,
                completion_tokens=2,
                total_tokens=11,
                prompt_tokens_details={"cached_tokens": None},
                completion_tokens_details=None,
            ),
            TokenUsage(input=9, output=2),
        ),
        # more cached than there is
        (
            usage(
                prompt_tokens=9,
                completion_tokens=2,
                prompt_tokens_details={"cached_tokens": 10},
            ),
            TokenUsage(input=9, output=2),
        ),
        (usage(prompt_tokens=9), TokenUsage(input=9)),
        (usage(completion_tokens=9), TokenUsage(output=9)),
        (usage(prompt_tokens="9", completion_tokens=True), None),
        (usage(prompt_tokens=-9, completion_tokens=None), None),
        (usage(prompt_tokens=0, completion_tokens=0, total_tokens=0), None),
        (usage(), None),
        (None, None),
    ],
)
def test_tokens_of_openai(said: object, tokens: TokenUsage | None) -> None:
    assert openai_wire.tokens_of(said) == tokens


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        (
            usage(
                input_tokens=100,
                output_tokens=50,
                total_tokens=150,
                input_tokens_details={"cached_tokens": 60, "cache_write_tokens": 10},
                output_tokens_details={"reasoning_tokens": 30},
            ),
            TokenUsage(input=30, output=50, cache_read=60, cache_write=10, reasoning=30),
        ),
        (usage(input_tokens=9, output_tokens=2), TokenUsage(input=9, output=2)),
        (usage(input_tokens="9", output_tokens=None), None),
        (None, None),
    ],
)
def test_tokens_of_the_responses_api(said: object, tokens: TokenUsage | None) -> None:
    assert openai_responses_wire.tokens_of(said) == tokens


@given(
    prompt=st.integers(1, 10**6),
    visible=st.integers(0, 10**6),
    reasoning=st.integers(1, 10**6),
    beside=st.booleans(),
)
def test_reasoning_counts_once_wherever_it_lies(
    prompt: int, visible: int, reasoning: int, beside: bool
) -> None:
    said = usage(
        prompt_tokens=prompt,
        completion_tokens=visible if beside else visible + reasoning,
        total_tokens=prompt + visible + reasoning,
        completion_tokens_details={"reasoning_tokens": reasoning},
    )
    tokens = openai_wire.tokens_of(said)
    assert tokens == TokenUsage(input=prompt, output=visible + reasoning, reasoning=reasoning)


@pytest.mark.parametrize(
    ("before", "said", "tokens"),
    [
        (
            UNKNOWN,
            usage(
                input_tokens=7,
                output_tokens=1,
                cache_read_input_tokens=100,
                cache_creation_input_tokens=0,
            ),
            TokenUsage(input=7, output=1, cache_read=100, cache_write=0),
        ),
        (
            TokenUsage(input=7, output=1, cache_read=100),
            usage(output_tokens=50, output_tokens_details={"thinking_tokens": 40}),
            TokenUsage(input=7, output=50, cache_read=100, reasoning=40),
        ),
        (
            TokenUsage(input=7, output=1),
            usage(input_tokens=9, output_tokens=50),
            TokenUsage(input=9, output=50),
        ),
        (TokenUsage(input=7, output=1), None, TokenUsage(input=7, output=1)),
        (UNKNOWN, usage(input_tokens="7"), UNKNOWN),
    ],
)
def test_tokens_of_anthropic(before: TokenUsage, said: object, tokens: TokenUsage) -> None:
    assert anthropic_wire.tokens_of(said, before) == tokens
