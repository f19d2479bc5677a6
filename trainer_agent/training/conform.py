"""Checks what a file holds against the annotations of dataclasses. Pure.

The same rules serve our own sections and the argument classes of TRL and PEFT.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

from trainer_agent.training.document import Entry, Problem, show

T = TypeVar("T")

_INVALID: Final = object()
_NAMES: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "nothing",
}
_MAPPINGS: Final = (dict, collections.abc.Mapping)
_LISTS: Final = (list, collections.abc.Sequence)


class Conformer:
    """Converts entries, and collects what is wrong with them.

    Attributes:
        problems: What was found so far.
        places: Where each key that was seen was written, by its full name.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.places: dict[str, str] = {}

    def section(self, entry: Entry, cls: type[T], name: str = "") -> T | None:
        """Return a dataclass made of a mapping; None: something is wrong with it.

        A dataclass whose ``__post_init__`` raises ValueError says so as a problem.
        """
        arguments = self.arguments(entry, cls, name)
        if arguments is None:
            return None
        try:
            return cls(**arguments)
        except ValueError as error:
            self.problems.append(Problem(entry.place, name, str(error)))
            return None

    def arguments(self, entry: Entry, cls: type[Any], name: str = "") -> dict[str, Any] | None:
        """Return the arguments that a mapping gives to a dataclass; None: something is wrong.

        Args:
            entry: The mapping.
            cls: The dataclass; its annotations say what is allowed.
            name: Full name of the mapping's key.
        """
        content = {} if entry.value is None else entry.value
        self.places[name] = entry.place
        if not isinstance(content, dict):
            message = f"this must be a section with keys of its own, got {show(content)}"
            self.problems.append(Problem(entry.place, name, message))
            return None
        before = len(self.problems)
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        annotations = typing.get_type_hints(cls)
        arguments: dict[str, Any] = {}
        for key, below in content.items():
            full = f"{name}.{key}" if name else key
            self.places[full] = below.key_place
            if key not in fields:
                self.problems.append(Problem(below.key_place, full, unknown(key, fields)))
                continue
            value = self._convert(below, annotations[key], full)
            if value is not _INVALID:
                arguments[key] = value
        for field in fields.values():
            required = (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            )
            if required and field.name not in content:
                full = f"{name}.{field.name}" if name else field.name
                self.problems.append(Problem(entry.place, full, "this key is missing"))
        return arguments if len(self.problems) == before else None

    def _convert(self, entry: Entry, annotation: Any, name: str) -> Any:
        alternatives = _alternatives(annotation)
        if len(alternatives) > 1:
            if entry.value is None and type(None) in alternatives:
                return None
            some = [each for each in alternatives if each is not type(None)]
            if len(some) > 1:
                return self._any_of(entry, some, annotation, name)
            annotation = some[0]
        origin, value = get_origin(annotation) or annotation, entry.value
        if dataclasses.is_dataclass(origin) and isinstance(origin, type):
            made = self.section(entry, origin, name)
            return _INVALID if made is None else made
        if origin in _MAPPINGS and isinstance(value, dict):
            self.places |= {f"{name}.{key}": each.key_place for key, each in value.items()}
            of = (get_args(annotation) or (str, Any))[1]
            return self._whole(
                {key: self._convert(each, of, f"{name}.{key}") for key, each in value.items()}
            )
        if origin in _LISTS and isinstance(value, list):
            of = (get_args(annotation) or (Any,))[0]
            return self._whole(
                [self._convert(each, of, f"{name}[{at}]") for at, each in enumerate(value)]
            )
        if origin is tuple and isinstance(value, list):
            return self._tuple(entry, value, annotation, name)
        scalar = _scalar(value, annotation)
        if scalar is not _INVALID:
            return scalar if not isinstance(value, dict | list) else entry.plain()
        self.problems.append(Problem(entry.place, name, _expected(annotation, value)))
        return _INVALID

    def _any_of(self, entry: Entry, alternatives: Sequence[Any], annotation: Any, name: str) -> Any:
        enums = [each for each in alternatives if _is_enum(each)]
        if enums and isinstance(entry.value, str):
            alternatives = enums  # `SchedulerType | str` means one of the former's values
        nearest: Conformer | None = None
        for alternative in sorted(alternatives, key=_precedence):
            attempt = Conformer()
            value = attempt._convert(entry, alternative, name)
            if value is not _INVALID:
                self.places |= attempt.places
                return value
            meant = _has_shape_of(alternative, entry.value)
            if meant and (nearest is None or len(attempt.problems) < len(nearest.problems)):
                nearest = attempt
        problem = Problem(entry.place, name, _expected(annotation, entry.value))
        self.problems.extend([problem] if nearest is None else nearest.problems)
        return _INVALID

    def _tuple(self, entry: Entry, value: Sequence[Entry], annotation: Any, name: str) -> Any:
        of = get_args(annotation) or (Any, ...)
        if len(of) == 2 and of[1] is ...:
            of = (of[0],) * len(value)
        if len(of) != len(value):
            message = f"expected {len(of)} values, got {len(value)}"
            self.problems.append(Problem(entry.place, name, message))
            return _INVALID
        made = self._whole(
            [
                self._convert(each, kind, f"{name}[{at}]")
                for at, (each, kind) in enumerate(zip(value, of, strict=True))
            ]
        )
        return made if made is _INVALID else tuple(made)

    @staticmethod
    def _whole(made: Any) -> Any:
        values = made.values() if isinstance(made, dict) else made
        return _INVALID if any(each is _INVALID for each in values) else made


