from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.providers.base import ToolRequest
from analytics_service.providers.tool_calls import (
    ToolCallAssembler,
    read_arguments,
    tool_request,
)

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(names, values, max_size=4)


def split(raw: str, chance: random.Random) -> list[str]:
    cuts = sorted(chance.randrange(len(raw) + 1) for _ in range(chance.randrange(6)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@given(
    calls=st.lists(arguments, min_size=1, max_size=4),
    style=st.sampled_from(["id once", "id always", "index only", "id always, index 0"]),
    escape=st.booleans(),
    chance=st.randoms(use_true_random=False),
)
def test_any_split_and_any_order_give_the_same_calls(
    calls: list[dict[str, Any]], style: str, escape: bool, chance: random.Random
) -> None:
    raws = [json.dumps(call, ensure_ascii=escape) for call in calls]
    assembler = ToolCallAssembler()
    waiting: list[tuple[int, list[str]]] = []
    for number, raw in enumerate(raws):
        index = 0 if style.endswith("index 0") else number
        call_id = None if style == "index only" else f"id-{number}"
        assembler.add(call_id=call_id, index=index, name=f"tool_{number}", arguments="")
        waiting.append((number, split(raw, chance)))
    while waiting := [(number, pieces) for number, pieces in waiting if pieces]:
        number, pieces = chance.choice(waiting)
        assembler.add(
            call_id=f"id-{number}" if style.startswith("id always") else None,
            index=0 if style.endswith("index 0") else number,
            arguments=pieces.pop(0),
        )
    found = assembler.requests()
    assert [(call.name, call.arguments, call.raw, call.error) for call in found] == [
        (f"tool_{number}", call, raw, "")
        for number, (call, raw) in enumerate(zip(calls, raws, strict=True))
    ]
    assert len({call.call_id for call in found}) == len(found)


def test_calls_without_id_and_index_are_told_apart_by_name() -> None:
    assembler = ToolCallAssembler()
    for name, piece in [("a", "{"), ("", "}"), ("b", '{"x": 1}'), ("", "")]:
        assembler.add(name=name, arguments=piece)
    assert [(c.name, c.arguments) for c in assembler.requests()] == [("a", {}), ("b", {"x": 1})]


def test_an_id_may_come_after_the_call_has_begun() -> None:
    assembler = ToolCallAssembler()
    assembler.add(index=0, name="get_")
    assembler.add(index=0, call_id="x", name="job", arguments="{}")
    assert assembler.requests() == [ToolRequest("x", "get_job", {}, "{}")]


def test_a_name_that_is_repeated_is_one_name() -> None:
    assembler = ToolCallAssembler()
    for piece in ("", "{", "}"):
        assembler.add(index=0, call_id="x", name="get_job", arguments=piece)
    assert assembler.requests() == [ToolRequest("x", "get_job", {}, "{}")]


@pytest.mark.parametrize("raw", ["", "  ", "{}"])
def test_no_arguments(raw: str) -> None:
    assert read_arguments(raw) == {}


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("{", "not JSON"),
        ('{"a": 1} {', "not JSON"),
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('{"a": NaN}', "NaN is no JSON value"),
        ('{"a": -Infinity}', "-Infinity is no JSON value"),
        ('{"a": "\\ud83d"}', "surrogate"),
        ('{"a": ' + "[" * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 5_000 + "}", "not JSON"),
    ],
)
def test_unreadable_arguments_say_why(raw: str, why: str) -> None:
    request = tool_request("id", "get_job", raw)
    assert request.arguments is None
    assert why in request.error
    assert len(request.error) < 600
    assert request.raw == raw


def test_a_call_without_a_name_says_so() -> None:
    assert tool_request("id", "", "{}").error == "the call names no tool"


@given(st.text())
def test_whatever_a_model_writes_is_read_or_told(raw: str) -> None:
    request = tool_request("id", "get_job", raw)
    assert (request.arguments is None) == bool(request.error)
