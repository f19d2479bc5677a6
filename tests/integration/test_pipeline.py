"""The whole path with real processes, each of them killed while updates are being sent."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1 import job_pb2, update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.integration.steered_run import build, train
from tests.support.forked import Forked
from tests.support.processes import Process, agents_of, free_port, serve, until
from tests.support.tiny_runs import AtStep, set_with_torch

JOB = "pipeline"
STEP_SECONDS = 0.05  # long enough for all kills and restarts to fit into the run
_OPEN = {update_pb2.UPDATE_STATE_PENDING, update_pb2.UPDATE_STATE_DELIVERED}


class Pipeline:
    """A control plane and a training run, restarted after each kill."""

    def __init__(self, directory: Path, steps: int) -> None:
        self.directory = directory
        self.steps = steps
        self.port = free_port()
        self._forked = Forked("tests.integration.steered_run")
        self.server = self._serve()
        self.trainer = self._train()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = ControlPlaneServiceStub(self.channel)
        self.accepted: dict[int, float] = {}
        self._random = random.Random(7)
        self._requests = 0

    def _serve(self) -> Process:
        return serve(self.port, self.directory, heartbeat_interval=0.2)

    def _train(self) -> Any:
        address = f"127.0.0.1:{self.port}"
        run, sockets = self.directory / "run", self.directory / "s"
        return self._forked.start(train, run, JOB, address, self.steps, STEP_SECONDS, sockets)

    def trained(self) -> None:
        """Waits for the end of the run."""
        self.trainer.join(120)
        output = (self.directory / "run" / "output.log").read_text(errors="replace")
        assert self.trainer.exitcode == 0, output[-4_000:]

    def close(self) -> None:
        self.channel.close()
        self.server.end()
        self._forked.close()
        for pid in agents_of(JOB):
            os.kill(pid, signal.SIGKILL)

    def job(self) -> job_pb2.Job | None:
        try:
            return self.stub.GetJob(api.GetJobRequest(name=f"jobs/{JOB}"), timeout=5).job
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                return None
            raise

    def step(self) -> int:
        job = self.job()
        return job.progress.step if job is not None else 0

    def wait(self, revision: int) -> None:
        """Gives an update a moment to come into force; it need not."""
        request = api.WaitUpdateRequest(name=f"jobs/{JOB}/updates/{revision}")
        request.timeout.FromMilliseconds(50)
        self.stub.WaitUpdate(request, timeout=5)

    def send(self) -> int:
        """Sends an update, again until it is answered: what is answered is accepted."""
        self._requests += 1
        value = self._random.uniform(1e-3, 5e-3)
        request = api.UpdateParametersRequest(
            job=f"jobs/{JOB}", request_id=f"request-{self._requests}"
        )
        change = request.spec.changes.add(parameter="learning_rate")
        change.set.value.number = value

        def answered() -> update_pb2.Update | None:
            try:
                return self.stub.UpdateParameters(request, timeout=5).update
            except grpc.RpcError as error:
                if error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ):
                    return None
                raise

        update = until(answered, "an answer to UpdateParameters")
        assert self.accepted.setdefault(update.revision, value) == value
        return update.revision

    def send_while(self, steps: int) -> None:
        """Sends updates while the run goes on for so many steps."""
        goal = until(self.step, "progress") + steps
        while self.step() < min(goal, self.steps - 60):
            self.wait(self.send())

    def kill_agent(self) -> None:
        pid = until(lambda: agents_of(JOB), "an agent")[0]
        self.send()
        os.kill(pid, signal.SIGKILL)
        self.send()
        until(lambda: [p for p in agents_of(JOB) if p != pid], "a new agent")

    def kill_server(self) -> None:
        self.send()
        self.server.kill()
        self.server = self._serve()
        self.send()

    def kill_trainer(self) -> None:
        self.send()
        self.trainer.kill()
        self.trainer.join(30)
        assert self.trainer.exitcode == -signal.SIGKILL
        self.send()
        self.trainer = self._train()

    def updates(self) -> list[update_pb2.Update]:
        request = api.ListUpdatesRequest(
            parent=f"jobs/{JOB}", order=api.UPDATE_ORDER_OLDEST_FIRST, page_size=1000
        )
        return list(self.stub.ListUpdates(request, timeout=5).updates)


@pytest.fixture
def pipeline(steps: int, tmp_path: Path) -> Iterator[Pipeline]:
    (tmp_path / "s").mkdir(mode=0o700)
    (tmp_path / "run").mkdir()
    running = Pipeline(tmp_path, steps)
    try:
        yield running
    finally:
        running.close()


def losses(directory: Path) -> dict[int, str]:
    """The loss of every step, as the run came to it last."""
    lines = (directory / "run" / "steps.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def scripted(directory: Path, steps: int, changes: dict[int, list[float]]) -> dict[int, str]:
    """The losses of a run whose script makes the changes: {first step that uses it: values}."""
    (directory / "run").mkdir(parents=True)
    torch.set_num_threads(1)
    trainer = build(directory / "run", steps, 0.0)

    def script(step: int, optimizer: object, scheduler: object) -> None:
        for value in changes.get(step + 1, []):
            set_with_torch(optimizer, scheduler, value)

    trainer.add_callback(AtStep(script))
    trainer.train()
    return losses(directory)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("steps", "kills", "at_least"),
    [
        pytest.param(250, ("agent", "server", "trainer"), 12, id="each-once"),
        pytest.param(
            *(360, ("agent", "server", "trainer", "agent", "server"), 20),
            id="some-again",
            marks=pytest.mark.long,
        ),
    ],
)
def test_every_accepted_update_is_applied_once_in_order_whoever_is_killed(
    pipeline: Pipeline, steps: int, kills: tuple[str, ...], at_least: int, tmp_path: Path
) -> None:
    until(lambda: pipeline.job() and pipeline.step() > 5, "the first steps", 90)
    for who in kills:
        pipeline.send_while(25)
        getattr(pipeline, f"kill_{who}")()
    pipeline.send_while(25)
    pipeline.trained()

    def all_settled() -> list[update_pb2.Update] | None:
        updates = pipeline.updates()
        return None if any(u.state in _OPEN for u in updates) else updates

    updates = until(all_settled, "every update settled")
    assert [u.revision for u in updates] == list(range(1, len(updates) + 1))
    assert set(pipeline.accepted) == {u.revision for u in updates}
    job = pipeline.job()
    assert job is not None
    assert job.state == job_pb2.JOB_STATE_FINISHED, job

    changes: dict[int, list[float]] = {}
    before = 0
    for update in updates:
        value = pipeline.accepted[update.revision]
        if update.WhichOneof("outcome") != "applied":
            assert update.state == update_pb2.UPDATE_STATE_EXPIRED, update
            continue
        # What a restart undid was applied again; the last application is the one that stands.
        applied = update.reapplied[-1] if update.reapplied else update.applied
        assert {each.new_value.number for each in applied.transitions} == {value}
        assert 1 <= before <= applied.step or before == 0, update
        before = applied.step
        changes.setdefault(applied.step, []).append(value)
    assert len(changes) > at_least
    assert losses(tmp_path) == scripted(tmp_path / "scripted", steps, changes)
