"""A steered run that is killed and resumed from its checkpoint, against one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from examples.offline import build_trainer
from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.scripted_link import (
    LinkScript,
    delivery,
    multiply_change,
    ramp_change,
    set_change,
)
from tests.support.tiny_runs import outcome, run
from trainer_agent import RuntimeParameterUpdateCallback, attach

SAVED = 6
KILLED = 8
ARGS: dict[str, Any] = {"save_strategy": "steps", "save_steps": SAVED, "max_steps": 12}

Script = dict[int, Sequence[link_pb2.AgentMessage]]

SCRIPTS: dict[str, Script] = {
    "set": {4: [delivery(1, set_change(5e-4))]},
    "multiply": {4: [delivery(1, multiply_change(0.3))]},
    "peak": {4: [delivery(1, set_change(5e-3, update_pb2.SET_MODE_PEAK))]},
    "hold": {4: [delivery(1, set_change(5e-4, update_pb2.SET_MODE_HOLD))]},
    "hold-for-steps": {4: [delivery(1, set_change(5e-4, update_pb2.SET_MODE_HOLD, 4))]},
    "ramp": {4: [delivery(1, ramp_change(5e-4, 5))]},
    "at-the-checkpoint": {SAVED: [delivery(1, set_change(5e-4))]},
    "ramp-at-the-checkpoint": {SAVED: [delivery(1, ramp_change(5e-4, 4))]},
    "two": {3: [delivery(1, ramp_change(5e-4, 5))], 5: [delivery(2, multiply_change(0.5))]},
}
SHORT = {"peak", "hold-for-steps", "ramp-at-the-checkpoint", "two"}
"""Those that between them have every operation and every place of the checkpoint."""


class KilledError(Exception):
    """The run ends here, in the middle."""


class KillAt(TrainerCallback):
    """Ends a run at a step boundary: with an exception, or its process with SIGKILL."""

    def __init__(self, step: int, *, process: bool = False) -> None:
        self._step = step
        self._process = process

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            if self._process:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KilledError


def start_and_kill(output_dir: Path, script: Script, *, process: bool = False) -> None:
    trainer = build_trainer("sft", output_dir, samples=64, **ARGS)
    attach(trainer, "job", link_factory=LinkScript(script))
    trainer.add_callback(KillAt(KILLED, process=process))
    trainer.train()


def checkpoint(output_dir: Path) -> str:
    return str(output_dir / f"checkpoint-{SAVED}")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in SCRIPTS],
)
def test_resumed_is_as_uninterrupted(name: str, tmp_path: Path) -> None:
    script = SCRIPTS[name]
    whole_link, resumed_link = LinkScript(script), LinkScript()
    whole = run(
        "sft", tmp_path / "whole", lambda each: attach(each, "job", link_factory=whole_link), **ARGS
    )
    with pytest.raises(KilledError):
        start_and_kill(tmp_path / "killed", script)
    resumed = run(
        "sft",
        tmp_path / "killed",
        lambda each: attach(each, "job", link_factory=resumed_link),
        resume=checkpoint(tmp_path / "killed"),
        **ARGS,
    )
    resumed.assert_same(whole)

    hello = resumed_link.link.first_hello
    assert hello is not None
    assert hello.start_step == SAVED
    last = sum(len(messages) for messages in script.values())
    assert [(each.first, each.last) for each in hello.state.in_force] == [(1, last)]
    # What the first life told nobody who wrote it down is told again, word for word.
    told = {each.revision: each for each in whole_link.link.outcomes}
    again = {each.revision: each for each in [*hello.state.outcomes, *resumed_link.link.outcomes]}
    assert again.keys() == told.keys()
    for revision, each in again.items():
        assert each.applied.step == told[revision].applied.step
        assert each.applied.transitions == told[revision].applied.transitions
        assert each.applied.instance_id != hello.instance_id
    assert not resumed_link.link.faults


@pytest.mark.long  # whole runs are killed among the integration tests
def test_killed_with_sigkill(tmp_path: Path) -> None:
    script = SCRIPTS["hold-for-steps"]
    whole = run(
        "sft",
        tmp_path / "whole",
        lambda each: attach(each, "job", link_factory=LinkScript(script)),
        **ARGS,
    )
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "killed")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    link = LinkScript()
    resumed = run(
        "sft",
        tmp_path / "killed",
        lambda each: attach(each, "job", link_factory=link),
        resume=checkpoint(tmp_path / "killed"),
        **ARGS,
    )
    resumed.assert_same(whole)


_CHILD = f"""
import runpy, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from importlib import util
spec = util.spec_from_file_location("test_resume", {__file__!r})
module = util.module_from_spec(spec)
spec.loader.exec_module(module)
module.start_and_kill(Path(sys.argv[1]), module.SCRIPTS["hold-for-steps"], process=True)
"""


def test_what_was_held_for_later_is_delivered_again_and_applied_once(tmp_path: Path) -> None:
    later = delivery(1, set_change(5e-4), at_step=10)
    whole = run(
        "sft",
        tmp_path / "whole",
        lambda each: attach(each, "job", link_factory=LinkScript({4: [later]})),
        **ARGS,
    )
    with pytest.raises(KilledError):
        start_and_kill(tmp_path / "killed", {4: [later]})
    link = LinkScript({7: [later], 8: [later], 11: [later]})
    resumed = run(
        "sft",
        tmp_path / "killed",
        lambda each: attach(each, "job", link_factory=link),
        resume=checkpoint(tmp_path / "killed"),
        **ARGS,
    )
    resumed.assert_same(whole)
    first, again = link.link.outcomes
    assert first == again
    assert first.applied.step == 10


def test_a_restored_callback_is_the_one_that_the_script_made(tmp_path: Path) -> None:
    """With restore_callback_states_from_checkpoint transformers builds callbacks anew."""
    script = SCRIPTS["hold"]
    whole = run(
        "sft",
        tmp_path / "whole",
        lambda each: attach(each, "job", link_factory=LinkScript(script)),
        **ARGS,
    )
    with pytest.raises(KilledError):
        start_and_kill(tmp_path / "killed", script)
    link = LinkScript()
    trainer = build_trainer(
        "sft", tmp_path / "killed", samples=64, restore_callback_states_from_checkpoint=True, **ARGS
    )
    callback = attach(trainer, "job", "elsewhere:1", link_factory=link)
    trainer.train(resume_from_checkpoint=checkpoint(tmp_path / "killed"))
    assert [
        each
        for each in trainer.callback_handler.callbacks
        if isinstance(each, RuntimeParameterUpdateCallback)
    ] == [callback]
    assert link.addresses == ["elsewhere:1"]
    outcome(trainer).assert_same(whole)


def test_a_checkpoint_from_before_the_callback(tmp_path: Path) -> None:
    """Transformers fails to save the next checkpoint unless the state has an entry for it."""
    whole = run("sft", tmp_path, **ARGS)
    link = LinkScript()
    resumed = run(
        "sft",
        tmp_path,
        lambda each: attach(each, "job", link_factory=link),
        resume=checkpoint(tmp_path),
        **ARGS,
    )
    resumed.assert_same(whole)
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["RuntimeParameterUpdateCallback"]["steering"]["job"] == "job"


def test_another_job_takes_the_values_over_and_not_the_revisions(tmp_path: Path) -> None:
    script = SCRIPTS["hold"]
    whole = run(
        "sft",
        tmp_path / "whole",
        lambda each: attach(each, "job", link_factory=LinkScript(script)),
        **ARGS,
    )
    with pytest.raises(KilledError):
        start_and_kill(tmp_path / "killed", script)
    link = LinkScript()

    def attach_to_another(trainer: Trainer) -> None:
        attach(trainer, "another-job", link_factory=link)

    resumed = run(
        "sft",
        tmp_path / "killed",
        attach_to_another,
        resume=checkpoint(tmp_path / "killed"),
        **ARGS,
    )
    resumed.assert_same(whole)
    hello = link.link.first_hello
    assert hello is not None
    assert not hello.state.in_force
    assert not hello.state.outcomes
