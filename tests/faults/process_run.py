"""A training process of its own, with the agent that it starts: what runs in that process.

Steps as a light job does, by the very code that steers any training, over the local socket. Says
what it does in a file, line by line, before it tells anybody else.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.faults.checkpoints import (
    OFFER,
    SAVE_STEPS,
    SAVES,
    Checkpoints,
    Kept,
    began,
    settled_already,
)
from tests.faults.notes import NotedLink, Notes
from tests.faults.records import (
    Number,
    Saved,
)
from tests.faults.serving import begin_process
from trainer_agent.identity import new_instance_id
from trainer_agent.parameters import Boundary, Value
from trainer_agent.simulate.parameters import DEFAULT_VALUES, light_parameters
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.links import Link, default_link
from trainer_agent.steering.reporting import Identity
from trainer_agent.steering.roll_back import HandOver, RollBackExit
from trainer_agent.steering.session import SteeringSession

STEP_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Order:
    """What to run.

    Attributes:
        directory: Where it says what it does, and its socket lies.
        checkpoints: Where it saves and goes back to.
        job: Id of the job.
        control_plane: Addresses of the control plane.
        resume: The checkpoint that it goes on from; None: it begins anew.
        left: What the process has left that went back there; None: none did.
    """

    directory: Path
    checkpoints: Checkpoints
    job: str
    control_plane: str
    resume: Path | None = None
    left: HandOver | None = None

    @property
    def records(self) -> Path:
        """What it says."""
        return self.directory / "records.jsonl"


class Status:
    """Where a training process stands, for whoever looks at it from outside; kept in a file."""

    _FORMAT = struct.Struct("q?")

    def __init__(self, directory: Path) -> None:
        """Opens it, and makes it if there is none."""
        path = directory / "status"
        if not path.exists():
            path.write_bytes(self._FORMAT.pack(0, False))
        with path.open("r+b") as file:
            self._kept = mmap.mmap(file.fileno(), self._FORMAT.size)

    def set(self, step: int, *, rests: bool) -> None:
        """Says how many steps are done, and whether no update is open and all is on disk."""
        self._kept[:] = self._FORMAT.pack(step, rests)

    @property
    def step(self) -> int:
        """Steps done."""
        step: int = self._FORMAT.unpack(self._kept[:])[0]
        return step

    @property
    def rests(self) -> bool:
        """Whether no update is open, and how all of them ended is on disk elsewhere."""
        rests: bool = self._FORMAT.unpack(self._kept[:])[1]
        return rests


def train(order: Order) -> None:
    """Trains until it is told to stop, killed, or to go back."""
    begin_process(order.directory / "log")
    os.environ["MIDCOURSE_SOCKET_DIR"] = str(order.directory / "s")
    _Run(order).go()


class _Run:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._status = Status(order.directory)
        self._instance = new_instance_id()
        self._notes = Notes(order.records, order.job, self._instance)
        self._kept = None if order.resume is None else order.checkpoints.read(order.resume)
        self._values: dict[str, Value] = dict(self._kept.values if self._kept else DEFAULT_VALUES)
        self._step = self._kept.step if self._kept else 0
        self._actions = Actions(OFFER, order.checkpoints.find)
        self._controller = ParameterController(
            light_parameters(self._values), self._instance, actions=self._actions
        )
        self._seen = self._numbers()
        self._ended = False

    def go(self) -> None:
        """Trains to the end."""
        order, controller = self._order, self._controller
        signal.signal(signal.SIGTERM, self._end)
        self._notes.add(
            began(order.job, self._instance, self._seen, self._kept, order.resume, order.left)
        )
        if self._kept is not None:
            controller.load_state_dict(self._kept.controller, checkpoint=str(order.resume))
        if order.left is not None:
            controller.going_back.go_on(order.left, self._boundary())
            self._look()
        for outcome in settled_already(controller, order.left):
            self._notes.settled(outcome)
        session = SteeringSession(
            Identity(order.job, self._instance, order.control_plane, "sft", {}),
            controller,
            self._boundary(),
            self._make_link,
            {"loss": lambda: 1.0 / self._step},
        )
        session.start()
        while not self._actions.stopping:
            time.sleep(STEP_SECONDS)  # a step of a real model takes time
            self._step += 1
            session.optimizer_stepped()
            asked = session.step_done(self._boundary())
            self._look()
            while asked:
                asked = self._carry_out(session)
            if self._step % SAVE_STEPS == 0:
                self._save()
            rests = not controller.has_unsettled and not controller.unacknowledged()
            self._status.set(self._step, rests=rests)
        session.finish(self._boundary())
        self._end()

    def _carry_out(self, session: SteeringSession) -> bool:
        """Does what is asked for besides training; returns whether there may be more."""
        session.hold()
        self._look()
        left = session.roll_back
        if left is not None:
            failure: OSError | None = None
            try:
                self._order.checkpoints.leave(left)
            except OSError as error:
                failure = error
            if session.leaves(failure):
                raise RollBackExit
        for kind in tuple(self._actions.wanted):
            result = update_pb2.ActionResult()
            if kind is ActionKind.EVALUATE:
                result.metrics["eval_loss"] = 2.0
            elif kind in SAVES:
                result.checkpoint = self._save()
            session.action_done(kind, result)
        return self._actions.paused

    def _make_link(
        self, *, job_id: str, hello: Callable[[], link_pb2.TrainerHello], control_plane: str
    ) -> Link:
        link = default_link(job_id=job_id, hello=hello, control_plane=control_plane)
        return cast("Link", NotedLink(link, self._notes))

    def _save(self) -> str:
        kept = Kept(self._step, self._numbers(), self._controller.state_dict(), self._instance)
        path = str(self._order.checkpoints.save(kept))
        self._notes.add(Saved(job=self._order.job, instance=self._instance, checkpoint=path))
        return path

    def _look(self) -> None:
        now = self._numbers()
        if now != self._seen:
            self._seen = now
            self._notes.in_force(now, self._step)

    def _end(self, *_: object) -> None:
        """Is looked at for the last time, and ends without a word to anybody."""
        self._notes.ended(self._numbers())
        os._exit(0)

    def _boundary(self) -> Boundary:
        return Boundary(self._step)

    def _numbers(self) -> dict[str, Number]:
        return {name: cast("Number", value) for name, value in self._values.items()}
