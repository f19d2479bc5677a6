"""A real training process for runs with faults: a loop by hand, its checkpoints, and its agent.

Says what it does in a file, line by line, before it tells anybody else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from grpc_runtime import failpoints
from midcourse.link.v1 import link_pb2
from tests.faults.checkpoints import Kept, began
from tests.faults.notes import NotedLink, Notes
from tests.faults.records import (
    Number,
)
from trainer_agent.loop import Loop
from trainer_agent.parameters.user import Parameter
from trainer_agent.steering.links import Link, default_link

FIRST_VALUES: dict[str, Number] = {"gain": 1.0, "noise": 0.5, "rounds": 4}
_SAVE_EVERY = 10
_STEP_SECONDS = 0.01
_MOST_STEPS = 100_000


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        directory: Where checkpoint, records and the socket lie.
        job: Id of the job.
        control_plane: Address of the control plane.
        env: More for the environment of this process and its agent.
    """

    directory: Path
    job: str
    control_plane: str
    env: Mapping[str, str]

    @property
    def records(self) -> Path:
        """What it says."""
        return self.directory / "records.jsonl"

    @property
    def checkpoint(self) -> Path:
        """What it goes on from."""
        return self.directory / "checkpoint.json"

    @property
    def end(self) -> Path:
        """Ends it in good order, by being there."""
        return self.directory / "end"


def train(order: Order) -> None:
    """Trains, from the checkpoint on if there is one, until it is told to end."""
    log = os.open(order.directory / "trainer.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order.env)
    os.environ["MIDCOURSE_SOCKET_DIR"] = str(order.directory / "s")
    failpoints.rearm(os.environ)
    _Run(order).go()


class _Run:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._notes = Notes(order.records, order.job)
        self._values = dict(FIRST_VALUES)

    def go(self) -> None:
        saved = self._order.checkpoint
        state: dict[str, Any] = json.loads(saved.read_text()) if saved.exists() else {}
        self._values = state.get("values", self._values)
        kept = (
            Kept(state["step"], self._values, state["loop"]["controller"], state["instance"])
            if state
            else None
        )

        def make(
            *, job_id: str, hello: Callable[[], link_pb2.TrainerHello], control_plane: str
        ) -> Link:
            instance = self._notes.instance = hello().instance_id
            self._notes.add(began(job_id, instance, self._values, kept, saved if kept else None))
            link = default_link(job_id=job_id, hello=hello, control_plane=control_plane)
            return cast("Link", NotedLink(link, self._notes))

        with Loop(
            job=self._order.job, control_plane=self._order.control_plane, link_factory=make
        ) as loop:
            loop.expose(*(_parameter(name, self._values) for name in FIRST_VALUES))
            if state:
                loop.load_state_dict(state["loop"])
            for step in range(state.get("step", 0) + 1, _MOST_STEPS):
                seen = dict(self._values)
                time.sleep(_STEP_SECONDS)  # a step of a real model takes time
                signal = loop.step(step, loss=1.0 / step)
                if seen != self._values:
                    self._notes.in_force(self._values, step)
                if signal.evaluate:
                    loop.report({"eval_loss": 2.0 / step})
                if signal.save or step % _SAVE_EVERY == 0:
                    self._save(loop, step)
                    loop.saved(saved)
                if signal.stop or self._order.end.exists():
                    break
        self._notes.ended(self._values)

    def _save(self, loop: Loop, step: int) -> None:
        state = {
            "step": step,
            "values": self._values,
            "loop": loop.state_dict(),
            "instance": self._notes.instance,
        }
        new = self._order.checkpoint.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.replace(self._order.checkpoint)


def _parameter(name: str, values: dict[str, Number]) -> Parameter:
    def put(value: Any) -> None:
        values[name] = value

    return Parameter(name, lambda: values[name], put, minimum=0.0)
