"""The verbs for actions against a real gRPC server."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli.exits import ExitCode
from control_plane.cli.main import app
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2
from tests.support.fake_control_plane import FakeControlPlane, make_job
from tests.support.midcourse_command import Midcourse

VERBS = {
    "pause": "pause",
    "resume": "resume",
    "checkpoint": "save_checkpoint",
    "evaluate": "evaluate",
    "stop": "stop",
}


def last_update(server: FakeControlPlane) -> update_pb2.Update:
    return server.updates["jobs/my-run"][-1]


def failing(midcourse: Midcourse, *args: str) -> Result:
    """Runs a command whose complaint may have several lines."""
    env = {"MIDCOURSE_CONTROL_PLANE": midcourse.address, "COLUMNS": "120", "NO_COLOR": "1"}
    return CliRunner().invoke(app, args, env=env)


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


@pytest.mark.parametrize(("verb", "kind"), VERBS.items())
def test_an_action_is_sent(
    midcourse: Midcourse, server: FakeControlPlane, verb: str, kind: str
) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    output = midcourse(verb, "my-run", "--reason", "a look", "--at-step", "200").stdout
    assert output == (
        f"accepted as revision 1: {kind.replace('_', ' ')} at step 200;"
        " see `midcourse history my-run`\n"
    )
    sent = last_update(server).spec
    assert (sent.action.WhichOneof("kind"), sent.reason) == (kind, "a look")
    assert sent.apply_at.step == 200
    assert not sent.changes


def test_what_it_led_to_is_told(midcourse: Midcourse) -> None:
    saved = midcourse("checkpoint", "my-run", "--wait").stdout
    assert saved.startswith("APPLIED at step 121, save checkpoint: /runs/checkpoint-120, ")
    evaluated = midcourse("evaluate", "my-run", "--wait", "--timeout", "5s").stdout
    assert "evaluate: eval_loss 1.25, eval_runtime 0.5, " in evaluated
    answer = midcourse.json("evaluate", "my-run", "--wait")
    assert answer["update"]["applied"]["actionResult"]["metrics"]["eval_loss"] == 1.25
    assert midcourse.json("pause", "my-run", "--no-wait")["update"]["revision"] == "4"
    history = midcourse("history", "my-run").stdout
    for words in ("save checkpoint: /runs/checkpoint-120", "eval_loss 1.25", "pause"):
        assert words in history


def test_a_roll_back_goes_to_a_checkpoint(midcourse: Midcourse, server: FakeControlPlane) -> None:
    refused = midcourse("rollback", "my-run", code=ExitCode.REFUSED)
    assert "does not offer" in refused.stderr
    server.jobs["jobs/my-run"].actions.append(update_pb2.ACTION_KIND_ROLL_BACK)
    output = midcourse("rollback", "my-run", "--to", "/runs/checkpoint-100", "--dry-run").stdout
    assert output == (
        "valid: roll back to /runs/checkpoint-100 at the next boundary; nothing was changed\n"
    )
    midcourse("rollback", "my-run", "--to", "/runs/checkpoint-100")
    assert last_update(server).spec.action.roll_back.checkpoint == "/runs/checkpoint-100"
    midcourse("rollback", "my-run")
    assert last_update(server).spec.action.roll_back.checkpoint == ""


def test_exit_codes_are_those_of_set(midcourse: Midcourse, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_REJECTED
    midcourse("pause", "my-run", "--wait", code=ExitCode.NOT_APPLIED)
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    midcourse("pause", "my-run", "--wait", "--timeout", "10ms", code=ExitCode.TIMEOUT)
    midcourse("pause", "my-rnu", code=ExitCode.NOT_FOUND)
    for wrong in (
        ["pause"],
        ["pause", "my-run", "-l", "team=nlp"],
        ["pause", "my-run", "--timeout", "5s"],
        ["pause", "my-run", "--wait", "--dry-run"],
    ):
        midcourse(*wrong, code=ExitCode.USAGE)


def test_a_batch_size_with_the_learning_rate(
    midcourse: Midcourse, server: FakeControlPlane
) -> None:
    batch = ["set", "my-run", "learning_rate=1e-5", "--coupling", "linear"]
    assert "batch size" in midcourse(*batch, code=ExitCode.USAGE).stderr
    coupled = ["set", "my-run", "global_batch_size=64", "--coupling", "sqrt"]
    midcourse(*coupled, "--mode", "hold", code=ExitCode.USAGE)
    midcourse(*coupled, code=ExitCode.REFUSED)  # this server knows of no batch size
    change = server.calls[-1][1].spec.changes[0]
    assert change.coupling == update_pb2.COUPLING_SQRT
    assert change.set.value.integer == 64


def test_what_an_update_waits_for(midcourse: Midcourse, server: FakeControlPlane) -> None:
    job = server.jobs["jobs/my-run"]
    job.parameters[0].boundary = parameter_pb2.BOUNDARY_GENERATION
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    output = midcourse("set", "my-run", "learning_rate=1e-5").stdout
    assert "learning_rate → 1e-05 at the next generation boundary" in output
    last_update(server).state = update_pb2.UPDATE_STATE_DELIVERED
    job.last_update.CopyFrom(last_update(server))
    assert "waits for the next generation boundary" in midcourse("history", "my-run").stdout
    assert "waits for the next generation boundary" in midcourse("job", "my-run").stdout
    assert "pause, resume, save checkpoint, evaluate, stop" in midcourse("job", "my-run").stdout


def test_what_the_owner_allows(midcourse: Midcourse, server: FakeControlPlane) -> None:
    rails = server.jobs["jobs/my-run"].parameters[0].guard_rails
    rails.bounds.maximum = 1e-4
    rails.allowed_principals.extend(["ann", "bob"])
    assert "owner's limits (-∞, 0.0001]; only by ann, bob" in midcourse("job", "my-run").stdout
    rails.frozen = True
    assert "frozen by the job's owner" in midcourse("job", "my-run").stdout


def test_who_waits_for_a_change_of_a_paused_run_is_told(
    server: FakeControlPlane, midcourse: Midcourse
) -> None:
    server.add(make_job("held", state=job_pb2.JOB_STATE_PAUSED))
    told, applied = midcourse("set", "held", "learning_rate=1e-5", "--wait").stdout.splitlines()
    assert told.startswith("held is paused: the first step after `midcourse resume held` ")
    assert applied.startswith("APPLIED")
    assert midcourse("set", "my-run", "learning_rate=1e-5", "--wait").stdout.startswith("APPLIED")
    assert midcourse.json("set", "held", "learning_rate=1e-5", "--wait")["update"]
