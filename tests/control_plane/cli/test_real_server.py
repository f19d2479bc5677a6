"""The command, the client and `midcourse serve`, all real; the agent is a script."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.cli.exits import ExitCode
from control_plane.client import (
    Client,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from tests.support.applying_agent import ScriptedAgent
from tests.support.processes import free_port, serve, until


@pytest.fixture
def plane(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def agent(address: str, request: pytest.FixtureRequest) -> Iterator[ScriptedAgent]:
    scripted = ScriptedAgent(address, request.node.name.replace("_", "-")[:40])
    yield scripted
    scripted.close()


@pytest.fixture
def job(agent: ScriptedAgent, request: pytest.FixtureRequest) -> str:
    name: str = request.node.name.replace("_", "-")[:40]
    return name


def run(address: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "control_plane.cli", "-s", address, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_change_from_the_shell(
    address: str, agent: ScriptedAgent, job: str, plane: Client
) -> None:
    agent.beat(120, loss=1.25, learning_rate=2e-5)
    until(lambda: plane.get_job(job).metrics, "the heartbeat is in")
    done = run(address, "set", job, "learning_rate=5e-5", "--wait", "--reason", "plateau")
    assert done.stdout.startswith("APPLIED at step 121, learning_rate 2e-05 → 5e-05, "), done.stderr
    assert "after the call" in done.stdout
    history = run(address, "history", job).stdout
    assert "APPLIED" in history
    assert "plateau" in history
    shown = run(address, "job", job).stdout
    assert "5e-05" in shown
    assert "process 4242 on gpu-01, connected" in shown
    assert "RUNNING  120/1000  1.25" in run(address, "jobs").stdout
    metrics = json.loads(run(address, "metrics", job, "loss", "-o", "json").stdout)
    assert metrics["series"][0]["values"] == [1.25]


def test_actions_from_the_shell(
    address: str, agent: ScriptedAgent, job: str, plane: Client, tmp_path: Path
) -> None:
    saved = run(address, "checkpoint", job, "--wait")
    assert saved.stdout.startswith(
        "APPLIED at step 121, save checkpoint: /runs/checkpoint-120, "
    ), saved.stderr
    paused = run(address, "pause", "-l", f"job={job}", "--wait", "--reason", "a look")
    assert [line.split()[:4] for line in paused.stdout.splitlines()[:-1]] == [
        ["JOB", "REV", "STATE", "STEP"],
        [job, "2", "APPLIED", "121"],
    ]
    refused = run(address, "stop", job)
    assert refused.returncode == ExitCode.REFUSED
    assert "actions that this job offers: pause, save_checkpoint" in refused.stderr
    agent.beat(120, phase=session_pb2.TRAINER_PHASE_PAUSED, loss=1.25)
    until(lambda: plane.get_job(job).state == job_pb2.JOB_STATE_PAUSED, "it is paused")
    assert "PAUSED" in run(address, "jobs").stdout
    file = tmp_path / "run.yaml"
    assert run(address, "history", job, "--export", str(file)).returncode == ExitCode.OK
    text = file.read_text("utf-8")
    assert '  - step: 121\n    revision: 1\n    author: "anonymous"\n' in text
    assert '    action: "save_checkpoint"\n' in text
    assert "pause is left out" in text


def test_a_change_from_python(plane: Client, agent: ScriptedAgent, job: str) -> None:
    update = plane.set(job, learning_rate=5e-5, wait=True, wait_timeout=30)
    assert update.applied.step == 121
    again = plane.set(job, learning_rate=5e-5, request_id=update.request_id)
    assert again.revision == update.revision
    with pytest.raises(ConflictError) as conflict:
        plane.set(job, learning_rate=5e-5, expected_revision=0)
    assert conflict.value.reason == "REVISION_MISMATCH"
    with pytest.raises(InvalidArgumentError) as invalid:
        plane.set(job, learning_rate=float("nan"))
    assert invalid.value.violations
    with pytest.raises(InvalidArgumentError) as unknown:
        plane.set(job, learnin_rate=5e-5)
    assert unknown.value.reason == "PARAMETER_UNKNOWN"
    with pytest.raises(FailedPreconditionError) as rail:
        plane.set(job, learning_rate=0.9)
    assert rail.value.reason == "GUARD_RAIL"
    with pytest.raises(NotFoundError):
        plane.set("nobody", learning_rate=5e-5)
    assert [u.revision for u in plane.list_updates(job)] == [1]


def test_a_watch(plane: Client, agent: ScriptedAgent, job: str) -> None:
    with plane.watch_jobs(job=job, progress_interval=0.05) as watch:
        assert next(watch).type == control_pb2.JOB_EVENT_TYPE_SNAPSHOT
        assert next(watch).type == control_pb2.JOB_EVENT_TYPE_BOOKMARK
        plane.set(job, learning_rate=5e-5)
        states = []
        for event in watch:
            if event.HasField("update"):
                states.append(event.update.state)
                if event.update.state == update_pb2.UPDATE_STATE_APPLIED:
                    break
        assert states[0] == update_pb2.UPDATE_STATE_PENDING
        assert states == sorted(states)
        agent.beat(130, loss=1.0)
        progress = next(e for e in watch if e.job.progress.step == 130)
        assert progress.job.state == job_pb2.JOB_STATE_RUNNING


def test_a_watch_of_a_job_that_is_not_there_says_what_it_waits_for(
    address: str, plane: Client
) -> None:
    command = [sys.executable, "-m", "control_plane.cli", "-s", address, "watch", "not-yet"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        try:
            assert watch.stderr.readline() == "there is no job 'not-yet' yet; waiting for it\n"
            plane.create_job("not-yet")
            assert "not-yet" in watch.stdout.readline()
        finally:
            watch.send_signal(signal.SIGINT)


def test_watching_and_waiting_outlive_a_restart(tmp_path: Path) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    process = serve(port, tmp_path, grace=1)
    try:
        until(lambda: "serving" in process.tail(), "the control plane serves")
        with Client(address) as plane, plane.watch_jobs() as watch:
            plane.create_job("one")
            seen = [next(watch), next(watch)]
            assert process.kill(signal.SIGTERM) == 0
            process = serve(port, tmp_path, grace=1)
            until(lambda: process.tail().count('"serving"') >= 4, "it serves again")
            plane.create_job("two")
            while not seen[-1].HasField("job"):
                seen.append(next(watch))
        names = [event.job.name for event in seen if event.HasField("job")]
        assert names == ["jobs/one", "jobs/two"]
    finally:
        process.end()


def test_serve_says_why_it_cannot(address: str, tmp_path: Path) -> None:
    database = f"--database={tmp_path / 'control.db'}"
    serving = [sys.executable, "-m", "control_plane.cli", "serve", "--log-level=error", database]

    def refused(*args: str) -> tuple[int, str]:
        done = subprocess.run(
            [*serving, *args], capture_output=True, text=True, timeout=60, check=False
        )
        (line,) = done.stderr.splitlines()
        assert line.startswith("midcourse: ")
        return done.returncode, line

    code, line = refused(f"--listen={address}")
    assert code == ExitCode.FAILURE
    assert "in use" in line
    assert refused("--listen=nowhere")[0] == ExitCode.USAGE
    (tmp_path / "text").write_text("no database " * 100)
    code, line = refused("--listen=127.0.0.1:0", f"--database={tmp_path / 'text'}")
    assert code == ExitCode.FAILURE
    assert "no SQLite database" in line
