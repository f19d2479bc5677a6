"""A real Hugging Face Trainer with steps of a millisecond or so, steered or not.

python -m tests.bench.light_trainer OUTPUT_DIR CONTROL_PLANE JOB [STEP_SECONDS]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments


class Line(torch.nn.Module):
    """The smallest model that there is something to learn for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.mse_loss(self.layer(x)[:, 0], labels)}


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random rows, the same every time."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn(count, 8, generator=generator)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self._x[index], "labels": self._x[index].sum()}


def light_trainer(
    directory: str | Path, max_steps: int, callbacks: list[Any] | None = None
) -> Trainer:
    """A trainer that logs and saves nothing."""
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=max_steps,
        per_device_train_batch_size=1,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_grad_norm=0.0,
    )
    trainer = Trainer(
        model=Line(), args=arguments, train_dataset=Rows(100_000), callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class StopFile(TrainerCallback):
    """Ends training once a file is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look_at = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + 0.2
            control.should_training_stop = self._path.exists()


class LongStep(TrainerCallback):
    """Has steps take so long, by waiting, as a host does for its GPU."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._end = time.monotonic() + self._seconds

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        time.sleep(max(0.0, self._end - time.monotonic()))


def main() -> None:
    from trainer_agent import attach

    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    callbacks: list[TrainerCallback] = [StopFile(directory / "stop")]
    if len(sys.argv) > 4:
        callbacks.append(LongStep(float(sys.argv[4])))
    trainer = light_trainer(directory, 10_000_000, callbacks)
    attach(trainer, control_plane=sys.argv[2], job=sys.argv[3])
    trainer.train()


if __name__ == "__main__":
    main()
