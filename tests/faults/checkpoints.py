"""Checkpoints of light jobs: folders such as transformers makes, with what a controller saves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midcourse.agent.v1 import session_pb2
from tests.faults.records import Number, TrainerBegan
from trainer_agent.steering import checkpoints, roll_back
from trainer_agent.steering.actions import ActionKind, Offer
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.lineage import decoded
from trainer_agent.steering.roll_back import HandOver

OFFER: Offer = dict.fromkeys(ActionKind)
"""What a job can be asked to do that has checkpoints: everything."""

SAVES = (ActionKind.SAVE_CHECKPOINT, ActionKind.STOP)
"""What leads to a checkpoint."""
SAVE_STEPS = 50
"""One is saved after so many steps, whoever asks for it."""
ANEW = 0.3
"""How often a job that was killed or stopped begins anew, though it has checkpoints."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is in a checkpoint.

    Attributes:
        step: Steps done.
        values: The values in force.
        controller: What ``ParameterController.state_dict`` returned.
        instance: The training process that saved it.
    """

    step: int
    values: Mapping[str, Number]
    controller: Mapping[str, Any]
    instance: str

    @property
    def contains(self) -> tuple[tuple[int, int], ...]:
        """Revisions in force, as pairs of first and last."""
        return tuple((first, last) for first, last in self.controller["lineage"]["in_force"])

    @property
    def unverified(self) -> tuple[int, ...]:
        """Revisions of which no step had confirmed the changes."""
        return tuple(revision for revision, _ in self._unverified())

    @property
    def before(self) -> dict[str, Number]:
        """The values without what no step had confirmed."""
        before: dict[str, Number] = {}
        for _, applied in self._unverified():
            for name, each in applied.items():
                [old] = each["old"].values()
                before.setdefault(name, old)
        return {**self.values, **before}

    def _unverified(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for each in self.controller["unverified"]:
            if each["applied"]:
                yield decoded(each["outcome"]).revision, each["applied"]


class Checkpoints:
    """The checkpoints of one job, and what a process leaves that goes back to one."""

    def __init__(self, folder: Path) -> None:
        """Begins with none."""
        self._folder = folder
        self._note = folder / "roll-back.json"
        folder.mkdir(parents=True)

    def save(self, kept: Kept) -> Path:
        """Saves one, whole or not at all; returns where."""
        made = self._folder / f"checkpoint-{kept.step}"
        new = self._folder / "new"
        new.mkdir()
        state = {
            "global_step": kept.step,
            "values": kept.values,
            "controller": kept.controller,
            "instance": kept.instance,
        }
        for name in ("model.safetensors", "optimizer.pt"):
            (new / name).touch()
        (new / "trainer_state.json").write_text(json.dumps(state))
        if made.exists():  # of a part of the run that was gone back from
            shutil.rmtree(made)
        new.rename(made)
        return made

    def read(self, path: Path) -> Kept:
        """Reads one."""
        state = json.loads((path / "trainer_state.json").read_text())
        return Kept(state["global_step"], state["values"], state["controller"], state["instance"])

    def find(self, path: str, before: int | None) -> str:
        """The one to go back to.

        Raises:
            Refused: There is none.
        """
        return roll_back.find_checkpoint(str(self._folder), path, before)

    @property
    def newest(self) -> Path | None:
        """The newest; None: there is none."""
        return checkpoints.newest(self._folder).newest

    @property
    def names(self) -> list[str]:
        """What they are called."""
        return sorted(path.name for path in self._folder.glob("checkpoint-*"))

    def leave(self, left: HandOver) -> None:
        """Keeps what the next process has to know.

        Raises:
            OSError: That did not work.
        """
        left.write(str(self._note))

    def take_over(self) -> HandOver:
        """What was left, with what is newer than the checkpoint put aside."""
        left = HandOver.read(str(self._note))
        checkpoints.set_aside_after(Path(left.checkpoint))
        return left


def began(
    job: str,
    instance: str,
    values: Mapping[str, Number],
    kept: Kept | None,
    resume: Path | None,
    left: HandOver | None = None,
) -> TrainerBegan:
    """What there is to record where a training process begins.

    Args:
        job: Id of the job.
        instance: The process.
        values: What it begins with, if it begins anew.
        kept: What is in the checkpoint that it goes on from; None: it begins anew.
        resume: Where that lies.
        left: What the process has left that went back there; None: none did.
    """
    if kept is None:
        return TrainerBegan(job=job, instance=instance, values=dict(values))
    return TrainerBegan(
        job=job,
        instance=instance,
        values=kept.before,
        checkpoint=str(resume),
        contains=kept.contains,
        unverified=kept.unverified,
        saved_by=kept.instance,
        saved=dict(kept.values),
        roll_back=0 if left is None else left.update.revision,
    )


def settled_already(
    controller: ParameterController, left: HandOver | None
) -> list[session_pb2.UpdateOutcome]:
    """How updates ended as a process begins, by its checkpoint and by the roll back it comes from.

    The control plane hears of it with the first word, before the process says it step by step. What
    the process that went back has left is not told anew: that one has said it.
    """
    said = set() if left is None else {each.revision for each in left.outcomes}
    return [each for each in controller.unacknowledged() if each.revision not in said]
