"""Keeps a training run going: starts it, passes signals on, rolls back, reports a crash."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer_agent.steering import checkpoints
from trainer_agent.steering.roll_back import (
    EXIT_CODE,
    FILE_VARIABLE,
    LAUNCHER_VARIABLE,
    ROLLED_BACK_VARIABLE,
    WHY_NOT_VARIABLE,
)
from trainer_agent.training.channel import Receiver
from trainer_agent.training.display import Display
from trainer_agent.training.exits import CONFIGURATION, USAGE
from trainer_agent.training.order import Order
from trainer_agent.training.processes import Ended, Processes, python

_TAIL_SHOWN: Final = 15

_MEMORY: Final = (
    "give it less at once: a smaller training.per_device_train_batch_size with more"
    " training.gradient_accumulation_steps, a smaller training.max_length, or"
    " training.gradient_checkpointing=true"
)


class Supervisor:
    """Runs a training order in processes of its own.

    Args:
        order: What to train.
        display: Where to show it.
        max_restarts: How often a roll back may start it anew.
        command: The command line that the user typed, to say how to go on.
        worker: Command of a training process, given the order's file; for tests.
    """

    def __init__(
        self,
        order: Order,
        display: Display,
        *,
        max_restarts: int,
        command: Sequence[str],
        worker: Callable[[str], list[str]] = lambda path: python(
            "trainer_agent.training.worker", path
        ),
    ) -> None:
        self._order = order
        self._display = display
        self._max_restarts = max_restarts
        self._command = command
        self._worker = worker

    def run(self) -> int:
        """Train to the end and return the exit status."""
        order, restarts, rolled_back = self._order, 0, None
        with tempfile.TemporaryDirectory(prefix="midcourse-train-") as name:
            directory = Path(name)
            while True:
                wish = directory / f"roll-back-{restarts}.json"
                environment = self._roll_backs(wish, rolled_back, restarts)
                ended = self._once(order, directory, environment)
                self._display.close()
                if ended.code != EXIT_CODE or ended.asked is not None:
                    return self._report(ended)
                checkpoint, fault = _wished(wish)
                if fault is not None or checkpoint is None:
                    self._display.say(f"the run asked to be rolled back, and cannot be: {fault}")
                    self._how_to_go_on()
                    return ended.code
                self._set_aside(checkpoint)
                restarts += 1
                self._display.say(
                    f"rolling back to {checkpoint}; restart {restarts} of at most"
                    f" {self._max_restarts}"
                )
                # The same job, be its name given or made up.
                order = dataclasses.replace(
                    order, resume=str(checkpoint), job=order.job or self._display.job
                )
                rolled_back = wish

    # ---- Within ----

    def _roll_backs(self, wish: Path, rolled_back: Path | None, restarts: int) -> Mapping[str, str]:
        """Return what a training process is told of roll backs: to come, and the one before it."""
        told = {LAUNCHER_VARIABLE: str(os.getpid())}
        if restarts < self._max_restarts:
            told[FILE_VARIABLE] = str(wish)
        else:
            told[WHY_NOT_VARIABLE] = (
                f"it was rolled back {restarts} times already, which --max-restarts allows"
            )
        if rolled_back is not None:
            told[ROLLED_BACK_VARIABLE] = str(rolled_back)
        return told

    def _once(self, order: Order, directory: Path, environment: Mapping[str, str]) -> Ended:
        self._display.loading()
        pipe, path, note = (directory / name for name in ("progress", "order.json", "stop"))
        for left in (pipe, note):
            left.unlink(missing_ok=True)
        receiver = Receiver(pipe)
        try:
            dataclasses.replace(order, progress=str(pipe), stop_note=str(note)).save(path)
            processes = Processes(
                lambda line, error: self._display.line(line, error=error), self._stopping
            )
            return processes.run(
                self._worker(str(path)),
                environment,
                order.nproc,
                {receiver.fd: lambda: self._events(receiver)},
            )
        finally:
            receiver.close()

    def _events(self, receiver: Receiver) -> None:
        for event in receiver.events():
            self._display.event(event)

    def _stopping(self, received: signal.Signals, again: bool) -> None:
        if again:
            self._display.say(f"{received.name}: killing the training process")
        else:
            killing = "SIGTERM" if received == signal.SIGHUP else "a second one"
            self._display.say(
                f"{received.name}: stopping after this step, with a checkpoint;"
                f" {killing} kills at once"
            )

    def _set_aside(self, checkpoint: Path) -> None:
        try:
            moved = checkpoints.set_aside_after(checkpoint)
        except OSError as error:
            self._display.say(f"later checkpoints cannot be moved away: {error}")
            return
        for path in moved:
            self._display.say(f"what came after it was moved to {path}")

    def _report(self, ended: Ended) -> int:
        """Say how the run ended, where that is not plain, and return the exit status."""
        if ended.code == CONFIGURATION:
            return USAGE  # it was told line by line
        if ended.code == 0:
            self._report_end()
            return 0
        say, display = self._display.say, self._display
        if ended.asked is not None:
            where = "" if display.step is None else f" at step {display.step}"
            if ended.killed:
                say(f"killed{where}")
            elif ended.sent is not None and ended.code == 128 + ended.sent:
                say(f"stopped{where}")
            else:
                self._crash(ended)
                return ended.code
            self._how_to_go_on()
            return 128 + ended.asked
        self._crash(ended)
        return ended.code

    def _report_end(self) -> None:
        display = self._display
        planned = display.max_steps
        if display.step is None:
            return
        if planned is None or display.step >= planned:
            display.say(f"done: what was trained is in {display.output_dir}")
            return
        display.say(
            f"stopped at step {display.step} of {planned}; what was trained until there is in "
            f"{display.output_dir}"
        )
        self._how_to_go_on()

    def _crash(self, ended: Ended) -> None:
        say, display = self._display.say, self._display
        who = "the training process" if self._order.nproc == 1 else f"rank {ended.rank}"
        how = (
            f"ended with exit status {ended.code}"
            if ended.died_of is None
            else f"died of {ended.died_of.name} (exit status {ended.code})"
        )
        if display.step is None:
            where = "before training began"
        else:
            where = f"at step {display.step}"
            where += "" if display.max_steps is None else f" of {display.max_steps}"
        say(f"{who} {how} {where}")
        tail = [line for line in ended.tail if line.strip()][-_TAIL_SHOWN:]
        if tail:
            say("the last lines that it printed:")
            for line in tail:
                display.line(f"    {line}", error=True)
        advice = _advice(ended)
        if advice:
            say(advice)
        self._how_to_go_on()

    def _how_to_go_on(self) -> None:
        output_dir = self._display.output_dir
        if output_dir is None:
            return
        found = checkpoints.newest(Path(output_dir))
        if found.newest is None:
            why = (
                f"the newest is {found.skipped[0]}"
                if found.skipped
                else "training.save_strategy and training.save_steps say when one is saved"
            )
            self._display.say(
                f"there is no whole checkpoint in {output_dir}: the next run begins anew; {why}"
            )
            return
        for skipped in found.skipped:
            self._display.say(f"skipping {skipped}")
        command = shlex.join(["midcourse", "train", *_without_resume(self._command)])
        self._display.say(f"go on from {found.newest} with:")
        self._display.line(f"    {command} --resume auto", error=True)


def _wished(path: Path) -> tuple[Path | None, str | None]:
    """Return the checkpoint that a run wants to go back to, and what is wrong with it."""
    try:
        wish: Any = json.loads(path.read_text(encoding="utf-8"))
        checkpoint = Path(wish["checkpoint"])
    except OSError as error:
        return None, f"it did not say where to ({error.strerror})"
    except (ValueError, KeyError, TypeError) as error:
        return None, f"what it left says no checkpoint ({type(error).__name__}: {error})"
    fault = checkpoints.fault(checkpoint)
    return checkpoint, None if fault is None else f"{checkpoint}: {fault}"


def _advice(ended: Ended) -> str | None:
    text = "\n".join(ended.tail)
    if "OutOfMemoryError" in text or "out of memory" in text:
        return f"memory ran out: {_MEMORY}"
    match ended.died_of:
        case signal.SIGKILL:
            return (
                "somebody killed it; where nobody did, the kernel does so when the machine's memory"
                f" runs out (dmesg tells). If so, {_MEMORY}"
            )
        case signal.SIGSEGV | signal.SIGBUS | signal.SIGABRT | signal.SIGFPE | signal.SIGILL:
            return "that happens in compiled code; the Python lines that led there are above"
        case _:
            return None


def _without_resume(command: Sequence[str]) -> list[str]:
    """Return a command line without what it says about resuming."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word == "--resume":
            next(words, None)
        elif not word.startswith("--resume="):
            kept.append(word)
    return kept
