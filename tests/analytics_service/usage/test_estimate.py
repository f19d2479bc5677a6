from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.providers.base import (
    AssistantTurn,
    ProviderRequest,
    ToolRequest,
    ToolSpec,
    ToolTurn,
    Turn,
    UserTurn,
)
from analytics_service.usage.estimate import estimated_usage, likely_tokens, upper_bound_tokens

TOOL = ToolSpec("get_job", "Gets a job.", {"type": "object", "properties": {"id": {}}})
CALL = ToolRequest("call-1", "get_job", {"id": "é"}, '{"id": "é"}')


def request(*turns: Turn, system: str = "", tools: tuple[ToolSpec, ...] = ()) -> ProviderRequest:
    return ProviderRequest("m", system, turns, tools)


@given(st.text(), st.text(), st.text(), st.text())
def test_the_bound_covers_every_byte_of_every_text(
    system: str, question: str, answer: str, result: str
) -> None:
    whole = request(
        UserTurn(question),
        AssistantTurn(answer, (CALL,)),
        ToolTurn("call-1", result),
        system=system,
        tools=(TOOL,),
    )
    everything = (
        system
        + question
        + answer
        + CALL.call_id * 2
        + CALL.name
        + CALL.raw
        + result
        + TOOL.name
        + TOOL.description
        + json.dumps(TOOL.parameters)
    )
    # As many separators as there are messages, a call and a tool, besides.
    assert upper_bound_tokens(whole) >= len(everything.encode()) + 8 * 6


@pytest.mark.parametrize(
    "longer",
    [
        request(UserTurn("hello"), UserTurn("")),
        request(UserTurn("hello"), system="s"),
        request(UserTurn("hello"), tools=(TOOL,)),
        request(UserTurn("hello"), AssistantTurn("", (CALL,))),
        request(UserTurn("hellö")),
    ],
)
def test_whatever_is_added_raises_the_bound(longer: ProviderRequest) -> None:
    assert upper_bound_tokens(longer) > upper_bound_tokens(request(UserTurn("hello")))


def test_the_bound_holds_for_a_real_byte_level_tokenizer() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    # The worst one there is: it knows nothing but single bytes.
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={
                symbol: number
                for number, symbol in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())
            },
            merges=[],
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    for text in ("loss at step 1200: 3.1415", "損失が急上昇した", "🔥" * 50, "<|im_start|>"):
        assert len(tokenizer.encode(text).ids) <= upper_bound_tokens(request(UserTurn(text)))


def test_a_lone_surrogate_does_not_fail_a_count() -> None:
    assert upper_bound_tokens(request(UserTurn("\ud800"))) > 0
    assert likely_tokens("\ud800") == 1


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("four", 1), ("fives", 2), ("損失", 2)]
)
def test_four_bytes_are_likely_a_token(text: str, tokens: int) -> None:
    assert likely_tokens(text) == tokens


def test_what_is_not_told_is_guessed_below_the_bound_and_marks_no_cache() -> None:
    whole = request(
        UserTurn("why did the loss spike?" * 10),
        AssistantTurn("let me look", (CALL,)),
        ToolTurn("call-1", "{}"),
        system="You answer questions.",
        tools=(TOOL,),
    )
    usage = estimated_usage(whole, "It rose.")
    assert usage.output == 2
    assert usage.input is not None
    assert 230 // 4 < usage.input < upper_bound_tokens(whole)
    assert (usage.cache_read, usage.cache_write, usage.reasoning) == (None, None, None)
    without = estimated_usage(ProviderRequest("m", whole.system, whole.turns), "It rose.")
    assert without.input is not None
    assert without.input < usage.input
