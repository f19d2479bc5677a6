"""Values are held against annotations as a person would read them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from trainer_agent.training.conform import Conformer
from trainer_agent.training.document import read


class Strategy(enum.StrEnum):
    NO = "no"
    STEPS = "steps"


@dataclass
class Inner:
    share: float

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError(f"share must be 1 at most, got {self.share}")


@dataclass
class Outer:
    needed: str
    count: int = 1
    rate: float | None = None
    flag: bool = False
    either: bool | None = None
    kind: Literal["a", "b"] = "a"
    strategy: Strategy | str = "no"
    names: list[str] = field(default_factory=list)
    report: str | list[str] | None = None
    pair: tuple[float, float] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] | str | None = None
    inner: Inner | None = None
    file: Path | None = None
    odd: complex | None = None


def problems(text: str) -> list[str]:
    conformer = Conformer()
    made = conformer.section(read(f"needed: x\n{text}", "f"), Outer)
    assert (made is None) == bool(conformer.problems)
    return [str(problem) for problem in conformer.problems]


def test_what_is_right_is_taken() -> None:
    text = """
        needed: x
        count: 3
        rate: 1
        flag: true
        kind: b
        strategy: steps
        names: [a]
        report: [b]
        pair: [0, 1.5]
        labels: {team: nlp}
        options: {deep: [1, {x: null}]}
        inner: {share: 0.5}
        file: some/file
    """
    made = Conformer().section(read(text, "f"), Outer)
    assert made == Outer(
        needed="x",
        count=3,
        rate=1.0,
        flag=True,
        kind="b",
        strategy="steps",
        names=["a"],
        report=["b"],
        pair=(0.0, 1.5),
        labels={"team": "nlp"},
        options={"deep": [1, {"x": None}]},
        inner=Inner(0.5),
        file=Path("some/file"),
    )
    assert isinstance(made.rate, float)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuont: 3", "f:2:1: cuont: there is no such key; did you mean count?"),
        ("zzz: 3", "f:2:1: zzz: there is no such key: the keys are count, either, "),
        ("count: 3.5", "f:2:8: count: expected a whole number, got 3.5"),
        ("count: true", "f:2:8: count: expected a whole number, got true"),
        ("count: '3'", "f:2:8: count: expected a whole number, got '3'"),
        ("rate: fast", "f:2:7: rate: expected a number, got 'fast'"),
        ("flag: yes", "f:2:7: flag: expected true or false, got 'yes'; write true or false"),
        ("either: 1", "f:2:9: either: expected true or false, got 1"),
        ("kind: c", "f:2:7: kind: expected one of a, b, got 'c'"),
        (
            "strategy: step",
            "f:2:11: strategy: expected one of no, steps, got 'step'; did you mean steps?",
        ),
        ("names: a", "f:2:8: names: expected a list (text each), got 'a'"),
        ("names: [a, 1]", "f:2:12: names[1]: expected text, got 1; put it in quotes"),
        ("report: 3", "f:2:9: report: expected a list (text each) or text, got 3; put it in"),
        ("pair: [1]", "f:2:7: pair: expected 2 values, got 1"),
        ("pair: [1, x]", "f:2:11: pair[1]: expected a number, got 'x'"),
        ("labels: [a]", "f:2:9: labels: expected a mapping, got a list"),
        ("labels: {a: 1}", "f:2:13: labels.a: expected text, got 1; put it in quotes"),
        ("options: 3", "f:2:10: options: expected a mapping or text, got 3; put it in quotes"),
        ("inner: 3", "f:2:8: inner: this must be a section with keys of its own, got 3"),
        ("inner: {shar: 3}", "f:2:9: inner.shar: there is no such key; did you mean share?"),
        ("inner: {share: 3}", "f:2:8: inner: share must be 1 at most, got 3.0"),
        ("inner: {}", "f:2:8: inner.share: this key is missing"),
        ("count:", "f:2:7: count: expected a whole number, got nothing"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    assert problems(text)[0].startswith(said)


def test_everything_that_is_wrong_is_said() -> None:
    assert len(problems("count: x\nkind: c\nzzz: 1")) == 3


def test_of_other_classes_the_class_itself_decides() -> None:
    assert problems("odd: 3") == []
    assert problems("odd: [3]") == []


def test_a_missing_key_is_said_at_its_section() -> None:
    conformer = Conformer()
    assert conformer.section(read("count: 1", "f"), Outer) is None
    assert [str(each) for each in conformer.problems] == ["f:1:1: needed: this key is missing"]
