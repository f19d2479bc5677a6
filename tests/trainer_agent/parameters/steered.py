"""Real trainers that a scripted link steers, beside plain ones that a script writes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer

from midcourse.control.v1 import update_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import LinkScript, ScriptedLink, delivery, set_change
from tests.support.tiny_runs import AtStep, Outcome, outcome
from trainer_agent import attach
from trainer_agent.parameters import Change, LiveParameter, Refused

Script = Mapping[int, Sequence[update_pb2.Change]]
"""Changes by the step at whose end they arrive."""


def change(parameter: str, value: float, group: str | None = None) -> update_pb2.Change:
    """Return a change that sets a value, for one group if it is named."""
    made = set_change(value, parameter=parameter)
    if group is not None:
        made.group = group
    return made


def release(parameter: str) -> update_pb2.Change:
    """Return a change that gives a value back."""
    made = update_pb2.Change(parameter=parameter)
    made.release.SetInParent()
    return made


def steer(
    directory: Path, script: Script, *, resume: str | None = None, **args: Any
) -> tuple[Trainer, ScriptedLink]:
    """Train with live changes; return the trainer and what it told."""
    link = LinkScript({at: [delivery(at, *changes)] for at, changes in script.items()})
    trainer = plain_trainer(directory, **args)
    attach(trainer, "job", link_factory=link)
    trainer.train(resume_from_checkpoint=resume)
    assert not link.link.faults
    return trainer, link.link


def scripted(
    directory: Path, write: Callable[[int, Trainer], None], **args: Any
) -> tuple[Trainer, Outcome]:
    """Train with a plain callback that writes at steps' ends."""
    trainer = plain_trainer(directory, **args)
    trainer.add_callback(AtStep(lambda step, *_: write(step, trainer)))
    trainer.train()
    return trainer, outcome(trainer)


def all_applied(link: ScriptedLink) -> bool:
    """Say whether every update came out as applied, and there was one."""
    results = [each.WhichOneof("result") for each in link.outcomes]
    return bool(results) and set(results) == {"applied"}


def rejection(link: ScriptedLink) -> update_pb2.Rejected:
    """Return the only outcome, which is a rejection."""
    (only,) = link.outcomes
    assert only.HasField("rejected"), only
    return only.rejected


def declared(trainer: Trainer, name: str) -> Any:
    """Return what a trainer declares of a parameter when training begins; None: nothing."""
    link = LinkScript()
    attach(trainer, "job", link_factory=link)
    trainer.train()
    assert link.link.first_hello is not None
    found = {each.name: each for each in link.link.first_hello.state.parameters}
    return found.get(name)


def refusal(parameter: LiveParameter, asked: Change, boundary: Any) -> Refused:
    """Return why a change is refused; nothing has changed by asking."""
    before = parameter.read(synchronise=True)
    try:
        parameter.check(asked, boundary)
    except Refused as refused:
        assert parameter.read(synchronise=True) == before
        return refused
    raise AssertionError(f"{asked} was not refused")
