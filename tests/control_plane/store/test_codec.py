"""Domain values as text and back, whatever they are."""

from __future__ import annotations

import math
import threading
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from control_plane.domain.access import Access
from control_plane.domain.job import (
    Desired,
    Effective,
    MetricPoint,
    Progress,
    ReadValue,
    SessionInfo,
    TrainerExit,
)
from control_plane.domain.parameter import ParameterSpec
from control_plane.domain.update import (
    ActionKind,
    Applied,
    Cancelled,
    Outcome,
    Reading,
    UpdateSpec,
    UpdateState,
)
from control_plane.store import codec as codec_module
from control_plane.store.codec import Codec, RememberingCodec, codec, remembering
from control_plane.store.schema import Json, metadata

# What a protobuf message can hold: 64 bits, any double, any text that is Unicode.
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(),
    bool: st.booleans(),
    str: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    type(None): st.none(),
    datetime: st.datetimes(timezones=st.just(UTC)),
}


@cache
def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a type allows, with every field of a dataclass or named tuple given."""
    if hint in SCALARS:
        return SCALARS[hint]
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        hints = get_type_hints(hint)
        return st.builds(hint, **{name: values_of(hints[name]) for name in hints})
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{f.name: values_of(hints[f.name]) for f in fields(hint)})
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return st.sampled_from(list(hint))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(*map(values_of, arguments), max_size=3)
    assert origin in (Union, UnionType), f"no values for {hint}"
    return st.one_of(*map(values_of, arguments))


STORED = (
    Access,
    tuple[ReadValue, ...],
    tuple[ParameterSpec, ...],
    tuple[ActionKind, ...],
    tuple[Desired, ...],
    tuple[Effective, ...],
    SessionInfo,
    TrainerExit,
    UpdateSpec,
    Cancelled,
    Outcome,
    tuple[Applied, ...],
    Progress,
    tuple[MetricPoint, ...],
    dict[str, str],
    dict[str, str | None],
    dict[UpdateState, int],
)


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in type and content; NaN equals NaN, and 1 is not 1.0."""
    if isinstance(a, datetime) and isinstance(b, datetime):
        return a == b and a.utcoffset() == b.utcoffset()
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


def test_every_stored_type_is_tried() -> None:
    stored = {
        column.type.of
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, Json)
    }
    assert stored == set(STORED)


@pytest.mark.parametrize("kind", STORED, ids=str)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_value_comes_back_as_it_was(kind: Any, data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    for maker in (codec, remembering):
        one = maker(kind)
        assert same(one.decode(one.encode(value)), value)
    # Also in another process, which remembers nothing.
    fresh = Codec(kind)
    assert same(fresh.decode(remembering(kind).encode(value)), value)


def test_text_of_another_form_is_refused() -> None:
    with pytest.raises(ValidationError):
        codec(Progress).decode('{"step": "many"}')


def test_what_was_read_is_written_without_another_look() -> None:
    one = RememberingCodec(tuple[Reading, ...])
    value = one.decode('[{"parameter":"a","group":"","value":1.0}]')
    assert one.decode('[{"parameter":"a","group":"","value":1.0}]') is value
    assert one.encode(value) == '[{"parameter":"a","group":"","value":1.0}]'
    assert one.encode((Reading("a", "", 1),)) == '[{"parameter":"a","group":"","value":1}]'


def test_no_more_is_remembered_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "MAX_REMEMBERED", 3)
    one = RememberingCodec(Progress)
    for step in range(50):
        value = Progress(step)
        assert one.decode(one.encode(value)) == value
        # A new object may be where a forgotten one was; it must not get the other's text.
        assert one.decode(one.encode(Progress(step + 1_000))).step == step + 1_000
    assert len(one._values) == len(one._texts) == 3


def test_threads_do_not_disturb_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "MAX_REMEMBERED", 5)
    one = RememberingCodec(Progress)
    wrong: list[int] = []

    def work(first: int) -> None:
        steps = (step % 17 for step in range(first, first + 2_000))
        wrong.extend(s for s in steps if one.decode(one.encode(Progress(s))).step != s)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(one._values) == len(one._texts) <= 5
