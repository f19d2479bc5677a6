"""The data flow through all that lies between an update and the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from midcourse.control.v1 import parameter_pb2, update_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import LinkScript, delivery
from tests.support.tiny_runs import outcome
from tests.trainer_agent.parameters.data_runs import (
    ACCUMULATION,
    BATCH,
    GLOBAL,
    Numbered,
    Recorder,
)
from trainer_agent import attach
from trainer_agent.parameters.data.flow import DataFlow
from trainer_agent.parameters.data.loop import WrappedLoop, flow_of

ARGS: dict[str, Any] = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
}


def change(name: str, value: int, coupling: update_pb2.Coupling.ValueType = 0) -> Any:  # type: ignore[assignment]  # unspecified
    made = update_pb2.Change(parameter=name, coupling=coupling)
    made.set.value.CopyFrom(parameter_pb2.Value(integer=value))
    return made


def run(
    output_dir: Path, script: LinkScript, resume: str | None = None, **args: Any
) -> tuple[Any, list[list[int]]]:
    model = Recorder()
    trainer = plain_trainer(output_dir, model=model, train_dataset=Numbered(22), **{**ARGS, **args})
    attach(trainer, "job", link_factory=script)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, model.seen


def test_an_update_waits_for_its_boundary_and_the_rate_follows(tmp_path: Path) -> None:
    changes = [change(ACCUMULATION, 3, update_pb2.COUPLING_LINEAR)]
    script = LinkScript({2: [delivery(1, *changes)]})
    trainer, _ = run(tmp_path, script)
    (outcome,) = script.link.outcomes
    assert outcome.applied.step == 4, "3 divides 12 micro-batches, not 8"
    old_new = {
        each.parameter: (each.old_value, each.new_value) for each in outcome.applied.transitions
    }
    assert [each.integer for each in old_new[ACCUMULATION]] == [4, 3]
    old, new = (each.number for each in old_new["learning_rate"])
    assert new == old * 0.75
    assert script.link.metric("learning_rate")[4] == new
    assert trainer.state.max_steps == trainer.state.global_step == 3 + 4 + 8
    assert not script.link.faults
    hello = script.link.first_hello
    assert hello is not None
    found = {each.name: each for each in hello.state.parameters}
    assert found[GLOBAL].current_value.integer == 4
    assert found[BATCH].boundary == parameter_pb2.BOUNDARY_EPOCH
    assert found[ACCUMULATION].boundary == parameter_pb2.BOUNDARY_ACCUMULATION


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (DataFlow, "begin", 1),
        (DataFlow, "planned", 1),
        (DataFlow, "begin_epoch", 1),
        (DataFlow, "begin_epoch", 3),
        (DataFlow, "take", 3),
        (WrappedLoop, "_chunk", 1),
        (WrappedLoop, "_chunk", 6),  # the last update of the epoch, which is of fewer
        (WrappedLoop, "_chunk", 7),  # past it
        (WrappedLoop, "_falls_short", 2),
    ],
)
def test_where_following_the_data_fails_training_goes_on_as_without_it(
    owner: Any, name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_model = Recorder()
    points = Numbered(22)
    args = {**ARGS, "num_train_epochs": 5}
    plain = plain_trainer(tmp_path, model=plain_model, train_dataset=points, **args)
    plain.train()
    original, calls = getattr(owner, name), 0

    def breaks(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise RuntimeError("broken on purpose")
        return original(*given)

    monkeypatch.setattr(owner, name, breaks)
    script = LinkScript({26: [delivery(1, change(ACCUMULATION, 2))]})
    trainer, seen = run(tmp_path, script, num_train_epochs=5)
    assert seen == plain_model.seen
    outcome(trainer).assert_same(outcome(plain))
    assert not script.link.faults
    assert "broken on purpose" in script.link.outcomes[0].rejected.message
    trainer.state.max_steps += 1  # as a callback of the script's own may
    flow = flow_of(trainer)
    assert flow is not None
    assert flow.state() is None, "where it stands in its data is not known any more"


@pytest.mark.parametrize(("name", "value"), [(ACCUMULATION, 2), ("max_steps", 40)])
def test_where_it_fails_after_a_change_training_ends(
    name: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go on as another run."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(WrappedLoop, "_falls_short", broken)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path, LinkScript({2: [delivery(1, change(name, value))]}))


def test_resumed_is_as_uninterrupted(tmp_path: Path) -> None:
    changes = [change(GLOBAL, 2, update_pb2.COUPLING_SQRT)]
    save: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    script = LinkScript({2: [delivery(1, *changes)]})
    whole, seen = run(tmp_path, script, **save)
    for step in (2, 5):
        again = LinkScript()
        checkpoint = str(tmp_path / f"checkpoint-{step}")
        resumed, rest = run(tmp_path / f"from-{step}", again, checkpoint, **save)
        assert not again.link.faults
        assert rest == seen[8 + 2 * (step - 2) :]
        assert resumed.state.max_steps == whole.state.max_steps == 20
        for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
            assert mine.equal(theirs)
        rates = script.link.metric("learning_rate")
        assert again.link.metric("learning_rate") == {
            each: rate for each, rate in rates.items() if each > step
        }
