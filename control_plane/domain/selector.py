"""Label selectors with Kubernetes grammar.

Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors

    team=nlp, team==nlp, team!=nlp, method in (dpo, orpo), method notin (sft), frozen, !frozen

Requirements are separated by commas and all must hold. As in Kubernetes, `!=` and
`notin` also hold where the label is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from control_plane.domain.errors import Reason, Refusal, invalid
from control_plane.domain.job import is_label_key, is_label_value

_TOKEN = re.compile(r"\s*(?:(==|!=|[=!(),])|([^\s=!(),]+))")

MAX_LENGTH = 4_096


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Literal["in", "notin", "exists", "absent"]
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil the condition."""
        match self.operator:
            case "in":
                return labels.get(self.key) in self.values
            case "notin":
                return labels.get(self.key) not in self.values
            case "exists":
                return self.key in labels
            case "absent":
                return self.key not in labels

    def __str__(self) -> str:
        """The condition, in the grammar."""
        match self.operator:
            case "exists":
                return self.key
            case "absent":
                return f"!{self.key}"
            case _ if len(self.values) == 1:
                (value,) = self.values
                return f"{self.key}{'=' if self.operator == 'in' else '!='}{value}"
            case _:
                return f"{self.key} {self.operator} ({','.join(sorted(self.values))})"


@dataclass(frozen=True, slots=True)
class Selector:
    """Conditions that must all hold; none: everything matches."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil every condition."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        """The selector, in the grammar."""
        return ",".join(map(str, self.requirements))


ANYTHING = Selector()


class _Parser:
    """A recursive-descent parser over the tokens of one selector."""

    def __init__(self, text: str, field: str) -> None:
        self._text = text
        self._field = field
        self._tokens: list[tuple[str, int]] = []
        for token in _TOKEN.finditer(text):
            group = 1 if token.group(1) else 2
            self._tokens.append((token.group(group), token.start(group)))
        self._next = 0

    def _error(self, wanted: str) -> Refusal:
        at = self._position()
        got = repr(self._text[at : at + 20]) if at < len(self._text.rstrip()) else "the end"
        return invalid(
            self._field,
            f"in {self._text[:200]!r} at character {at + 1}: got {got}, expected {wanted}; "
            "grammar: key=value, key!=value, key in (a,b), key notin (a,b), key, !key, "
            "separated by commas",
            reason=Reason.SELECTOR_INVALID,
        )

    def _position(self) -> int:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else len(self._text)

    def _peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token

    def _key(self) -> str:
        if not is_label_key(self._peek()):
            raise self._error("a label key")
        return self._take()

    def _value(self) -> str:
        token = self._peek()
        if token in ("", ",", ")"):
            return ""
        if not is_label_value(token):
            raise self._error("a label value")
        return self._take()

    def _values(self) -> frozenset[str]:
        if self._take() != "(":
            self._next -= 1
            raise self._error("'('")
        values = [self._value()]
        while self._peek() == ",":
            self._take()
            values.append(self._value())
        if self._peek() != ")":
            raise self._error("',' or ')'")
        self._take()
        return frozenset(values)

    def _requirement(self) -> Requirement:
        if self._peek() == "!":
            self._take()
            return Requirement(self._key(), "absent")
        key = self._key()
        match self._peek():
            case "=" | "==":
                self._take()
                return Requirement(key, "in", frozenset({self._value()}))
            case "!=":
                self._take()
                return Requirement(key, "notin", frozenset({self._value()}))
            case "in":
                self._take()
                return Requirement(key, "in", self._values())
            case "notin":
                self._take()
                return Requirement(key, "notin", self._values())
            case _:
                return Requirement(key, "exists")

    def parse(self) -> Selector:
        if not self._tokens:
            return Selector()
        requirements = [self._requirement()]
        while self._peek() == ",":
            self._take()
            requirements.append(self._requirement())
        if self._next < len(self._tokens):
            raise self._error("',' or the end")
        return Selector(tuple(requirements))


def parse(text: str, field: str = "selector") -> Selector:
    """Reads a selector; empty text selects everything.

    Raises:
        Refusal: SELECTOR_INVALID, saying where, what was got and what was expected.
    """
    if len(text) > MAX_LENGTH:
        raise invalid(
            field,
            f"got {len(text)} characters, at most {MAX_LENGTH}",
            reason=Reason.SELECTOR_INVALID,
        )
    return _Parser(text, field).parse()
