"""NUL characters in the texts of messages: PostgreSQL stores none, so nobody is to send one."""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

NUL: Final = "\0"
MOST_PARTS: Final = 100_000
"""Most items that the lists of a message may have, all together, where it is searched for NULs."""
_REPLACED: Final = "\N{REPLACEMENT CHARACTER}"


class TooManyPartsError(ValueError):
    """A message has so many parts that the search would hold up everybody else."""


class _Kind(IntEnum):
    """What a field holds."""

    TEXT = 0
    TEXTS = 1
    MESSAGE = 2
    MESSAGES = 3
    MAP = 4


def field_with_nul(message: Message) -> str:
    """Returns the path of a text that has a NUL, such as ``spec.reason``; empty: none has.

    Raises:
        TooManyPartsError: The message has more than ``MOST_PARTS`` parts.
    """
    return next(_texts_with_nul(message, "", mend=False), "") if _has_nul(message) else ""


def replace_nul(message: Message) -> None:
    """Writes U+FFFD in the place of every NUL, in all texts of a message.

    Raises:
        TooManyPartsError: The message has more than ``MOST_PARTS`` parts.
    """
    if _has_nul(message):
        for _ in _texts_with_nul(message, "", mend=True):
            pass


@cache
def _with_texts(of: Descriptor) -> tuple[tuple[str, _Kind], ...]:
    """The fields of a message in which there can be texts, so that columns of numbers are free."""
    above = frozenset({of.full_name})
    return tuple(
        (field.name, _kind_of(field)) for field in of.fields if _can_have_texts(field, above)
    )


def _kind_of(field: FieldDescriptor) -> _Kind:
    inner = field.message_type
    if inner is None:
        return _Kind.TEXTS if field.is_repeated else _Kind.TEXT
    if inner.GetOptions().map_entry:
        return _Kind.MAP
    return _Kind.MESSAGES if field.is_repeated else _Kind.MESSAGE


def _can_have_texts(field: FieldDescriptor, above: frozenset[str]) -> bool:
    inner = field.message_type
    if inner is None:
        return bool(field.type == FieldDescriptor.TYPE_STRING)
    # Of a message within itself, the texts are those that it has above.
    return inner.full_name in above or any(
        _can_have_texts(each, above | {inner.full_name}) for each in inner.fields
    )


def _has_nul(message: Message) -> bool:
    """Tells whether any text has one. Called for thousands of heartbeats a second.

    Raises:
        TooManyPartsError: That would take too long to find out.
    """
    found = False
    parts = 0
    waiting: list[Any] = [message]
    while waiting:
        each = waiting.pop()
        for name, kind in _with_texts(each.DESCRIPTOR):
            if kind is _Kind.TEXT:
                # Not the end of it: whoever looks for the place goes through all the parts.
                found = found or NUL in getattr(each, name)
                continue
            if kind is _Kind.MESSAGE:
                if each.HasField(name):
                    waiting.append(getattr(each, name))
                continue
            values = getattr(each, name)
            parts += len(values)
            if parts > MOST_PARTS:
                raise TooManyPartsError(
                    f"got more than {MOST_PARTS:,} items in lists, which is the most allowed"
                )
            if kind is _Kind.MESSAGES:
                waiting += values
            elif kind is _Kind.TEXTS:
                found = found or any(NUL in text for text in values)
            else:
                for part in chain.from_iterable(values.items()):
                    if isinstance(part, str):
                        found = found or NUL in part
                    elif hasattr(part, "DESCRIPTOR"):
                        waiting.append(part)
    return found


def _texts_with_nul(message: Message, path: str, *, mend: bool) -> Iterator[str]:
    """Yields the paths of the texts that have one, each after it was mended, if it is to be."""
    for field, kind in _with_texts(message.DESCRIPTOR):
        name = f"{path}{field}"
        value = getattr(message, field)
        if kind is _Kind.MAP:
            yield from _in_map(value, name, mend=mend)
        elif kind is _Kind.MESSAGE:
            if message.HasField(field):
                yield from _texts_with_nul(value, f"{name}.", mend=mend)
        elif kind is not _Kind.TEXT:
            yield from _in_list(value, name, mend=mend)
        elif NUL in value:
            if mend:
                setattr(message, field, value.replace(NUL, _REPLACED))
            yield name


def _in_list(values: Any, name: str, *, mend: bool) -> Iterator[str]:
    for index, value in enumerate(values):
        if not isinstance(value, str):
            yield from _texts_with_nul(value, f"{name}[{index}].", mend=mend)
        elif NUL in value:
            if mend:
                values[index] = value.replace(NUL, _REPLACED)
            yield f"{name}[{index}]"


def _in_map(values: Any, name: str, *, mend: bool) -> Iterator[str]:
    for key, value in list(values.items()):
        at = f"{name}[{key!r}]"
        if hasattr(value, "DESCRIPTOR"):
            yield from _texts_with_nul(value, f"{at}.", mend=mend)
        elif isinstance(value, str) and NUL in value:
            if mend:
                values[key] = value.replace(NUL, _REPLACED)
            yield at
        if isinstance(key, str) and NUL in key:
            if mend:
                _rename(values, key, key.replace(NUL, _REPLACED))
            yield at


def _rename(values: Any, old: str, new: str) -> None:
    if hasattr(values[old], "DESCRIPTOR"):
        values[new].CopyFrom(values[old])
    else:
        values[new] = values[old]
    del values[old]
