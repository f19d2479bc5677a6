"""Live parameters that a script declares in two lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from midcourse.control.v1 import parameter_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import LinkScript, delivery, multiply_change, set_change
from trainer_agent import GuardRails, Parameter, attach
from trainer_agent.parameters import Boundary, Kind, Refused, Set


class Knob:
    """Something of the script's own."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.seen: list[Any] = []

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.seen.append(value)
        self.value = value


def run(tmp_path: Path, script: Any, *parameters: Parameter, **options: Any) -> LinkScript:
    links = LinkScript(script)
    trainer = plain_trainer(tmp_path, save_strategy="steps", save_steps=5)
    attach(trainer, "job", parameters=parameters, link_factory=links, **options)
    trainer.train()
    assert trainer.state.global_step == 10
    return links


def test_it_is_declared_changed_and_reported(tmp_path: Path) -> None:
    knob = Knob(0.5)
    mine = Parameter("mixing", knob.get, knob.set, minimum=0, maximum=1, unit="share")
    links = run(tmp_path, {3: [delivery(1, set_change(0.25, parameter="mixing"))]}, mine)
    hello = links.link.first_hello
    assert hello is not None
    (spec,) = [each for each in hello.state.parameters if each.name == "mixing"]
    assert spec.kind == parameter_pb2.PARAMETER_KIND_NUMBER
    assert (spec.bounds.minimum, spec.bounds.maximum, spec.unit) == (0, 1, "share")
    assert spec.current_value.number == 0.5
    applied = links.link.outcomes[0].applied
    assert applied.step == 4
    (transition,) = applied.transitions
    assert (transition.old_value.number, transition.new_value.number) == (0.5, 0.25)
    assert knob.value == 0.25


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, parameter_pb2.PARAMETER_KIND_BOOLEAN),
        (3, parameter_pb2.PARAMETER_KIND_INTEGER),
        (3.0, parameter_pb2.PARAMETER_KIND_NUMBER),
        ("abc", parameter_pb2.PARAMETER_KIND_TEXT),
    ],
)
def test_its_kind_is_that_of_its_value(
    value: Any, kind: parameter_pb2.ParameterKind.ValueType, tmp_path: Path
) -> None:
    knob = Knob(value)
    links = run(tmp_path, {}, Parameter("knob", knob.get, knob.set))
    hello = links.link.first_hello
    assert hello is not None
    (spec,) = [each for each in hello.state.parameters if each.name == "knob"]
    assert spec.kind == kind


def test_what_is_out_of_bounds_never_reaches_the_script(tmp_path: Path) -> None:
    knob = Knob(2)
    mine = Parameter("knob", knob.get, knob.set, maximum=10)
    script = {
        3: [delivery(1, set_change(11, parameter="knob")), delivery(2, multiply_change(3, "knob"))]
    }
    links = run(tmp_path, script, mine, guard_rails={"knob": GuardRails(minimum=3)})
    first, second = links.link.outcomes
    assert first.rejected.reason == "OUT_OF_BOUNDS"
    assert second.applied.transitions[0].new_value.integer == 6
    assert knob.seen == [6]


@pytest.mark.parametrize("fails", ["get", "set", "both"])
def test_what_fails_in_it_takes_the_whole_update_back(fails: str, tmp_path: Path) -> None:
    knob = Knob(0.5)
    broken: list[bool] = []

    def read() -> Any:
        if broken and fails in {"get", "both"}:
            raise OSError("the disk is gone")
        return knob.get()

    def write(value: Any) -> None:
        if value == 0.25 and fails in {"set", "both"}:
            broken.append(True)
            knob.value = value
            raise ValueError("no such level")
        if value == 0.25:
            broken.append(True)
        else:
            broken.clear()
        knob.set(value)

    mine = Parameter("knob", read, write)
    change = set_change(0.25, parameter="knob")
    links = run(tmp_path, {3: [delivery(1, set_change(0.01), change)]}, mine)
    rejected = links.link.outcomes[0].rejected
    assert rejected.reason == "APPLY_FAILED"
    assert rejected.parameter == "knob"
    assert ("no such level" if fails != "get" else "the disk is gone") in rejected.message
    assert knob.value == 0.5
    assert 0.01 not in links.link.metric("learning_rate").values()


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    knob = Knob(0.5)
    run(
        tmp_path,
        {3: [delivery(1, set_change(0.25, parameter="knob"))]},
        Parameter("knob", knob.get, knob.set),
    )
    anew = Knob(0.5)
    links = LinkScript()
    trainer = plain_trainer(tmp_path)
    mine = Parameter("knob", anew.get, anew.set)
    attach(trainer, "job", parameters=[mine], link_factory=links)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert anew.value == 0.25


