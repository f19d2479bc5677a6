"""The grammar of ``midcourse set``: what ``name=value`` means. Pure.

::

    assignment  =  NAME "=" value
                |  NAME "*" FACTOR      the same as NAME=xFACTOR
    value       =  "x" FACTOR      multiply by it, such as x0.5
                |  "release"       give back to the training script's schedule
                |  "current"       with --mode schedule: the value in force is the peak
                |  JSON string     a text, whatever it looks like: '"x264"'
                |  anything else   a value of the parameter's kind

A parameter that is known to be a text takes every value as it is, but for JSON strings.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["number", "integer", "boolean", "text"]
"""Declared type of a parameter."""

Scalar: TypeAlias = bool | int | float | str

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_FACTOR: Final = re.compile(r"[x×*](?P<factor>[-+]?(\d|\.\d).*)", re.DOTALL)
_PRODUCT: Final = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_.]*)\*(?P<factor>[^=]+)")
_SWITCHES: Final = {
    "true": True,
    "on": True,
    "yes": True,
    "false": False,
    "off": False,
    "no": False,
}


class AssignmentError(ValueError):
    """An assignment cannot be understood; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Set:
    """Set the value."""

    value: Scalar


@dataclass(frozen=True, slots=True)
class Multiply:
    """Scale the value in force."""

    factor: float


@dataclass(frozen=True, slots=True)
class Release:
    """Give the value back to its schedule."""


@dataclass(frozen=True, slots=True)
class Current:
    """Take the value in force."""


Meaning: TypeAlias = Set | Multiply | Release | Current


def is_assignment(text: str) -> bool:
    """Says whether a text is meant as an assignment: neither sign stands in the id of a job."""
    return "=" in text or "*" in text


def split_assignment(text: str) -> tuple[str, str]:
    """Returns the name and the text of the value.

    Raises:
        AssignmentError: There is no ``=``, no value, or the name is none.
    """
    if match := _PRODUCT.fullmatch(text):
        return match["name"], f"x{match['factor']}"
    name, equals, value = text.partition("=")
    if not _NAME.fullmatch(name):
        raise AssignmentError(
            f"{text!r} does not begin with the name of a parameter; write learning_rate=5e-5"
        )
    if not equals or not value:
        raise AssignmentError(
            f"got {text!r}, which has no value; write {name}=5e-5 to set it, {name}=x0.5 to"
            f" multiply it or {name}=release to give it back to its schedule"
        )
    return name, value


def interpret(name: str, text: str, kind: Kind | None) -> Meaning:
    """Returns what a value means for a parameter of a kind; None: the kind is unknown.

    Numbers that the control plane will refuse, such as NaN, are passed on: it says why.

    Raises:
        AssignmentError: The value is not of the kind.
    """
    if text.startswith('"'):
        return Set(_quoted(name, text))
    if kind == "text":
        return Set(text)
    if text == "release":
        return Release()
    if text == "current":
        return Current()
    if match := _FACTOR.fullmatch(text):
        return Multiply(_factor(name, match["factor"]))
    match kind:
        case "number":
            return Set(_number(name, text))
        case "integer":
            return Set(_integer(name, text))
        case "boolean":
            return Set(_boolean(name, text))
        case None:
            return Set(_guess(text))


def _quoted(name: str, text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise AssignmentError(f"{name}: {text} is no complete JSON string")
    return value


def _factor(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AssignmentError(f"{name}: {text!r} is no factor; write {name}=x0.5") from None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AssignmentError(
            f"{name} takes a number, such as 5e-5, x0.5 to multiply, or release; got {text!r}"
        ) from None


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise AssignmentError(f"{name} takes a whole number, such as 10; got {text!r}")
    return int(number)


def _boolean(name: str, text: str) -> bool:
    try:
        return _SWITCHES[text.lower()]
    except KeyError:
        raise AssignmentError(f"{name} takes true or false; got {text!r}") from None


def _guess(text: str) -> Scalar:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
