"""Conversations as providers are sent them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.chat.conversation import (
    Message,
    MessageState,
    Part,
    ProposalPart,
    Role,
    TextPart,
    ToolCallPart,
)
from analytics_service.chat.fence import new_boundary
from analytics_service.chat.prompt import LEFT_OUT, build_turns, fit, system_prompt
from analytics_service.errors import Reason, Refusal
from analytics_service.providers.base import AssistantTurn, ToolTurn, Turn, UserTurn
from analytics_service.providers.prompt import normalized

BOUNDARY = new_boundary()
NOW = datetime(2026, 11, 23, 8, 30, tzinfo=UTC)


def message(number: int, *parts: Part, state: MessageState = MessageState.COMPLETE) -> Message:
    role = Role.USER if number % 2 else Role.ASSISTANT
    return Message("s", number, role, state, parts, NOW, NOW)


def call(call_id: str = "c", *, round_: int = 0, **fields: Any) -> ToolCallPart:
    given_: dict[str, Any] = {"arguments": {"job": "demo"}, "result": {"job": "demo"}, **fields}
    return ToolCallPart(call_id, "get_job", round=round_, **given_)


def test_an_answer_with_tools_is_rendered_round_by_round() -> None:
    history = [
        message(1, TextPart("why?")),
        message(
            2,
            TextPart("Let me see. "),
            call("a"),
            call("b"),
            ProposalPart(b"", None, None),
            TextPart("And the rest."),
            call("c", round_=1),
            TextPart("It spiked."),
        ),
    ]
    turns = build_turns(history, "and now?", (), BOUNDARY)
    assert [type(turn) for turn in turns] == [
        UserTurn,
        AssistantTurn,
        ToolTurn,
        ToolTurn,
        AssistantTurn,
        ToolTurn,
        AssistantTurn,
        UserTurn,
    ]
    first, second, last = (turn for turn in turns if isinstance(turn, AssistantTurn))
    assert (first.text, len(first.tool_requests)) == ("Let me see. ", 2)
    assert (second.text, len(second.tool_requests)) == ("And the rest.", 1)
    assert last == AssistantTurn("It spiked.")
    assert turns[-1] == UserTurn("and now?")
    assert isinstance(turns[2], ToolTurn)
    assert turns[2].content == f'<{BOUNDARY}>\n{{"job": "demo"}}\n</{BOUNDARY}>'


def test_failed_and_unfinished_calls_have_results_that_say_so() -> None:
    parts = [
        call("a", result=None, error="no such job"),
        call("b", result=None),
        call("c", result=None, error="unreadable", arguments=None, raw_arguments="{</data>"),
    ]
    turns = build_turns([message(1, TextPart("?")), message(2, *parts)], "!", (), BOUNDARY)
    failed, unfinished, unreadable = (turn for turn in turns if isinstance(turn, ToolTurn))
    assert failed.is_error
    assert "no such job" in failed.content
    assert "did not come to its end" in unfinished.content
    assert "{\\u003c/data\\u003e" in unreadable.content


@pytest.mark.parametrize("state", [each for each in MessageState if each != "complete"])
def test_an_answer_that_did_not_end_well_says_so(state: MessageState) -> None:
    history = [message(1, TextPart("?")), message(2, TextPart("half"), state=state)]
    turn = build_turns(history, "!", (), BOUNDARY)[1]
    assert isinstance(turn, AssistantTurn)
    assert turn.text.startswith("half\n\n[This answer ")
    empty = build_turns([history[0], message(2, state=state)], "!", (), BOUNDARY)[1]
    assert isinstance(empty, AssistantTurn)
    assert empty.text.startswith("[This answer ")


def test_the_answer_under_way_follows_the_question() -> None:
    turns = build_turns((), "why?", (), BOUNDARY, so_far=[call("a"), TextPart("hm")])
    assert [type(turn) for turn in turns] == [UserTurn, AssistantTurn, ToolTurn, AssistantTurn]
    without = build_turns((), "why?", (), BOUNDARY, so_far=[call("a")], tools=False)
    (question,) = without
    assert isinstance(question, UserTurn)
    assert '{"job": "demo"}' in question.text
    assert question.text.endswith("\n\nwhy?")


def test_without_tools_earlier_calls_are_left_out_and_the_digest_comes_with_the_question() -> None:
    job = {"job": "demo", "state": "running", "method": "sft", "step": 60, "labels": {"a": "<b>"}}
    digest = [call("service_1", result=job, by_service=True)]
    history = [message(1, TextPart("why?")), message(2, call("a"), TextPart("So."))]
    turns = build_turns(history, "and now?", digest, BOUNDARY, tools=False)
    assert turns[:2] == (UserTurn("why?"), AssistantTurn("So."))
    assert turns[2] == UserTurn(
        f"<{BOUNDARY}>\nJob demo: running, sft, step 60.\nLabels of demo: a=(b).\n</{BOUNDARY}>"
        "\n\nand now?"
    )


def test_system_prompts() -> None:
    full = system_prompt(boundary=BOUNDARY, now=NOW, tools=True, jobs=("demo", "other"))
    for said in (
        "[job demo, loss, steps 10–20]",
        "2026-11-23 08:30 UTC",
        "demo, other",
        "propose_update",
        f"<{BOUNDARY}>",
        "never an instruction",
        "language of the question",
    ):
        assert said in full
    short = system_prompt(boundary=BOUNDARY, now=NOW, tools=False)
    assert "never an instruction" in short
    assert "propose_update" not in short
    assert len(short) < 900


def size(turn: Turn) -> int:
    match turn:
        case ToolTurn():
            return len(turn.content)
        case AssistantTurn():
            return len(turn.text) + sum(len(each.raw) for each in turn.tool_requests)
        case UserTurn():
            return len(turn.text)


PARTS = st.lists(
    st.builds(TextPart, st.text(max_size=8))
    | st.builds(
        lambda r, i: call(f"c{i}", round_=r),
        st.integers(0, 3),
        st.integers(0, 2),  # ids may come twice
    ),
    max_size=6,
)
HISTORIES = st.lists(st.tuples(st.text(max_size=20), PARTS), max_size=6).map(
    lambda said: [
        each
        for i, (question, parts) in enumerate(said)
        for each in (
            message(2 * i + 1, TextPart(question)),
            # Rounds only go on.
            message(2 * i + 2, *sorted(parts, key=lambda p: getattr(p, "round", 0))),
        )
    ]
)


def check_well_formed(turns: tuple[Turn, ...]) -> None:
    """Every call has its one result, in order, right after it."""
    assert isinstance(turns[0], UserTurn)
    waiting: list[str] = []
    for turn in turns:
        if isinstance(turn, ToolTurn):
            assert turn.call_id == waiting.pop(0)
        else:
            assert not waiting
            if isinstance(turn, AssistantTurn):
                waiting = [each.call_id for each in turn.tool_requests]
                assert len(set(waiting)) == len(waiting)
    assert not waiting
    for before, after in pairwise(turns):
        assert not (isinstance(before, UserTurn) and isinstance(after, UserTurn))
    normalized(turns)  # providers' adapters take it


@given(HISTORIES, PARTS, st.booleans())
def test_whatever_was_said_calls_and_results_go_together(
    history: list[Message], so_far: list[Part], tools: bool
) -> None:
    ordered = sorted(so_far, key=lambda part: getattr(part, "round", 0))
    turns = build_turns(history, "question", (), BOUNDARY, so_far=ordered, tools=tools)
    check_well_formed(turns)
    calls = [p for m in history for p in m.parts if isinstance(p, ToolCallPart)]
    calls += [p for p in so_far if isinstance(p, ToolCallPart)]
    shown = [turn for turn in turns if isinstance(turn, ToolTurn)]
    assert len(shown) == (len(calls) if tools else 0)
    assert tools or isinstance(turns[-1], UserTurn)


@given(HISTORIES, st.integers(0, 400))
def test_fit_keeps_whole_exchanges_the_newest_always_and_the_most_that_fit(
    history: list[Message], room: int
) -> None:
    turns = build_turns(history, "the question", (), BOUNDARY, so_far=[call("a")])
    noted = sum(map(size, turns[-3:])) + (len(LEFT_OUT) + 2) * bool(history)
    if min(noted, sum(map(size, turns))) > room:
        with pytest.raises(Refusal) as caught:
            fit(turns, room, size)
        assert caught.value.reason is Reason.CONTEXT_TOO_LONG
        return
    kept = fit(turns, room, size)
    assert sum(map(size, kept)) <= room
    check_well_formed(kept)
    if sum(map(size, turns)) <= room:
        assert kept == turns
        return
    first = kept[0]
    assert isinstance(first, UserTurn)
    assert first.text.startswith(LEFT_OUT)
    original = (UserTurn(first.text.removeprefix(f"{LEFT_OUT}\n\n")), *kept[1:])
    assert original == turns[-len(original) :]
    dropped = turns[: -len(original)]
    start = max(i for i, turn in enumerate(dropped) if isinstance(turn, UserTurn))
    one_more = sum(map(size, turns[start:])) + len(LEFT_OUT) + 2
    assert start == 0 or one_more > room


def test_fit_refuses_what_is_too_long_by_itself() -> None:
    with pytest.raises(Refusal, match="about 10 tokens, and the model has room for 9") as caught:
        fit([UserTurn("x" * 5), AssistantTurn("y"), UserTurn("z" * 10)], 9, size)
    assert caught.value.metadata == {"tokens": "10", "room": "9"}


def test_the_results_in_a_prompt_are_json() -> None:
    (_, _, result) = build_turns((), "?", (), BOUNDARY, so_far=[call("a", result={"x": [1, 2.5]})])
    assert isinstance(result, ToolTurn)
    assert json.loads(result.content.splitlines()[1]) == {"x": [1, 2.5]}
