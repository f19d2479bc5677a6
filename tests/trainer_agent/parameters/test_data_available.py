"""Which trainers the data flow can be changed in, and what the others say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import Trainer

from tests.support.plain_trainer import plain_trainer
from tests.trainer_agent.parameters.data_runs import ACCUMULATION, BATCH, GLOBAL, build, train
from trainer_agent.parameters.data import find, internals, prepare
from trainer_agent.run import Run

NAMES = (ACCUMULATION, GLOBAL, BATCH)


def reasons(trainer: Any, *, attached: bool = True) -> dict[str, str | None]:
    run = Run(trainer=trainer if attached else None, args=trainer.args)
    return {each.name: each.spec().unavailable_reason for each in find(run)}


def test_available(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path)
    assert reasons(trainer) == dict.fromkeys(NAMES)
    assert {
        each.name: each.spec().current for each in find(Run(trainer=trainer, args=trainer.args))
    } == {
        ACCUMULATION: 1,
        GLOBAL: 1,
        BATCH: 1,
    }


def test_the_trainer_has_to_be_attached(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, ready=False)
    for found in (reasons(trainer), reasons(trainer, attached=False)):
        assert all("attach the trainer" in str(why) for why in found.values())
    assert list(find(Run())) == []


def test_a_loop_of_ones_own(tmp_path: Path) -> None:
    class Mine(Trainer):
        def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
            return cast("Any", super())._run_epoch(*args, **kwargs)

    trainer = plain_trainer(tmp_path)
    trainer.__class__ = Mine
    prepare(trainer)
    assert "_run_epoch" in str(reasons(trainer)[ACCUMULATION])
    trainer.train()
    assert trainer.state.global_step == 10


def test_another_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = plain_trainer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(internals, "_FRAGMENTS", {"_run_epoch": ("what was there once",)})
        prepare(trainer)
    assert "what was there once" in str(reasons(trainer)[GLOBAL])
    assert "_run_epoch" not in vars(trainer)
    trainer = plain_trainer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(internals, "_SIGNATURES", {"get_batch_samples": ("renamed",)})
        prepare(trainer)
    assert "renamed" in str(reasons(trainer)[BATCH])


def test_a_trainer_that_breaks_when_it_is_looked_at_trains(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path)
    trainer.get_sp_size = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    prepare(trainer)
    assert "ZeroDivisionError" in str(reasons(trainer)[ACCUMULATION])


def test_batches_laid_out_for_an_accumulation(tmp_path: Path) -> None:
    class Laid(Trainer):
        def get_train_dataloader(self) -> Any:
            assert self.args.gradient_accumulation_steps
            return super().get_train_dataloader()

    trainer = plain_trainer(tmp_path)
    trainer.__class__ = Laid
    prepare(trainer)
    found = reasons(trainer)
    assert "Laid.get_train_dataloader" in str(found[ACCUMULATION])
    assert "Laid.get_train_dataloader" in str(found[GLOBAL])
    assert found[BATCH] is None


def test_samples_grouped_by_length(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, train_sampling_strategy="group_by_length")
    assert all("group_by_length" in str(why) for why in reasons(trainer).values())


def _engine(trainer: Any) -> None:
    trainer.accelerator.state.distributed_type = SimpleNamespace(value="DEEPSPEED")


def _sequences(trainer: Any) -> None:
    trainer.get_sp_size = lambda: 2


def _renamed(trainer: Any) -> None:
    trainer._run_epoch = None


def _without_size(trainer: Any) -> None:
    del trainer._train_batch_size


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_engine, "DEEPSPEED fixes accumulation and batch size"),
        (_sequences, "sequences are split over several processes"),
        (_renamed, "Trainer has no _run_epoch"),
        (_without_size, "has no _train_batch_size"),
    ],
)
def test_what_plans_its_data_otherwise(
    tmp_path: Path, change: Callable[[Any], None], why: str
) -> None:
    trainer = plain_trainer(tmp_path)
    change(trainer)
    assert why in str(internals.why_not_at_all(trainer))


def test_a_transformers_without_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = plain_trainer(tmp_path)
    assert internals.why_not_at_all(trainer) is None

    def gone(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", gone)
    assert "is not there to be checked" in str(internals.why_not_at_all(trainer))


def test_batches_that_were_prepared_for_their_size(tmp_path: Path) -> None:
    trainer: Any = plain_trainer(tmp_path)
    assert internals.why_no_batch_size(trainer) is None
    trainer.calculate_KL = True
    assert "KL estimate" in str(internals.why_no_batch_size(trainer))
    trainer._buffered_inputs = None
    assert "generation batch" in str(internals.why_no_batch_size(trainer))
    assert internals.generation_length(trainer) is None
    assert "in a way that is not known" in str(internals.why_no_accumulation(trainer))


def test_a_batch_size_that_is_found(tmp_path: Path) -> None:
    run = train(tmp_path, auto_find_batch_size=True)
    found = reasons(run.trainer)
    assert found[ACCUMULATION] is None
    assert "auto_find_batch_size" in str(found[BATCH])


def test_a_loader_that_is_built_otherwise_is_refused(tmp_path: Path) -> None:
    from tests.trainer_agent.parameters.data_runs import set_to

    class Fixed(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(self.train_dataset, batch_size=2)  # type: ignore[arg-type]

    trainer, steer = build(tmp_path, {1: [set_to(BATCH, 4)]})
    trainer.__class__ = Fixed
    trainer.train()
    (refused,) = steer.refused
    assert refused.reason == "READ_BACK_DIFFERS"
    assert trainer.args.per_device_train_batch_size == 1


def test_what_is_relied_on_is_there() -> None:
    """Fails with a transformers that works otherwise, where the parameters would be unavailable."""
    for name, fragments in internals._FRAGMENTS.items():
        source = inspect.getsource(getattr(Trainer, name))
        assert all(each in source for each in fragments), name
