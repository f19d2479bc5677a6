"""Real trainers whose accumulation and batch size are changed, and what plain torch comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from tests.support.plain_trainer import Line, Points, plain_trainer
from trainer_agent.parameters import (
    Applied,
    Boundary,
    Change,
    LiveParameter,
    Refused,
    Set,
    apply_all,
)
from trainer_agent.parameters.data import find, prepare
from trainer_agent.parameters.learning_rate import LearningRate
from trainer_agent.run import Run

ACCUMULATION = "gradient_accumulation_steps"
GLOBAL = "global_batch_size"
BATCH = "per_device_train_batch_size"

Script = Mapping[int, Sequence[Change]]


class Numbered(Points):
    """Points that know their number."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**super().__getitem__(index), "number": torch.tensor(index)}


class Recorder(Line):
    """Writes down which points each micro-batch had."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []

    def forward(
        self, x: torch.Tensor, labels: torch.Tensor, number: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        if number is not None and self.training:
            self.seen.append(number.tolist())
        return super().forward(x, labels)


class SummingRecorder(Recorder):
    """Normalises its loss over all that an update has, as language models do."""

    def forward(
        self,
        x: torch.Tensor,
        labels: torch.Tensor,
        number: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        outputs = super().forward(x, labels, number)
        squares = (outputs["logits"] - labels).square()
        return {
            **outputs,
            "loss": squares.mean()
            if num_items_in_batch is None
            else squares.sum() / num_items_in_batch,
        }


@dataclass
class Made:
    """A change that took effect."""

    step: int
    """Steps done before it."""
    epoch: float
    """Epochs done before it."""
    applied: list[Applied]


class Steer(TrainerCallback, ExportableState):
    """Makes changes at the first boundary from a step on where they may be made.

    Stands for the callback and the controller, with nothing but the parameters behind it.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = {step: list(changes) for step, changes in (script or {}).items()}
        self.parameters: dict[str, LiveParameter] = {}
        self.made: list[Made] = []
        self.refused: list[Refused] = []
        self.problems: list[str] = []
        self.chunks: list[int] = []
        self.rates: list[float] = []
        self.epochs: list[float] = []
        self.batches = 0
        self._unverified: dict[str, Applied] = {}
        self._used: dict[str, Any] = {}
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rate = LearningRate(kwargs["optimizer"], kwargs["lr_scheduler"])
        run = Run(
            optimizer=kwargs["optimizer"],
            lr_scheduler=kwargs["lr_scheduler"],
            learning_rate=rate,
            model=kwargs["model"],
            trainer=self.trainer,
            args=args,
            state=state,
        )
        found: list[LiveParameter] = [rate, *find(run)]
        self.parameters = {each.name: each for each in found}
        saved = state.stateful_callbacks.get("Steer") or {}
        if state.global_step and "steering" in saved:
            for name, data in saved["steering"]["controller"]["parameters"].items():
                self.parameters[name].load_state_dict(data)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.batches += 1

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.chunks.append(self.batches + 1)
        self.batches = 0
        self.rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))
        self._used = {
            name: self.parameters[name].read(synchronise=True) for name in self._unverified
        }

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        here = Boundary(state.global_step, state.max_steps, state.epoch)
        self.epochs.append(state.epoch)
        for name, each in self._unverified.items():
            problem = self.parameters[name].verify(each, self._used[name], here)
            if problem:
                self.problems.append(problem)
        self._unverified = {}
        if control.should_training_stop:
            return
        for due in sorted(step for step in self.script if step <= state.global_step):
            changes = self.script[due]
            try:
                for change in changes:
                    self.parameters[change.parameter].check(change, here)
                if not all(self.parameters[each.parameter].opens(each, here) for each in changes):
                    continue
                applied = apply_all(self.parameters, changes, here)
            except Refused as refused:
                self.refused.append(refused)
            else:
                self.made.append(Made(state.global_step, state.epoch, applied))
                # What is changed again at the same boundary is in force as changed last.
                self._unverified |= {each.change.parameter: each for each in applied}
            del self.script[due]

    def state(self) -> dict[str, Any]:
        parameters = {name: each.state_dict() for name, each in self.parameters.items()}
        return {
            "args": {},
            "attributes": {},
            "steering": {"controller": {"parameters": parameters}},
        }


@dataclass
class Trained:
    """A run that has ended."""

    trainer: Trainer
    steer: Steer
    seen: list[list[int]] = field(default_factory=list)

    @property
    def weights(self) -> list[torch.Tensor]:
        model: Any = self.trainer.model
        return [each.detach().clone() for each in model.parameters()]

    def epochs(self, samples: int) -> list[list[int]]:
        """Return what was used, in pieces of as many samples as there are."""
        flat = [number for batch in self.seen for number in batch]
        return [flat[start : start + samples] for start in range(0, len(flat), samples)]

    def assert_same(self, other: Trained) -> None:
        for mine, others in zip(self.weights, other.weights, strict=True):
            assert torch.equal(mine, others)


def build(
    output_dir: Path,
    script: Script | None = None,
    *,
    samples: int = 22,
    model: type[Recorder] = Recorder,
    ready: bool = True,
    **args: Any,
) -> tuple[Trainer, Steer]:
    steer = Steer(script)
    trainer = plain_trainer(
        output_dir,
        callbacks=[steer],
        train_dataset=args.pop("train_dataset", None) or Numbered(samples),
        model=model(),
        **{"per_device_train_batch_size": 1, "max_steps": -1, "num_train_epochs": 2, **args},
    )
    steer.trainer = trainer
    if ready:
        prepare(trainer)
    return trainer, steer


def train(
    output_dir: Path, script: Script | None = None, *, resume: str | None = None, **args: Any
) -> Trained:
    trainer, steer = build(output_dir, script, **args)
    trainer.train(resume_from_checkpoint=resume)
    model: Any = trainer.model
    assert not steer.problems
    return Trained(trainer, steer, model.seen)


def set_to(name: str, value: int, **more: Any) -> Set:
    return Set(name, value, **more)


def with_torch_alone(run: Trained, samples: int, chunks: Sequence[int]) -> list[torch.Tensor]:
    """Train on the same micro-batches, so many for each update, with nothing but torch.

    The rates are those that the run used.
    """
    points, trained = Points(samples), cast("Any", run.trainer.model)
    model: Any = type(trained)()
    args: Any = run.trainer.args
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args)
    decayed = [model.linear.weight]
    optimizer = cls(
        [
            {"params": decayed, "weight_decay": args.weight_decay},
            {"params": [model.linear.bias], "weight_decay": 0.0},
        ],
        **options,
    )
    left = iter(run.seen)
    for count, rate in zip(chunks, run.steer.rates, strict=True):
        batches = [next(left) for _ in range(count)]
        items = torch.tensor(sum(map(len, batches)))
        for batch in batches:
            x = torch.stack([points[number]["x"] for number in batch])
            labels = torch.stack([points[number]["labels"] for number in batch])
            if isinstance(model, SummingRecorder):
                loss = model(x, labels, num_items_in_batch=items)["loss"]
            else:
                loss = model(x, labels)["loss"] / count
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        model.zero_grad()
    assert next(left, None) is None
    return [each.detach().clone() for each in model.parameters()]
