"""What fuzzers say: messages that are almost right, and bytes that are none."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.support.any_request import OF_TYPE, messages

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Draw = Callable[[st.SearchStrategy[Any]], Any]
"""Draws from a strategy; what is drawn may depend on what has come back so far."""

NO_TEXT = (b"\xff\xfe", b"\xc3(", b"\xed\xa0\x80", b"a\xf5")
"""Bytes that are no UTF-8."""


def chance(draw: Draw, one_in: int) -> bool:
    """Whether something happens that does so once in so many times."""
    return bool(draw(st.integers(1, one_in)) == one_in)


def pick(draw: Draw, *choices: T) -> T:
    """One of several."""
    chosen: T = draw(st.sampled_from(choices))
    return chosen


def any_of(draw: Draw, kind: type[M]) -> M:
    """Any message of a type."""
    of: Any = kind.DESCRIPTOR
    made: M = draw(messages(of))
    return made


def altered(draw: Draw, message: M) -> M:
    """A message like another one, but for one to three of its fields, at whatever depth."""
    made = type(message)()
    made.CopyFrom(message)
    for _ in range(draw(st.integers(1, 3))):
        _alter(draw, made)
    return made


def _alter(draw: Draw, target: Any) -> None:
    while True:
        fields = list(target.DESCRIPTOR.fields)
        if not fields:
            return  # a message that says all by being there
        names = [field.name for field in fields]
        field: FieldDescriptor = target.DESCRIPTOR.fields_by_name[draw(st.sampled_from(names))]
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            break
        there = list(getattr(target, field.name)) if field.is_repeated else []
        if field.is_repeated and not there:
            getattr(target, field.name).add()
            return
        if pick(draw, "deeper", "deeper", "here") == "here":
            target.ClearField(field.name)
            return
        target = draw(st.sampled_from(there)) if there else getattr(target, field.name)
    name = field.name
    if inner is not None:
        entry = inner.fields_by_name
        value = draw(OF_TYPE[entry["value"].type])
        getattr(target, name)[draw(OF_TYPE[entry["key"].type])] = value
    elif field.is_repeated:
        values = draw(st.lists(OF_TYPE[field.type], max_size=4))
        del getattr(target, name)[:]
        getattr(target, name).extend(values)
    elif chance(draw, 4):
        target.ClearField(name)
    else:
        setattr(target, name, draw(OF_TYPE[field.type]))


def spoiled(draw: Draw, raw: bytes) -> bytes:
    """Bytes like others, and no message any more, or another one."""
    at: int = draw(st.integers(0, len(raw)))
    match pick(draw, "cut", "flip", "insert", "double", "unknown field", "no text", "noise"):
        case "cut":
            return raw[:at]
        case "flip" if at < len(raw):
            return raw[:at] + bytes([raw[at] ^ draw(st.integers(1, 255))]) + raw[at + 1 :]
        case "insert":
            return raw[:at] + bytes(draw(st.binary(min_size=1, max_size=8))) + raw[at:]
        case "double":
            return raw + raw
        case "unknown field":
            return raw + b"\xfa\x7f\x03abc"  # field 2047, three bytes
        case "no text":
            text = bytes(pick(draw, *NO_TEXT))
            return raw + bytes([pick(draw, 0x0A, 0x12, 0x22), len(text)]) + text
        case _:
            return bytes(draw(st.binary(max_size=80)))


def noise(seed: int, size: int) -> bytes:
    """So many bytes that say nothing, the same for the same seed."""
    return random.Random(seed).randbytes(size)
