"""What the callback costs a training step: its own code, timed around its hooks.

The hooks are called as transformers calls them, on the optimizer and scheduler of a real trainer,
with steps of about a millisecond in between. The link is real, and so is the agent at its other
end; its control plane is not there. For comparison: the same with a link that does nothing, which
leaves our own code, and hooks that do nothing, which leaves the clock.
"""

from __future__ import annotations

import contextlib
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
from tests.bench.light_trainer import light_trainer
from tests.bench.report import Row, show
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import delivery, set_change
from trainer_agent import RuntimeParameterUpdateCallback, attach
from trainer_agent.link import TrainerLink

GOAL_P50_MICROS = 10.0
GOAL_P99_MICROS = 60.0
# A new connection is waited on for two seconds, and waking who waits costs the sender: no part
# of a run's steady state.
WARM_UP = 2_500
STEP_SECONDS = 0.001
_MATRIX = torch.ones(64, 64)


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


def compute(seconds: float) -> None:
    """Keep the processor as busy as the rest of a training step does."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(_MATRIX, _MATRIX)


def measure(link_factory: Callable[..., Any] | None, steps: int) -> list[float]:
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
            compute(STEP_SECONDS)
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


class LoopClock(TrainerCallback):
    """Times the loop alone, without what is done once before and after it."""

    def __init__(self, steps: int) -> None:
        self._last = steps - 1
        self._begin = self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM_UP:
            self._begin = time.perf_counter()
        elif state.global_step == self._last:
            self.seconds = (time.perf_counter() - self._begin) * self._last / (self._last - WARM_UP)


def paired(directory: Path, steps: int, rounds: int) -> list[float]:
    """Return what a step of a real loop takes longer with the callback, in microseconds a round."""
    differences = []
    for number in range(rounds):
        taken = {}
        for steered in (False, True) if number % 2 else (True, False):
            folder = directory / f"{number}-{steered}"
            trainer = light_trainer(folder, steps)
            if steered:
                attach(trainer, job=f"paired-{number}", control_plane="127.0.0.1:1")
            clock = LoopClock(steps)
            trainer.add_callback(clock)
            trainer.train()
            taken[steered] = clock.seconds
        differences.append((taken[True] - taken[False]) / steps * 1e6)
    return differences


def rows(directory: Path, *, quick: bool) -> list[Row]:
    """Measure, and return the rows of the benchmark table."""
    torch.set_num_threads(1)
    steps, rounds = (1_000, 3) if quick else (3_000, 5)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    with private_socket_directory():
        for _ in range(rounds):
            for name, link_factory in CASES.items():
                figures[name].append(summary(measure(link_factory, steps)))
        differences = paired(directory, WARM_UP + 2 * steps, rounds)

    def of(case: str, key: str) -> float:
        return statistics.median(figure[key] for figure in figures[case])

    found = [
        Row(
            f"callback's own code a step, {case}, {key}",
            "µs",
            of("hooks that do nothing", key),
            of(case, key),
            goal,
            "floor: hooks that do nothing",
        )
        for case in list(CASES)[1:]
        for key, goal in (("p50", GOAL_P50_MICROS), ("p99", GOAL_P99_MICROS))
    ]
    found.append(
        Row(
            "callback in a real loop, difference of paired runs, per step",
            "µs",
            None,
            statistics.median(differences),
            GOAL_P50_MICROS,
            f"of {rounds} rounds, from {min(differences):.0f} to {max(differences):.0f}; "
            "0.1 % of a 10 ms step is 10 µs",
        )
    )
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="midcourse-") as folder:
        show(rows(Path(folder), quick=True), Path("out/callback_cost.json"))
