"""What the callback costs a training step.

Its own code, timed around its hooks: they are called as transformers calls them, on the optimizer
and scheduler of a real trainer, with steps of about a millisecond in between. The link is real, and
so is the agent at its other end; its control plane is not there. For comparison: the same with a
link that does nothing, which leaves our own code, and hooks that do nothing, which leaves the
clock. They take turns, a fraction of a second each, so that whatever else the machine does falls on
all of them.

And a real loop, in which the callback is there at one step and not at the next: turns of many steps
would differ by more than the callback takes.

All times are processor time: what other programs take from a step is not the callback's doing.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import TrainerCallback

from midcourse.link.v1 import link_pb2
from tests.bench.light_trainer import light_trainer
from tests.bench.report import Row, percentile
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import delivery, set_change
from trainer_agent import RuntimeParameterUpdateCallback, attach
from trainer_agent.link import TrainerLink
from trainer_agent.link.steps import REPORT_INTERVAL_NANOS

GOAL_P50_MICROS = 10.0
GOAL_P99_MICROS = 60.0
# A new connection is waited on for two seconds, and waking who waits costs the sender: no part
# of a run's steady state.
ATTENDED_SECONDS = 2.2
WARM_UP = 200
BLOCK = 250
"""Steps of a turn: with some longer ones a turn has as many reports as its time asks for."""
THREES = 5_000
"""Steps of a real loop with the callback; twice as many are without it."""
ARMS = 3
WITH = ARMS - 1
PARTS = 10
"""Into so many parts a real loop is cut, to see how far they differ."""
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


NOTHING = "hooks that do nothing"
CASES: dict[str, Callable[..., Any] | None] = {
    NOTHING: None,
    "no link": NoLink,
    "no link, a ramp in force": hold_link,
    "link and agent": _real_link,
}


class Hooks:
    """A trainer that does not train, and the hooks of its callback, called step by step."""

    def __init__(self, folder: Path, link_factory: Callable[..., Any] | None) -> None:
        trainer = plain_trainer(folder, max_steps=10**6)
        trainer.create_optimizer_and_scheduler(10**6)
        self._callback = (
            TrainerCallback()
            if link_factory is None
            else RuntimeParameterUpdateCallback("cost", "127.0.0.1:1", link_factory=link_factory)
        )
        self._told = trainer.args, trainer.state, trainer.control
        trainer.state.max_steps = 10**6
        self._parts: dict[str, Any] = {
            "model": trainer.model,
            "optimizer": trainer.optimizer,
            "lr_scheduler": trainer.lr_scheduler,
            "processing_class": None,
            "train_dataloader": None,
            "eval_dataloader": None,
        }
        self._callback.on_train_begin(*self._told, **self._parts)
        self.taken: list[float] = []

    def steps(self, count: int) -> list[float]:
        """Return the processor time of each step's hooks, in microseconds."""
        callback, told, parts = self._callback, self._told, self._parts
        optimizer, scheduler, state = parts["optimizer"], parts["lr_scheduler"], told[1]
        taken = []
        for _ in range(count):
            compute(STEP_SECONDS)
            optimizer.step()
            begin = time.thread_time_ns()
            callback.on_optimizer_step(*told, **parts)
            middle = time.thread_time_ns()
            scheduler.step()
            state.global_step += 1
            state.epoch = state.global_step / 100
            resumed = time.thread_time_ns()
            callback.on_step_end(*told, **parts)
            end = time.thread_time_ns()
            taken.append((middle - begin + end - resumed) / 1000)
        return taken

    def end(self) -> None:
        """Ends training."""
        self._callback.on_train_end(*self._told, **self._parts)


