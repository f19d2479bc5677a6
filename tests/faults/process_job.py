"""A training process of its own, seen from outside: started again when it has ended, and broken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.checkpoints import ANEW, Checkpoints
from tests.faults.history import Recorder
from tests.faults.lines import LINE
from tests.faults.process_run import Order, Status, train
from tests.faults.records import (
    TrainerBegan,
)
from tests.faults.serving import nursery
from tests.support.processes import agents_of
from tests.support.use_cases import eventually
from trainer_agent.steering.roll_back import EXIT_CODE, HandOver

_SECONDS = 60.0
_LOOK = 0.05


class ProcessJob:
    """A job whose training process, and its agent, are processes.

    Args:
        job_id: Id of the job; no other on this machine has it.
        control_plane: Addresses of the control plane.
        directory: Where everything of it lies.
        recorder: Takes what it says.
        rng: What is drawn from.

    Attributes:
        checkpoints: Its checkpoints.
        instance_id: Its newest training process; empty: none has begun.
    """

    def __init__(
        self,
        job_id: str,
        control_plane: str,
        directory: Path,
        recorder: Recorder,
        rng: random.Random,
    ) -> None:
        directory.mkdir()
        self.job_id = job_id
        self.checkpoints = Checkpoints(directory / "checkpoints")
        self.instance_id = ""
        self._order = Order(directory, self.checkpoints, job_id, control_plane)
        self._status = Status(directory)
        self._recorder = recorder
        self._rng = rng
        self._read = 0
        self._away = 0.0
        self._process: Any = None

    @property
    def step(self) -> int:
        """The steps that it has done."""
        return self._status.step

    @property
    def rests(self) -> bool:
        """Whether no update is open there, and how all of them ended is on disk elsewhere."""
        return self._status.rests

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Has it run while the block does; at the end it is looked at for the last time."""
        going = asyncio.create_task(self._go())
        try:
            yield
        finally:
            going.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await going
            self._signal(signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                await eventually(self._has_ended, "it has ended", _SECONDS)
            self._signal(signal.SIGKILL)
            self._take_records()
            self.signal_agent(signal.SIGKILL)

    def kill(self, away: float) -> bool:
        """Kills the training process, if it runs; the next one begins after so many seconds."""
        self._away = away
        return self._signal(signal.SIGKILL)

    @contextlib.contextmanager
    def standing_still(self, *, agent: bool) -> Iterator[bool]:
        """Its training process, or its agent, stands still while the block runs, if it is there."""
        send = self.signal_agent if agent else partial(_send, [self._pid])
        try:
            yield send(signal.SIGSTOP)
        finally:
            send(signal.SIGCONT)

    def signal_agent(self, number: int) -> bool:
        """Sends its agents a signal, if any: those that end, and the one that serves it."""
        return _send(agents_of(self.job_id), number)

    async def _go(self) -> None:
        resume: Path | None = None
        left: HandOver | None = None
        while True:
            order = Order(
                self._order.directory,
                self.checkpoints,
                self.job_id,
                self._order.control_plane,
                resume,
                left,
            )
            self._process = nursery().start(train, order)
            while not self._has_ended():
                self._take_records()
                await asyncio.sleep(_LOOK)
            self._take_records()
            await asyncio.sleep(self._away)
            self._away, resume, left = 0.0, None, None
            if self._process.exitcode == EXIT_CODE:
                left = self.checkpoints.take_over()
                resume = Path(left.checkpoint)
            elif self._rng.random() >= ANEW:
                resume = self.checkpoints.newest

    def _take_records(self) -> None:
        """Adds what it has said since."""
        if not self._order.records.exists():
            return
        with self._order.records.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                record = LINE.validate_json(line)
                self._recorder.add(record)
                if isinstance(record, TrainerBegan):
                    self.instance_id = record.instance

    @property
    def _pid(self) -> int:
        pid: int = self._process.pid
        return pid

    def _has_ended(self) -> bool:
        return self._process is None or self._process.exitcode is not None

    def _signal(self, number: int) -> bool:
        return not self._has_ended() and _send([self._pid], number)


def _send(pids: list[int], number: int) -> bool:
    """Sends a signal to those that are there; returns whether any is."""
    sent = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            sent = True
    return sent
