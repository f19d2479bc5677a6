"""Gradient clipping in real trainers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer

from tests.support.plain_scripts import writes
from tests.support.scripted_link import LinkScript, delivery
from tests.support.tiny_runs import outcome, run
from tests.trainer_agent.parameters.steered import (
    all_applied,
    change,
    refusal,
    rejection,
    release,
    scripted,
    steer,
)
from trainer_agent import attach
from trainer_agent.parameters import Boundary, Multiply, Release, Set
from trainer_agent.parameters.clipping import find
from trainer_agent.run import Run

HERE = Boundary(4, 10)
NAME = "max_grad_norm"


def test_a_trainer_is_steered_as_a_plain_callback_would_and_resumes(tmp_path: Path) -> None:
    """On, tighter, off and back."""
    values = {2: 0.05, 6: 0.0}
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}

    def write(step: int, trainer: Trainer) -> None:
        trainer.args.max_grad_norm = {**values, 8: 1.0}.get(step, trainer.args.max_grad_norm)

    script = {at: [change(NAME, value)] for at, value in values.items()}
    later = {6: script[6], 8: [release(NAME)]}
    live, link = steer(tmp_path / "live", {**script, **later}, **args)
    assert all_applied(link)
    _, plain = scripted(tmp_path / "plain", write, **args)
    outcome(live).assert_same(plain)
    # Turned off, the trainer reports the norm all the same.
    assert all("grad_norm" in entry for entry in plain.losses.values())
    assert outcome(live).differs(scripted(tmp_path / "none", lambda *_: None, **args)[1])

    checkpoint = str(tmp_path / "live" / "checkpoint-4")
    resumed, link = steer(tmp_path / "again", later, resume=checkpoint, **args)
    assert resumed.args.max_grad_norm == 1.0
    assert all_applied(link)
    outcome(resumed).assert_same(plain)


def test_undo_bounds_and_release() -> None:
    args = SimpleNamespace(max_grad_norm=1.0)
    (parameter,) = find(Run(args=args))
    parameter.undo(parameter.apply(Set(NAME, 0.1), HERE))
    assert (args.max_grad_norm, parameter.state_dict()) == (1.0, {})
    assert "at least 0" in refusal(parameter, Set(NAME, -1.0), HERE).message
    assert refusal(parameter, Set(NAME, float("inf")), HERE).reason == "OUT_OF_BOUNDS"
    parameter.apply(Multiply(NAME, 0.5), HERE)
    assert args.max_grad_norm == 0.5
    parameter.apply(Release(NAME), HERE)
    assert args.max_grad_norm == 1.0


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=8))
def test_random_sequences(asked: list[float | None]) -> None:
    args = SimpleNamespace(max_grad_norm=1.0)
    (parameter,) = find(Run(args=args))
    for value in asked:
        parameter.apply(Release(NAME) if value is None else Set(NAME, value), HERE)
        assert args.max_grad_norm == (1.0 if value is None else value)


@pytest.mark.parametrize(("kind", "engine"), [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Meg")])
def test_engines_that_clip_by_themselves(kind: str, engine: str) -> None:
    args = SimpleNamespace(max_grad_norm=1.0)
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name=kind))
    run = Run(args=args, trainer=SimpleNamespace(accelerator=accelerator, args=args))
    (parameter,) = find(run)
    assert engine in str(parameter.spec().unavailable_reason)
    (parameter,) = find(Run(args=SimpleNamespace(max_grad_norm=1.0, deepspeed="zero.json")))
    assert "DeepSpeed" in str(parameter.spec().unavailable_reason)


def test_without_arguments_there_is_none() -> None:
    assert list(find(Run())) == []
    other = SimpleNamespace(args=SimpleNamespace(max_grad_norm=1.0), accelerator=None)
    (parameter,) = find(Run(args=SimpleNamespace(max_grad_norm=1.0), trainer=other))
    assert "other arguments" in str(parameter.spec().unavailable_reason)


def test_a_refusal_says_what_stays_in_force(tmp_path: Path) -> None:
    trainer, link = steer(tmp_path, {4: [change(NAME, -1.0)]})
    rejected = rejection(link)
    assert (rejected.reason, rejected.parameter) == ("OUT_OF_BOUNDS", NAME)
    assert rejected.in_force[0].value.number == trainer.args.max_grad_norm == 1.0


def test_with_trl(tmp_path: Path) -> None:
    script = LinkScript({2: [delivery(1, change(NAME, 0.01))]})
    live = run(
        "sft", tmp_path / "live", lambda t: attach(t, "job", link_factory=script), max_steps=4
    )
    plain = run("sft", tmp_path / "plain", writes({NAME: 0.01}, 2), max_steps=4)
    live.assert_same(plain)
    assert live.differs(run("sft", tmp_path / "none", max_steps=4))