def compute(seconds: float) -> None:
    """Keep the processor as busy as the rest of a training step does."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(_MATRIX, _MATRIX)


def own_code(directory: Path, rounds: int) -> dict[str, list[float]]:
    """Return the times of the hooks of each case, in microseconds."""
    cases = {}
    for name, link_factory in CASES.items():
        (directory / name).mkdir()
        cases[name] = Hooks(directory / name, link_factory)
    attended_until = time.monotonic() + ATTENDED_SECONDS
    for hooks in cases.values():
        hooks.steps(WARM_UP)
    while time.monotonic() < attended_until:
        cases["link and agent"].steps(WARM_UP)
    for _ in range(rounds):
        for hooks in cases.values():
            hooks.taken += hooks.steps(BLOCK)
    for hooks in cases.values():
        hooks.end()
    return {name: hooks.taken for name, hooks in cases.items()}


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


class Drawn(TrainerCallback):
    """Draws for each step of a loop whether the callback is there, and takes the step's time.

    Three steps that follow each other, in an order drawn anew: two without the callback, whose
    difference says how much of any difference is noise, and one with it.

    Args:
        trainer: The trainer, steered; this is its last callback.
        steered: Its callback.
        threes: How many threes to take.
    """

    def __init__(self, trainer: Any, steered: TrainerCallback, threes: int) -> None:
        self._trainer = trainer
        self._steered = steered
        self._wrapped = vars(trainer)["get_batch_samples"]
        self._threes = threes
        self._draw = random.Random(0)
        self._left: list[int] = []
        self._arm: int | None = None
        self._begun = 0
        self._attended_until = time.monotonic() + ATTENDED_SECONDS
        self.taken: tuple[list[float], ...] = ([], [], [])
        """Processor time of the steps, in microseconds: twice without, then with it."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._arm is not None:
            self.taken[self._arm].append((time.thread_time_ns() - self._begun) / 1000)
        elif state.global_step < WARM_UP or time.monotonic() < self._attended_until:
            return
        if not self._left:
            self._left = self._draw.sample(range(ARMS), ARMS)
            control.should_training_stop = len(self.taken[WITH]) >= self._threes
        self._arm = self._left.pop()
        self._switch(on=self._arm == WITH or control.should_training_stop)
        self._begun = time.thread_time_ns()

    def _switch(self, *, on: bool) -> None:
        handler, own = self._trainer.callback_handler, vars(self._trainer)
        others = [each for each in handler.callbacks if each not in (self._steered, self)]
        # A new list: the handler is going through the old one.
        handler.callbacks = [*others, *([self._steered] if on else []), self]
        own.pop("get_batch_samples", None)
        if on:
            own["get_batch_samples"] = self._wrapped


@dataclass(frozen=True)
class Difference:
    """What a step takes longer, in microseconds.

    Attributes:
        ours: With the callback.
        control: Without it, in one half of the steps than in the other.
        doubt: Two standard errors of `ours`, as the parts of the run differ.
    """

    ours: float
    control: float
    doubt: float

    @classmethod
    def of(cls, taken: Sequence[Sequence[float]]) -> Difference:
        threes = list(zip(*taken, strict=True))
        size = len(threes) // PARTS
        parts = [threes[first : first + size] for first in range(0, size * PARTS, size)]
        ours = [_middle([c - (a + b) / 2 for a, b, c in part]) for part in parts]
        control = [_middle([a - b for a, b, _ in part]) for part in parts]
        doubt = 2 * statistics.stdev(ours) / PARTS**0.5
        return cls(statistics.mean(ours), statistics.mean(control), doubt)


def _middle(values: Sequence[float]) -> float:
    """Return the mean without the extremes, which are other programs' doing."""
    cut = len(values) // 20
    return statistics.mean(sorted(values)[cut : len(values) - cut])


def paired(directory: Path, threes: int) -> Difference:
    """Return what a step of a real loop takes of the processor more with the callback."""
    trainer = light_trainer(directory / "paired", 10**6)
    steered = attach(trainer, job="paired", control_plane="127.0.0.1:1", link_factory=_real_link)
    drawn = Drawn(trainer, steered, threes)
    trainer.add_callback(drawn)
    # The callback sees one step in three, and is to send its messages as rarely.
    interval = REPORT_INTERVAL_NANOS * ARMS
    with mock.patch("trainer_agent.steering.reporting.REPORT_INTERVAL_NANOS", interval):
        trainer.train()
    return Difference.of([times[:threes] for times in drawn.taken])


def rows(directory: Path, *, quick: bool) -> Iterator[Row]:
    """Measure, and return the rows of the benchmark table."""
    torch.set_num_threads(1)
    rounds = 5 if quick else 30
    with private_socket_directory():
        taken = own_code(directory, rounds)
        for case in list(CASES)[1:]:
            for percent, goal in ((50, GOAL_P50_MICROS), (99, GOAL_P99_MICROS)):
                yield Row(
                    f"callback's own code a step, {case}, p{percent}",
                    "µs",
                    percentile(taken[NOTHING], percent),
                    percentile(taken[case], percent),
                    goal,
                    "floor: hooks that do nothing, and the clock, which ours has in it as well",
                )
        found = paired(directory, THREES // 5 if quick else THREES)
    yield Row(
        "callback in a real loop, processor time of a step with less one without",
        "µs",
        found.doubt,
        found.ours,
        GOAL_P50_MICROS,
        "floor: how far the figure may be off; without against without: "
        f"{found.control:.0f} µs; the goal is 0.1 % of a step of 10 ms",
    )
