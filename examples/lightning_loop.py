"""Let a Lightning trainer be watched and steered: a callback over :class:`trainer_agent.loop.Loop`.

Lightning is not among what Midcourse installs: ``pip install lightning``, then::

    midcourse serve                                          # in one terminal
    python -m examples.lightning_loop --job my-lightning     # in another one
    midcourse set my-lightning learning_rate=0.01

For one optimizer, optimised by Lightning itself.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import lightning  # type: ignore[import-not-found]  # it is not among the requirements
import torch
from torch import Tensor, nn

from trainer_agent.loop import Loop


class Steerable(lightning.Callback):  # type: ignore[misc]  # of unknown type, see above
    """Lets a run be steered.

    Args:
        options: As for :class:`trainer_agent.loop.Loop`, but for optimizer, scheduler and steps.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._saved: dict[str, Any] = {}
        self._loop: Loop | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, after a checkpoint is loaded."""
        schedules, steps = trainer.lr_scheduler_configs, trainer.estimated_stepping_batches
        self._loop = Loop(
            trainer.optimizers[0],
            schedules[0].scheduler if schedules else None,
            total_steps=int(steps) if math.isfinite(steps) else None,
            actions=("save_checkpoint", "stop"),
            **self._options,
        )
        self._loop.load_state_dict(self._saved)
        self._done = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reach the boundary after an optimizer step; a batch that only accumulates is none."""
        if self._loop is None or trainer.global_step == self._done:
            return
        self._done = trainer.global_step
        signal = self._loop.step(self._done, loss=outputs["loss"], epoch=trainer.current_epoch)
        if signal.save:
            path = Path(trainer.default_root_dir) / f"step-{self._done}.ckpt"
            trainer.save_checkpoint(path)
            self._loop.saved(path)
        if signal.stop:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Report what validation came to."""
        if self._loop is not None and not trainer.sanity_checking:
            self._loop.report(trainer.callback_metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End in good order."""
        if self._loop is not None:
            self._loop.__exit__(None, None, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Say what ended the run."""
        if self._loop is not None:
            self._loop.__exit__(type(exception), exception, exception.__traceback__)

    def state_dict(self) -> dict[str, Any]:
        """Return what rides in Lightning's checkpoints."""
        return self._saved if self._loop is None else self._loop.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._saved = state_dict


class Wave(lightning.LightningModule):  # type: ignore[misc]  # likewise
    """Fits a sine wave."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        (x,) = batch
        return nn.functional.mse_loss(self.net(x), torch.sin(x))

    def configure_optimizers(self) -> Any:
        """Return AdamW with a cosine schedule that goes by steps."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(steps: int, directory: Path, resume: Path | None = None, **options: Any) -> Wave:
    """Train, or go on from a checkpoint; returns the model."""
    lightning.seed_everything(0, verbose=False)
    x = torch.rand(4096, 1) * 6 - 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=64)
    module = Wave(steps)
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=[Steerable(**options)],
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, loader, ckpt_path=resume)
    return module


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--job", help="id of the job; a new one is made up by default")
    parser.add_argument("--control-plane", help="its address, host:port")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--directory", type=Path, default=Path("out"), help="for checkpoints")
    options = parser.parse_args()
    train(options.steps, options.directory, job=options.job, control_plane=options.control_plane)


if __name__ == "__main__":
    main()
