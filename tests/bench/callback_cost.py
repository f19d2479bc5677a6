"""What the callback costs a training step.

Its own code, timed around its hooks: they are called as transformers calls them, on the optimizer
and scheduler of a real trainer, with steps of about a millisecond in between. The link is real, and
so is the agent at its other end; its control plane is not there. For comparison: the same with a
link that does nothing, which leaves our own code, and hooks that do nothing, which leaves the
clock. And a real loop with the callback and one without it.

All of them take turns, a fraction of a second each, so that whatever else the machine does falls on
all of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from midcourse.link.v1 import link_pb2
from tests.bench.light_trainer import light_trainer
from tests.bench.report import Row, percentile
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import delivery, set_change
from trainer_agent import RuntimeParameterUpdateCallback, attach
from trainer_agent.link import TrainerLink

GOAL_P50_MICROS = 10.0
GOAL_P99_MICROS = 60.0
# A new connection is waited on for two seconds, and waking who waits costs the sender: no part
# of a run's steady state.
ATTENDED_SECONDS = 2.2
WARM_UP = 200
BLOCK = 250
"""Steps of a turn: with some longer ones a turn has as many reports as its time asks for."""
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
        """Return the time of each step's hooks, in microseconds."""
        callback, told, parts = self._callback, self._told, self._parts
        optimizer, scheduler, state = parts["optimizer"], parts["lr_scheduler"], told[1]
        taken = []
        for _ in range(count):
            compute(STEP_SECONDS)
            optimizer.step()
            begin = time.perf_counter_ns()
            callback.on_optimizer_step(*told, **parts)
            middle = time.perf_counter_ns()
            scheduler.step()
            state.global_step += 1
            state.epoch = state.global_step / 100
            resumed = time.perf_counter_ns()
            callback.on_step_end(*told, **parts)
            end = time.perf_counter_ns()
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


@dataclass
class Baton:
    """What two loops pass to and fro, so that one of them trains at a time.

    Attributes:
        rounds: How many turns of each are timed.
        turns: Whose turn it is.
        warm_until: Turns are timed once this time is past; None: not known before both train.
        timed: Whether this turn of both is timed.
        alone: One of the loops has ended.
    """

    rounds: int
    turns: tuple[threading.Event, threading.Event] = field(
        default_factory=lambda: (threading.Event(), threading.Event())
    )
    warm_until: float | None = None
    timed: bool = False
    alone: bool = False

    def begin(self, number: int) -> None:
        """Wait for the turn of a loop."""
        if not self.alone:
            self.turns[number].wait()
            self.turns[number].clear()
        if number == 0:  # the other one's turn goes with it
            self.timed = self.warm_until is not None and time.perf_counter() > self.warm_until
        elif self.warm_until is None:
            self.warm_until = time.perf_counter() + ATTENDED_SECONDS

    def end(self) -> None:
        """Have the other loop go on alone."""
        self.alone = True
        for turn in self.turns:
            turn.set()


class Turns(TrainerCallback):
    """Times the steps of one of the two loops, so many in each of its turns."""

    def __init__(self, baton: Baton, number: int) -> None:
        self._baton = baton
        self._number = number
        self._left = WARM_UP
        self._begun: float | None = None
        self.means: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._left:
            self._left -= 1
            return
        baton = self._baton
        if self._begun is not None and baton.timed:
            self.means.append((time.perf_counter() - self._begun) / BLOCK * 1e6)
        baton.turns[1 - self._number].set()
        control.should_training_stop = len(self.means) >= baton.rounds
        if not control.should_training_stop:
            baton.begin(self._number)
        self._left = BLOCK - 1
        self._begun = time.perf_counter()


def paired(directory: Path, rounds: int) -> list[float]:
    """Return what a step of a real loop takes longer with the callback, in microseconds a turn."""
    baton = Baton(rounds)
    clocks = [Turns(baton, number) for number in range(2)]
    failures: list[BaseException] = []
    threads = []
    for number, clock in enumerate(clocks):
        trainer = light_trainer(directory / str(number), 10**6)
        if number:
            attach(trainer, job="paired", control_plane="127.0.0.1:1")
        trainer.add_callback(clock)

        def train(number: int = number, trainer: Any = trainer) -> None:
            baton.begin(number)
            try:
                trainer.train()
            except BaseException as error:  # noqa: BLE001 - raised below
                failures.append(error)
                baton.end()

        threads.append(threading.Thread(target=train, daemon=True))
    for thread in threads:
        thread.start()
    baton.turns[0].set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    without, steered = (clock.means for clock in clocks)
    return [longer - shorter for shorter, longer in zip(without, steered, strict=True)]


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
                    percentile(taken["hooks that do nothing"], percent),
                    percentile(taken[case], percent),
                    goal,
                    "floor: hooks that do nothing",
                )
        differences = paired(directory, rounds)
    yield Row(
        "callback in a real loop, a step with less one without",
        "µs",
        None,
        statistics.median(differences),
        GOAL_P50_MICROS,
        f"of {len(differences)} pairs of turns, from {min(differences):.0f} to "
        f"{max(differences):.0f}; 10 µs is 0.1 % of a step of 10 ms",
    )
