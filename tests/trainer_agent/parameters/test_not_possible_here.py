"""What a value's owner itself refuses, whoever asks: in the wrong place, or in another run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.trainer_callback import TrainerState

from tests.trainer_agent.parameters.data_runs import ACCUMULATION, BATCH, GLOBAL, build
from trainer_agent.parameters import Boundary, Multiply, Ramp, Refused, Release, Set
from trainer_agent.parameters import cadence as cadences
from trainer_agent.parameters.data import find
from trainer_agent.parameters.data.chunking import Position
from trainer_agent.parameters.groups import as_stored
from trainer_agent.parameters.places import item
from trainer_agent.run import Run


def data_parameters(directory: Path, **args: Any) -> dict[str, Any]:
    trainer, _ = build(directory, **args)
    return {each.name: each for each in find(Run(trainer=trainer, args=trainer.args))}


def test_an_accumulation_begins_where_an_update_may(tmp_path: Path) -> None:
    flow = data_parameters(tmp_path, gradient_accumulation_steps=2)[ACCUMULATION].flow
    flow.position = Position(0, 2, 22)
    flow.set_accumulation(2)  # as it is
    with pytest.raises(Refused, match="2 micro-batches of the epoch have been used") as refused:
        flow.set_accumulation(4)
    assert (refused.value.reason, refused.value.value_in_force) == ("NOT_AT_BOUNDARY", 2)
    flow._taken_at = flow.trainer.state.global_step
    with pytest.raises(Refused, match="has its micro-batches already"):
        flow.set_accumulation(1)
    assert flow.sizes.accumulation == 2
    assert not flow.opens(1)


def test_a_batch_size_begins_with_an_epoch(tmp_path: Path) -> None:
    flow = data_parameters(tmp_path)[BATCH].flow
    flow.position = Position(0, 3, 22)
    flow.set_batch_size(1)  # as it is
    with pytest.raises(Refused, match="only where an epoch ends"):
        flow.set_batch_size(2)
    assert flow.sizes.per_device == 1


def test_what_the_last_update_did_otherwise_is_told(tmp_path: Path) -> None:
    flow = data_parameters(tmp_path)[ACCUMULATION].flow
    assert flow.deviation() is None
    flow.asked, flow.got = 3, 2
    assert flow.deviation() == "the update was to take 3 micro-batches and took 2"
    flow.got, flow.loader = 3, object()
    assert "did not use the new data loader" in flow.deviation()


def test_the_data_goes_on_only_from_a_place_that_was_restored(tmp_path: Path) -> None:
    holder = data_parameters(tmp_path)[ACCUMULATION]
    with pytest.raises(ValueError, match="was not restored"):
        holder.load_state_dict({"version": 1})
    with pytest.raises(ValueError, match="has version 99, and this is version 1"):
        holder.load_state_dict({"version": 99})
    holder.load_state_dict({})
    trainer, _ = build(tmp_path, ready=False)
    found: dict[str, Any]
    found = {each.name: each for each in find(Run(trainer=trainer, args=trainer.args))}
    with pytest.raises(ValueError, match=r"can not be in this run: .*attach"):
        found[ACCUMULATION].load_state_dict({"version": 1})
    for parameter in found.values():
        with pytest.raises(Refused, match="attach"):
            _ = parameter.flow


@pytest.mark.parametrize(
    ("name", "change", "accumulation"),
    [
        (ACCUMULATION, Set(ACCUMULATION, 3), 3),
        (ACCUMULATION, Multiply(ACCUMULATION, 2.0), 4),
        (ACCUMULATION, Multiply(ACCUMULATION, 0.3), None),
        (ACCUMULATION, Release(ACCUMULATION), 2),
        (ACCUMULATION, Ramp(ACCUMULATION, 4, 10), None),
        (GLOBAL, Set(GLOBAL, 12), 3),
        (GLOBAL, Set(GLOBAL, 10), None),
        (GLOBAL, Multiply(GLOBAL, 0.5), 1),
    ],
)
def test_what_accumulation_a_change_comes_to(
    name: str, change: Any, accumulation: int | None, tmp_path: Path
) -> None:
    parameters = data_parameters(
        tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    assert parameters[name].accumulation(change) == accumulation


def test_batches_that_serve_all_ranks_are_not_a_device_s(tmp_path: Path) -> None:
    parameter = data_parameters(tmp_path)[GLOBAL]
    assert parameter.why_unavailable() is None
    parameter.flow.trainer.accelerator.dataloader_config.split_batches = True
    assert "split_batches" in str(parameter.why_unavailable())


@pytest.mark.parametrize(("epochs", "words"), [(1, "1 time,"), (3, "3 times,")])
def test_a_run_that_was_attached_late_ends_with_its_data(
    epochs: int, words: str, tmp_path: Path
) -> None:
    """Ten batches an epoch, five updates: the loop's own plan is all there is."""
    trainer, _ = build(tmp_path, ready=False, gradient_accumulation_steps=2)
    trainer.callback_handler.train_dataloader = [None] * 10
    trainer.state = TrainerState(max_steps=4, num_train_epochs=epochs)
    run = Run(trainer=trainer, args=trainer.args, state=trainer.state)
    (parameter,) = (each for each in cadences.find(run) if each.name == "max_steps")
    done = Boundary(2, 4, 0.4)
    with pytest.raises(Refused, match="attach the trainer before it trains") as refused:
        parameter.apply(Set("max_steps", 5 * epochs + 1), done)
    assert f"can make {5 * epochs} steps at most" in refused.value.message
    assert words in refused.value.message
    parameter.apply(Set("max_steps", 5 * epochs), done)
    assert trainer.state.max_steps == 5 * epochs


def test_a_run_without_a_state_has_no_cadence() -> None:
    assert list(cadences.find(Run(args=SimpleNamespace()))) == []


def test_what_a_precision_has_no_room_for_is_seen_before_it_is_written() -> None:
    half = torch.tensor(1.0, dtype=torch.float16)
    assert as_stored(half, 1e10) == float("inf")
    assert as_stored(half, 1e-10) == 0.0
    assert as_stored(half, 0.1) == pytest.approx(0.1, rel=1e-3)
    assert as_stored(0.5, 1e300) == 1e300


def test_an_entry_that_is_not_there_is_no_place() -> None:
    with pytest.raises(LookupError, match=r"config\['beta'\] is not there"):
        item({}, "beta", "config")
    there = {"beta": 0.1}
    item(there, "beta", "config").write(0.2)
    assert there == {"beta": 0.2}