def _has_shape_of(annotation: Any, value: Any) -> bool:
    """Tell whether a list or mapping is what an annotation is about, right or not."""
    origin = get_origin(annotation) or annotation
    if isinstance(value, dict):
        return origin in _MAPPINGS or dataclasses.is_dataclass(origin)
    return isinstance(value, list) and origin in (*_LISTS, tuple)


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def unknown(key: str, known: Iterable[str]) -> str:
    """Return the message about a key that there is not."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if close:
        return f"there is no such key; did you mean {close[0]}?"
    allowed = f": the keys are {', '.join(names)}" if len(names) <= 20 else ""
    return f"there is no such key{allowed}"


def _scalar(value: Any, annotation: Any) -> Any:
    """Return a value that an annotation allows, converted, else ``_INVALID``."""
    if get_origin(annotation) is Literal:
        for allowed in get_args(annotation):
            if type(allowed) is type(value) and allowed == value:
                return value
        return _INVALID
    if annotation is float:
        return (
            float(value)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else _INVALID
        )
    if annotation is type(None):
        return None if value is None else _INVALID
    if annotation in (bool, int, str):
        return value if type(value) is annotation else _INVALID
    if _is_enum(annotation):
        return value if value in {member.value for member in annotation} else _INVALID
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return annotation(value) if isinstance(value, str) else _INVALID
    known = (*_MAPPINGS, *_LISTS, tuple)
    # Of another class only the class itself can tell what it takes.
    return _INVALID if (get_origin(annotation) or annotation) in known else value


def _expected(annotation: Any, value: Any) -> str:
    message = f"expected {describe(annotation)}, got {show(value)}"
    alternatives = _alternatives(annotation)
    if isinstance(value, str):
        close = difflib.get_close_matches(value, [str(each) for each in _choices(annotation)], n=1)
        if close:
            return f"{message}; did you mean {close[0]}?"
        if bool in alternatives and value.lower() in {"yes", "no", "on", "off"}:
            return f"{message}; write true or false"
    elif str in alternatives and isinstance(value, int | float):
        return f"{message}; put it in quotes"
    return message


def describe(annotation: Any) -> str:
    """Return what an annotation allows, in words."""
    alternatives = _alternatives(annotation)
    if len(alternatives) > 1:
        # That a key may be left empty is no news to who has written something.
        unsaid = {type(None), str} if _choices(annotation) else {type(None)}
        alternatives = [each for each in alternatives if each not in unsaid]
        return " or ".join(
            dict.fromkeys(describe(each) for each in sorted(alternatives, key=_precedence))
        )
    choices = _choices(annotation)
    if choices:
        return f"one of {', '.join(map(str, choices))}" if len(choices) > 1 else str(choices[0])
    origin = get_origin(annotation) or annotation
    if origin in _MAPPINGS or dataclasses.is_dataclass(origin):
        return "a mapping"
    if origin in (*_LISTS, tuple):
        of = [each for each in get_args(annotation) if each is not ...]
        return "a list" if not of or of[0] is Any else f"a list ({describe(of[0])} each)"
    return _NAMES.get(origin, getattr(origin, "__name__", str(origin)))


def _choices(annotation: Any) -> list[Any]:
    chosen: list[Any] = []
    for each in _alternatives(annotation):
        if get_origin(each) is Literal:
            chosen += [
                str(value).lower() if isinstance(value, bool) else value for value in get_args(each)
            ]
        elif _is_enum(each):
            chosen += [member.value for member in each]
    return chosen


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return list(get_args(annotation))
    return [annotation]


def _precedence(annotation: Any) -> int:
    """Order what is tried: numbers stay numbers where text is allowed too; null is named last."""
    if annotation is type(None):
        return 9
    return 1 if annotation is str else 0
