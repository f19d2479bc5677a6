"""Train a small model in a plain PyTorch loop that can be watched and steered while it runs.

    midcourse serve &
    python examples/raw_loop.py --job my-loop --steps 100000
    midcourse set my-loop learning_rate=0.01
    midcourse set my-loop noise=0.2
    midcourse evaluate my-loop

Stopped with ``midcourse stop my-loop`` or killed, it goes on from its last checkpoint when it is
started again.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer_agent.loop import Loop
from trainer_agent.parameters.user import Parameter


@dataclasses.dataclass
class Waves:
    """Points of a sine wave, with noise."""

    noise: float = 0.05
    generator: torch.Generator = dataclasses.field(
        default_factory=lambda: torch.Generator().manual_seed(0)
    )

    def batch(self, size: int = 64) -> tuple[Tensor, Tensor]:
        """Draw some points."""
        x = torch.rand(size, 1, generator=self.generator) * 6 - 3
        return x, torch.sin(x) + self.noise * torch.randn(size, 1, generator=self.generator)

    def set_noise(self, value: Any) -> None:
        """Draw with another noise from now on."""
        self.noise = value


def train(job: str | None, control_plane: str | None, steps: int, directory: Path) -> None:
    """Train, or go on training, until the steps are done or a stop is asked for."""
    torch.manual_seed(0)
    data = Waves()
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    checkpoint, done = directory / "raw-loop.pt", 0

    with Loop(
        optimizer,
        scheduler,
        job=job,
        control_plane=control_plane,
        method="regression",
        total_steps=steps,
        samples_per_step=64,
    ) as loop:
        loop.expose(Parameter("noise", lambda: data.noise, data.set_noise, minimum=0.0))

        def save() -> Path:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "data": data.generator.get_state(),
                "loop": loop.state_dict(),
                "step": step,
            }
            torch.save(state, checkpoint)
            return checkpoint

        def evaluate() -> dict[str, float]:
            x = torch.linspace(-3, 3, 200)[:, None]
            with torch.no_grad():
                return {"eval_loss": float(nn.functional.mse_loss(model(x), torch.sin(x)))}

        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            data.generator.set_state(state["data"])
            loop.load_state_dict(state["loop"])
            done = state["step"]

        for step in range(done + 1, steps + 1):
            x, y = data.batch()
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own lack
            optimizer.step()
            scheduler.step()

            signal = loop.step(step, loss=loss)
            if signal.evaluate or step == steps:
                loop.report(evaluate())
            if signal.save or step == steps:
                loop.saved(save())
            if signal.stop:
                break
        else:
            step = steps
    print(f"{loop.job_id}: {step} of {steps} steps are done")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--job", help="id of the job; a new one is made up by default")
    parser.add_argument("--control-plane", help="its address, host:port")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps")
    parser.add_argument("--directory", type=Path, default=Path("out"), help="for the checkpoint")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    train(options.job, options.control_plane, options.steps, options.directory)


if __name__ == "__main__":
    main()
