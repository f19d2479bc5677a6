"""What the callback costs a training step: its own code, timed around its hooks.

The hooks are called as transformers calls them, on the optimizer and scheduler of a real trainer,
with steps of about a millisecond in between. The link is real, and so is the agent at its other
end; its control plane is not there. For comparison: the same with a link that does nothing, which
leaves our own code, and hooks that do nothing, which leaves the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from midcourse.link.v1 import link_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import delivery, set_change
from trainer_agent import RuntimeParameterUpdateCallback
from trainer_agent.link import TrainerLink

GOAL_P50_MICROS = 10.0
GOAL_P99_MICROS = 60.0
WARM_UP = 200


class NoLink:
    """A link that leads nowhere."""

    def __init__(self, first: Sequence[link_pb2.AgentMessage] = (), **_: Any) -> None:
        self._inbox = list(first)

    def start(self) -> None:
        """There is nothing to start."""

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Forget it."""

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        inbox, self._inbox = self._inbox, []
        return inbox

    def close(self, error: str | None = None, timeout: float = 0.0) -> bool:
        return True


def _real_link(**options: Any) -> TrainerLink:
    link = TrainerLink(**options)
    link.start()
    if not link.wait_ready(60):
        raise RuntimeError(f"no agent answered: {link.status}")
    _agents.append(link.status.agent_pid)
    return link


_agents: list[int | None] = []


def hold_link(**options: Any) -> NoLink:
    """Return a link that delivers one update, which the scheduler has to be followed for."""
    ramp = set_change(0.01)
    ramp.ramp.value.number, ramp.ramp.steps = 0.01, 10**9
    return NoLink([delivery(1, ramp)], **options)


CASES: dict[str, Callable[..., Any] | None] = {
    "hooks that do nothing": None,
    "no link": NoLink,
    "no link, a ramp in force": hold_link,
    "link and agent": _real_link,
}


def measure(link_factory: Callable[..., Any] | None, steps: int, pause: float) -> list[float]:
    """Return the time of each step's hooks, in microseconds."""
    with tempfile.TemporaryDirectory(prefix="midcourse-") as folder:
        trainer = plain_trainer(Path(folder), max_steps=steps + WARM_UP)
        trainer.create_optimizer_and_scheduler(steps + WARM_UP)
        callback = (
            TrainerCallback()
            if link_factory is None
            else RuntimeParameterUpdateCallback("cost", "127.0.0.1:1", link_factory=link_factory)
        )
        args, state, control = trainer.args, trainer.state, trainer.control
        optimizer, scheduler = trainer.optimizer, trainer.lr_scheduler
        assert optimizer is not None
        assert scheduler is not None
        state.max_steps = steps + WARM_UP
        parts: dict[str, Any] = {
            "model": trainer.model,
            "optimizer": optimizer,
            "lr_scheduler": scheduler,
            "processing_class": None,
            "train_dataloader": None,
            "eval_dataloader": None,
        }
        callback.on_train_begin(args, state, control, **parts)
        taken = []
        for _ in range(steps + WARM_UP):
            time.sleep(pause)
            optimizer.step()
            begin = time.perf_counter_ns()
            callback.on_optimizer_step(args, state, control, **parts)
            middle = time.perf_counter_ns()
            scheduler.step()
            state.global_step += 1
            state.epoch = state.global_step / 100
            resumed = time.perf_counter_ns()
            callback.on_step_end(args, state, control, **parts)
            end = time.perf_counter_ns()
            taken.append((middle - begin + end - resumed) / 1000)
        callback.on_train_end(args, state, control, **parts)
        return taken[WARM_UP:]


@contextlib.contextmanager
def private_socket_directory() -> Iterator[None]:
    """Keep the benchmark's agent apart from anybody else's, and end it."""
    with tempfile.TemporaryDirectory(prefix="midcourse-") as folder:
        os.environ["MIDCOURSE_SOCKET_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["MIDCOURSE_SOCKET_DIR"]
            for agent in filter(None, _agents):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(agent, signal.SIGKILL)


def summary(taken: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and mean."""
    percentiles = statistics.quantiles(taken, n=100)
    return {
        "p50": statistics.median(taken),
        "p99": percentiles[98],
        "mean": statistics.fmean(taken),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table and return the figures, in microseconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3000, help="steps of each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median of them counts")
    parser.add_argument("--pause", type=float, default=0.001, help="seconds between steps")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    with private_socket_directory():
        for _ in range(options.rounds):
            for name, link_factory in CASES.items():
                rounds[name].append(summary(measure(link_factory, options.steps, options.pause)))
    figures = {
        name: {key: statistics.median(each[key] for each in of_case) for key in of_case[0]}
        for name, of_case in rounds.items()
    }
    result = {
        "unit": "us/step",
        "goal": {"p50": GOAL_P50_MICROS, "p99": GOAL_P99_MICROS},
        "figures": figures,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return result
    print(f"{'callback cost per step, us':28} {'p50':>8} {'p99':>8} {'mean':>8}")
    for name, figure in figures.items():
        print(f"{name:28} {figure['p50']:8.1f} {figure['p99']:8.1f} {figure['mean']:8.1f}")
    print(f"{'goal':28} {GOAL_P50_MICROS:8.1f} {GOAL_P99_MICROS:8.1f}")
    return result


if __name__ == "__main__":
    main()
