"""A transformers trainer over a model of a few weights: as fast as a real one gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments


class Line(torch.nn.Module):
    """Fits a line."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(self.linear.weight, 0.5)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted = self.linear(x)
        return {"loss": torch.nn.functional.mse_loss(predicted, labels), "logits": predicted}


class Points(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Points near a line."""

    def __init__(self, count: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        self._x = torch.randn(count, 3, generator=generator)
        self._y = self._x.sum(dim=1, keepdim=True)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self._x[index], "labels": self._y[index]}


def plain_trainer(output_dir: Path, **args: Any) -> Trainer:
    """Build a trainer of ten steps."""
    callbacks = args.pop("callbacks", None)
    model = args.pop("model", None) or Line()
    train_dataset = args.pop("train_dataset", None) or Points()
    eval_dataset = args.pop("eval_dataset", None)
    arguments = TrainingArguments(
        **{
            "output_dir": str(output_dir),
            "max_steps": 10,
            "learning_rate": 0.1,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **args,
        }
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
