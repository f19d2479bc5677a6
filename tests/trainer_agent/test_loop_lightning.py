"""The example for Lightning, where Lightning is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from midcourse.control.v1 import update_pb2
from tests.support.scripted_link import LinkScript, delivery, set_change

pytest.importorskip("lightning", reason="lightning is not installed; Midcourse does without it")

# Lightning's own: it uses what torch has deprecated, and suggests more worker processes.
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 12


def trained(directory: Path, script: LinkScript, **more: Any) -> torch.Tensor:
    from examples.lightning_loop import train

    module = train(STEPS, directory, job="job", link_factory=script, **more)
    return torch.cat([each.detach().flatten() for each in module.net.parameters()])


def test_a_run_is_steered_saved_and_resumed(tmp_path: Path) -> None:
    plain = trained(tmp_path, LinkScript())
    save = update_pb2.Action(save_checkpoint=update_pb2.SaveCheckpointAction())
    updates = {4: [delivery(1, set_change(0.05))], 6: [delivery(2, action=save)]}
    script = LinkScript(updates)
    steered = trained(tmp_path, script)
    assert not torch.equal(steered, plain)
    assert set(script.link.metric("loss")) == set(range(1, STEPS + 1))
    assert script.link.metric("learning_rate")[5] == 0.05
    changed, saved = script.link.outcomes
    assert changed.applied.step == 5
    checkpoint = Path(saved.applied.action_result.checkpoint)
    assert checkpoint.is_file()
    assert script.link.sent[-1].finished.step == STEPS

    # Within an epoch Lightning begins the data anew, so that only the rates can be compared.
    again = LinkScript()
    trained(tmp_path, again, resume=checkpoint)
    rates = script.link.metric("learning_rate")
    assert again.link.metric("learning_rate") == {step: rates[step] for step in range(7, STEPS + 1)}
    assert again.link.first_hello is not None
    assert again.link.first_hello.start_step == 6
    assert [each.first for each in again.link.first_hello.state.in_force] == [1]


def test_a_run_is_stopped(tmp_path: Path) -> None:
    stop = update_pb2.Action(stop=update_pb2.StopAction())
    script = LinkScript({5: [delivery(1, action=stop)]})
    trained(tmp_path, script)
    assert script.link.outcomes[0].HasField("applied")
    assert script.link.sent[-1].finished.step == 5