def test_a_name_that_is_taken_ends_steering(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    knob = Knob(0.5)
    trainer = plain_trainer(tmp_path)
    mine = Parameter("learning_rate", knob.get, knob.set)
    attach(trainer, "job", parameters=[mine], link_factory=LinkScript())
    trainer.train()
    assert "give yours another name" in caplog.text


def test_what_makes_no_sense_is_said_in_the_script() -> None:
    with pytest.raises(TypeError, match="it holds None"):
        Parameter("knob", lambda: None, print)  # type: ignore[arg-type,return-value]  # on purpose
    with pytest.raises(ValueError, match="lower_snake_case"):
        Parameter("My Knob", lambda: 1, print)
    choices = Parameter("knob", lambda: "a", print, choices=("a", "b"))
    assert choices.spec().choices == ("a", "b")


@pytest.mark.parametrize(
    ("begins", "kept"),
    [(float, np.float32), (np.float32, np.float32), (float, torch.tensor)],
    ids=["becoming numpy's", "numpy's", "becoming torch's"],
)
def test_a_number_of_numpy_or_torch_is_a_number(
    begins: Callable[[float], Any], kept: Callable[[float], Any], tmp_path: Path
) -> None:
    class Own(Knob):
        def set(self, value: Any) -> None:
            super().set(kept(value))

    own = Own(begins(0.5))
    parameter = Parameter("mixing", own.get, own.set)
    links = run(tmp_path, {3: [delivery(1, set_change(0.1, parameter="mixing"))]}, parameter)
    (transition,) = links.link.outcomes[0].applied.transitions
    assert transition.old_value.number == 0.5
    assert transition.new_value.number == float(kept(0.1)), "what is left of it is what is told"
    assert own.value == kept(0.1)
    assert not links.link.faults
    anew = Own(0.5)
    trainer = plain_trainer(tmp_path)
    mine = Parameter("mixing", anew.get, anew.set)
    attach(trainer, "job", parameters=[mine], link_factory=LinkScript())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert anew.value == kept(0.1)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (np.bool_(True), Kind.BOOL),
        (torch.tensor(True), Kind.BOOL),
        (np.int8(3), Kind.INT),
        (torch.tensor(3), Kind.INT),
        (np.float64(3), Kind.FLOAT),
        (torch.tensor(3, dtype=torch.bfloat16), Kind.FLOAT),
        (np.str_("abc"), Kind.STRING),
    ],
)
def test_its_kind_is_seen_through_numpy_and_torch(value: Any, kind: Kind) -> None:
    knob = Knob(value)
    mine = Parameter("knob", knob.get, knob.set)
    assert mine.spec().kind is kind
    read = mine.read().value
    assert type(read) in {bool, int, float, str}
    assert read == value


@pytest.mark.parametrize(
    "value", [np.zeros(2), torch.zeros(1), torch.tensor(1.0, device="meta"), 1j, np.complex64(1)]
)
def test_what_is_no_plain_number_on_the_host_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="one number on the host"):
        Parameter("knob", lambda: value, print)
    knob = Knob(0.5)
    mine = Parameter("knob", knob.get, lambda new: knob.set(value if new == 0.25 else new))
    with pytest.raises(TypeError, match="the live parameter knob must hold"):
        mine.apply(Set("knob", 0.25), Boundary(1, 10))
    assert knob.value == 0.5


def test_what_a_script_s_precision_does_not_hold_is_out_of_bounds() -> None:
    knob = Knob(np.float16(1))
    mine = Parameter("knob", knob.get, knob.set)
    with pytest.raises(Refused, match="inf") as refused:
        mine.apply(Set("knob", 1e9), Boundary(1, 10))
    assert refused.value.reason == "OUT_OF_BOUNDS"
    assert knob.value == 1


@pytest.mark.parametrize("boundary", ["generation", "accumulation", "whenever"])
def test_it_changes_where_steps_or_epochs_end_and_nowhere_else(boundary: str) -> None:
    knob = Knob(0.5)
    with pytest.raises(ValueError, match=f"at a step or an epoch; got boundary '{boundary}'"):
        Parameter("mixing", knob.get, knob.set, boundary=boundary)
