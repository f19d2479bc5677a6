"""Real processes, killed and started again: what becomes of updates and actions.

A control plane, the agents that trainers start, and trainers that go on from their last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from examples.train.prepare import main as prepare
from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1 import job_pb2, update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.integration.killed_run import Order, read_trace, scripted, train
from tests.integration.steered_run import newest_whole_checkpoint
from tests.support.forked import Forked
from tests.support.midcourse_command import Midcourse
from tests.support.plain_scripts import write
from tests.support.processes import ROOT, Process, agents_of, free_port, serve, until
from tests.support.scripted_link import (
    pause,
    roll_back,
    save_checkpoint,
    set_change,
    stop,
)
from trainer_agent.parameters import Set
from trainer_agent.steering.convert import change_to_proto

_NUMBERS = itertools.count(1)
_OPEN = {update_pb2.UPDATE_STATE_PENDING, update_pb2.UPDATE_STATE_DELIVERED}
NEW_RATE = 0.0375


class Plane:
    """A control plane and what callers ask of it."""

    def __init__(self, directory: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._server = serve(
            int(self.address.rpartition(":")[2]), directory, heartbeat_interval=0.1
        )
        self._channel = grpc.insecure_channel(self.address)
        self._stub: Any = ControlPlaneServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()
        self._server.end()

    def job(self, name: str) -> job_pb2.Job | None:
        try:
            found: job_pb2.Job = self._stub.GetJob(
                api.GetJobRequest(name=f"jobs/{name}"), timeout=5
            ).job
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}:
                return None
            raise
        return found

    def ask(
        self, job: str, *changes: update_pb2.Change, action: update_pb2.Action | None = None
    ) -> int:
        """Send an update; return its revision."""
        spec = update_pb2.UpdateSpec(changes=changes, action=action)
        request = api.UpdateParametersRequest(job=f"jobs/{job}", spec=spec)
        update: update_pb2.Update = self._stub.UpdateParameters(request, timeout=10).update
        return update.revision

    def wait(self, job: str, revision: int, seconds: float = 60.0) -> update_pb2.Update:
        """Wait until an update is settled, or for so long."""
        request = api.WaitUpdateRequest(name=f"jobs/{job}/updates/{revision}")
        request.timeout.FromMilliseconds(int(seconds * 1000))
        update: update_pb2.Update = self._stub.WaitUpdate(request, timeout=seconds + 5).update
        return update

    def updates(self, job: str) -> list[update_pb2.Update]:
        request = api.ListUpdatesRequest(
            parent=f"jobs/{job}", order=api.UPDATE_ORDER_OLDEST_FIRST, page_size=1000
        )
        return list(self._stub.ListUpdates(request, timeout=5).updates)

    def settled(self, job: str) -> list[update_pb2.Update]:
        """Wait until every update is settled, and return them."""

        def all_settled() -> list[update_pb2.Update] | None:
            updates = self.updates(job)
            return None if any(each.state in _OPEN for each in updates) else updates

        return until(all_settled, f"every update of {job} settled")

    def instance(self, job: str, unlike: str = "") -> str:
        """Wait until a process of the job is known, other than one; return its id."""

        def known() -> str | None:
            found = self.job(job)
            return found.session.instance_id if found is not None else None

        return until(lambda: known() if known() not in {"", unlike} else None, "the process")

    def in_state(self, job: str, state: job_pb2.JobState.ValueType) -> job_pb2.Job:
        """Wait until a job is in a state."""

        def found() -> job_pb2.Job | None:
            job_now = self.job(job)
            return job_now if job_now is not None and job_now.state == state else None

        return until(found, f"{job} in state {job_pb2.JobState.Name(state)}")


class Run:
    """A trainer of one job, which may be killed and started again."""

    def __init__(self, plane: Plane, forked: Forked, order: Order) -> None:
        self._forked = forked
        self.plane = plane
        self.order = order
        self._process: Any = None

    @property
    def job(self) -> str:
        return self.order.job

    def start(self) -> None:
        self._process = self._forked.start(train, self.order)

    def restart(self) -> None:
        self.kill()
        self.start()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        assert self._process.is_alive(), self.tail()
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(30)

    def end(self) -> None:
        """Wait until it has trained to its end."""
        self._process.join(60)
        assert self._process.exitcode == 0, self.tail()

    def tail(self) -> str:
        return (self.order.directory / "output.log").read_text(errors="replace")[-4_000:]

    def trace(self) -> dict[int, dict[str, Any]]:
        return read_trace(self.order.directory)

    def reaches(self, step: int) -> None:
        """Wait until a step was made."""

        def there() -> bool:
            assert self._process.is_alive() or self._process.exitcode == 0, self.tail()
            return step in self.trace()

        until(there, f"step {step}")

    def resumes_from(self) -> int:
        """Steps done at the checkpoint that it would go on from; 0: there is none."""
        return int((newest_whole_checkpoint(self.order.directory) or "-0").rpartition("-")[2])


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    running = Plane(tmp_path_factory.mktemp("plane"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    server = Forked("tests.integration.killed_run")
    yield server
    server.close()


@pytest.fixture
def begin(plane: Plane, forked: Forked, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run."""
    jobs: list[str] = []
    sockets = tmp_path / "s"
    sockets.mkdir(mode=0o700)

    def begin(max_steps: int = 400, step_seconds: float = 0.02, **args: Any) -> Run:
        job = f"run-{next(_NUMBERS)}"
        directory = tmp_path / job
        directory.mkdir()
        env = {"MIDCOURSE_SOCKET_DIR": str(sockets)}
        run = Run(
            plane,
            forked,
            Order(directory, job, max_steps, plane.address, step_seconds, args=args, env=env),
        )
        jobs.append(job)
        run.start()
        until(lambda: plane.job(job), "the job")
        return run

    yield begin
    for job in jobs:
        for pid in agents_of(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def changes_of(values: Mapping[str, float]) -> list[update_pb2.Change]:
    """Changes that set values, whole numbers as such."""
    return [change_to_proto(Set(name, value)) for name, value in values.items()]


def standing(update: update_pb2.Update) -> update_pb2.Applied:
    """The application that stands: what a restart undid was applied again."""
    return update.reapplied[-1] if update.reapplied else update.applied


def values_of(update: update_pb2.Update) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in update.spec.changes:
        values[each.parameter] = getattr(each.set.value, str(each.set.value.WhichOneof("kind")))
    return values


def scripted_like(
    run: Run, updates: list[update_pb2.Update], directory: Path, last: int | None = None
) -> dict[int, dict[str, Any]]:
    """The trace of a plain script that makes the changes where the control plane says they were.

    It goes on to the run's end, or until a last step.
    """
    at: dict[int, list[Mapping[str, Any]]] = {}
    for update in sorted(updates, key=lambda each: (standing(each).step, each.revision)):
        if update.spec.changes:
            at.setdefault(standing(update).step - 1, []).append(values_of(update))

    def script(trainer: Any, step: int) -> None:
        for values in at.get(step, []):
            write(trainer, values)
        trainer.control.should_training_stop |= step == last

    torch.set_num_threads(1)
    order = dataclasses.replace(
        run.order, directory=directory, step_seconds=0.0, args={"save_strategy": "no"}
    )
    return scripted(order, script)


def replayed(run: Run, forked: Forked, tmp_path: Path) -> dict[int, dict[str, Any]]:
    """The trace of a run that replays the exported history, with no control plane."""
    recipe, directory = tmp_path / "run.yaml", tmp_path / "replayed"
    Midcourse(run.plane.address)("history", run.job, "--export", str(recipe))
    directory.mkdir()
    order = dataclasses.replace(
        run.order,
        directory=directory,
        step_seconds=0.0,
        replay=str(recipe),
        control_plane="",
        env={**run.order.env, "MIDCOURSE_CONTROL_PLANE": "127.0.0.1:1"},
    )
    process = forked.start(train, order)
    process.join(60)
    said = (directory / "output.log").read_text()
    assert process.exitcode == 0, said
    assert "was not replayed" not in said
    return read_trace(directory)


@dataclasses.dataclass(frozen=True)
class Start:
    """A process of a run, and the checkpoint that it went on from."""

    instance: str
    checkpoint: int
    """Steps done there; 0: it began anew."""


def stands(update: update_pb2.Update, starts: list[Start]) -> bool:
    """Whether an application is in the run as it is now: no kill undid it.

    What was applied at the boundary at which a checkpoint was saved is in it, but not what a
    process that went on from that checkpoint applied first.
    """
    last = standing(update)
    own = next((each for each in starts if each.instance == last.instance_id), None)
    if own is None:
        return False
    return all(
        last.step <= later.checkpoint + (later.checkpoint != own.checkpoint)
        for later in starts[starts.index(own) + 1 :]
    )


def gave_way(update: update_pb2.Update, there: list[update_pb2.Update]) -> bool:
    """Whether it waited for its boundary, at least after a kill, when a newer one came to its."""
    waited = update.rejected.reason == "SUPERSEDED" or update.HasField("applied")
    newer = [each for each in there if each.revision > update.revision]
    return (
        waited
        and values_of(update).keys() == {ACCUMULATION}
        and any(values_of(each).keys() == {ACCUMULATION} for each in newer)
    )


ACCUMULATION = "gradient_accumulation_steps"
"""Waits for a boundary of its own, so that it is sent by itself."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kills", [2, pytest.param(4, marks=pytest.mark.long)])
def test_killed_at_any_point_a_run_comes_to_what_is_desired(
    begin: Callable[..., Run], plane: Plane, forked: Forked, tmp_path: Path, kills: int
) -> None:
    drawn = random.Random(11)
    run = begin(max_steps=1_500, save_steps=20)
    asked: list[int] = []
    starts = [Start(plane.instance(run.job), 0)]

    def send() -> None:
        values: dict[str, float] = {"learning_rate": drawn.uniform(0.005, 0.02)}
        if drawn.random() < 0.5:
            values["weight_decay"] = drawn.uniform(0.05, 0.5)
        if drawn.random() < 0.5:
            values["max_grad_norm"] = drawn.uniform(0.05, 1.0)
        asked.append(plane.ask(run.job, *changes_of(values)))
        if drawn.random() < 0.4:
            values = {ACCUMULATION: drawn.randint(1, 4)}
            asked.append(plane.ask(run.job, *changes_of(values)))

    def come_to_what_is_desired() -> list[update_pb2.Update] | None:
        updates = plane.updates(run.job)
        there = [each for each in updates if each.HasField("applied") and stands(each, starts)]
        if all(each in there or gave_way(each, there) for each in updates):
            return there
        return None

    def held_with_something_to_undo() -> bool:
        """Hold the trainer with all settled; let it go on where a checkpoint has it all."""
        until(lambda: plane.updates(run.job)[-1].state not in _OPEN, "the last one settled")
        run.signal(signal.SIGSTOP)
        saved = run.resumes_from()
        for each in plane.updates(run.job):
            mine = each.HasField("applied") and standing(each).instance_id == starts[-1].instance
            if mine and "learning_rate" in values_of(each) and standing(each).step > saved + 1:
                return True
        run.signal(signal.SIGCONT)
        send()
        return False

    for kill, at in enumerate(sorted(drawn.sample(range(12, 12 + 30 * kills), kills))):
        done = max(run.trace(), default=0)
        for goal in sorted({drawn.randint(min(done, at), at) for _ in range(4)}):
            run.reaches(goal)
            send()
        run.reaches(at)
        send()
        if kill < kills - 1:
            until(held_with_something_to_undo, "no checkpoint between a change and the kill")
        # else the last one is on its way while the trainer dies
        run.kill()
        if drawn.random() < 0.5:
            send()  # while there is no trainer
        checkpoint = run.resumes_from()
        run.start()
        starts.append(Start(plane.instance(run.job, unlike=starts[-1].instance), checkpoint))
    updates = until(come_to_what_is_desired, "what is desired")
    run.reaches(max(standing(each).step for each in updates) + 3)
    stopped = plane.wait(run.job, plane.ask(run.job, action=stop()))
    run.end()

    job = plane.in_state(run.job, job_pb2.JOB_STATE_FINISHED)
    assert [each.revision for each in plane.settled(run.job)] == [*asked, stopped.revision]
    assert any(each.reapplied for each in updates), "a kill has to undo something"
    for update in updates:
        applications = [update.applied, *update.reapplied]
        assert len({each.instance_id for each in applications}) == len(applications)
        for each in standing(update).transitions:
            kind = str(each.new_value.WhichOneof("kind"))
            if not (each.parameter == "weight_decay" and not each.new_value.number):
                assert getattr(each.new_value, kind) == values_of(update)[each.parameter]

    trace = run.trace()
    last = max(trace)
    assert last == stopped.applied.step - 1
    assert trace == scripted_like(run, updates, tmp_path / "scripted", last)
    in_order = sorted(updates, key=lambda each: (standing(each).step, each.revision))
    newest = {name: value for each in in_order for name, value in values_of(each).items()}
    effective = {each.parameter: each.value for each in reversed(job.effective.parameters)}
    for name in newest.keys() - {"learning_rate"}:
        value = effective[name]
        assert getattr(value, str(value.WhichOneof("kind"))) == newest[name]
    assert job.effective.revision == job.desired.revision == stopped.revision
    assert replayed(run, forked, tmp_path) == trace


@pytest.mark.timeout(120)
def test_a_steered_run_replays_without_a_control_plane_to_the_bit(
    begin: Callable[..., Run], plane: Plane, forked: Forked, tmp_path: Path
) -> None:
    run = begin(max_steps=60)
    for at, values in (
        (5, {"learning_rate": 0.02}),
        (12, {"weight_decay": 0.4, "gradient_accumulation_steps": 3}),
        (20, {"learning_rate": 0.004, "max_grad_norm": 0.1}),
        (30, {"gradient_accumulation_steps": 1}),
    ):
        run.reaches(at)
        assert plane.wait(run.job, plane.ask(run.job, *changes_of(values))).HasField("applied")
    run.end()
    plane.in_state(run.job, job_pb2.JOB_STATE_FINISHED)
    trace = run.trace()
    assert {each["gradient_accumulation_steps"] for each in trace.values()} == {1, 2, 3}
    assert replayed(run, forked, tmp_path) == trace
    assert trace == scripted_like(run, plane.updates(run.job), tmp_path / "scripted")


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_my_new_learning_rate_is_not_ignored_on_resume(
    schedule: str, begin: Callable[..., Run], plane: Plane
) -> None:
    """The script's arguments still say the old one, and nobody sends the new one again."""
    run = begin(lr_scheduler_type=schedule, save_strategy="no")
    run.reaches(3)
    changed = plane.wait(run.job, plane.ask(run.job, set_change(NEW_RATE)))
    assert run.trace()[changed.applied.step]["learning_rate"] == [NEW_RATE, NEW_RATE]
    saved = plane.wait(run.job, plane.ask(run.job, action=save_checkpoint()))
    at = saved.applied.step - 1
    assert Path(saved.applied.action_result.checkpoint).name == f"checkpoint-{at}"
    run.reaches(at + 3)
    before = run.trace()
    run.restart()
    until(lambda: run.trace().keys() == before.keys() and len(run.trace()) > at + 2, "as far again")
    after = run.trace()
    for step in range(at + 1, at + 3):
        assert after[step] == before[step], "to the bit"
        rate = after[step]["learning_rate"][0]
        if schedule == "constant":
            assert rate == NEW_RATE
        else:
            assert rate == pytest.approx(NEW_RATE * (401 - step) / (401 - changed.applied.step))
    assert not plane.updates(run.job)[0].reapplied, "it was in the checkpoint"
    run.kill()


def test_a_pause_is_not_repeated_after_a_kill(begin: Callable[..., Run], plane: Plane) -> None:
    run = begin(max_steps=60, lr_scheduler_type="constant")
    run.reaches(4)
    held = plane.wait(run.job, plane.ask(run.job, action=pause()))
    assert held.applied.step > 4
    plane.in_state(run.job, job_pb2.JOB_STATE_PAUSED)
    changed = plane.ask(run.job, set_change(NEW_RATE))
    until(lambda: held.applied.step - 1 in run.trace(), "the step that it is held after")
    assert max(run.trace()) == held.applied.step - 1
    run.restart()
    run.end()
    assert sorted(run.trace()) == list(range(1, 61))
    again, after = plane.settled(run.job)
    assert again.revision == held.revision
    assert not again.reapplied
    assert after.revision == changed
    # What was asked for while it was held is in force where the run goes on, or was at its step.
    first = run.trace()[standing(after).step]
    assert first["learning_rate"] == [NEW_RATE, NEW_RATE]
    plane.in_state(run.job, job_pb2.JOB_STATE_FINISHED)


def test_a_stop_is_not_repeated_when_the_run_goes_on(
    begin: Callable[..., Run], plane: Plane
) -> None:
    run = begin(max_steps=60)
    run.reaches(4)
    stopped = plane.wait(run.job, plane.ask(run.job, action=stop()))
    run.end()
    at = stopped.applied.step - 1
    assert max(run.trace()) == at < 60
    checkpoint = Path(stopped.applied.action_result.checkpoint)
    assert checkpoint == run.order.directory / f"checkpoint-{at}"
    assert (checkpoint / "trainer_state.json").is_file()
    plane.in_state(run.job, job_pb2.JOB_STATE_FINISHED)
    run.start()
    run.end()
    assert sorted(run.trace()) == list(range(1, 61))
    (update,) = plane.settled(run.job)
    assert update.applied == stopped.applied
    assert not update.reapplied
    plane.in_state(run.job, job_pb2.JOB_STATE_FINISHED)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_roll_back_through_the_launcher_is_applied_once(plane: Plane, tmp_path: Path) -> None:
    job = "rolled-back"
    prepare(str(tmp_path / "model"))
    (tmp_path / "s").mkdir(mode=0o700)
    sets = [
        f"model.path={tmp_path / 'model'}",
        f"training.output_dir={tmp_path / 'out'}",
        "training.max_steps=100000",
        "training.save_steps=5",
        "training.save_total_limit=100",
        "training.eval_strategy=no",
        "training.lr_scheduler_type=constant",
    ]
    launcher = Process(
        "launcher",
        [
            *("-m", "trainer_agent.training", "--job", job),
            *("-c", str(ROOT / "examples" / "train" / "sft.yaml")),
            *(word for each in sets for word in ("--set", each)),
        ],
        tmp_path,
        HF_DATASETS_CACHE=str(tmp_path / "cache"),
        MIDCOURSE_CONTROL_PLANE=plane.address,
        MIDCOURSE_SOCKET_DIR=str(tmp_path / "s"),
    )

    def step() -> int:
        assert launcher.exit_code is None, launcher.tail()
        found = plane.job(job)
        return 0 if found is None else found.progress.step

    try:
        until(lambda: step() >= 7, "the first checkpoint", 90)
        before = plane.wait(job, plane.ask(job, set_change(1e-3)))
        old = str(tmp_path / "out" / "checkpoint-5")
        asked = plane.ask(job, set_change(5e-4), action=roll_back("checkpoint-5"))
        back = plane.wait(job, asked, 90)
        assert back.applied.step == 6, back
        assert back.applied.action_result.checkpoint == old
        assert {each.new_value.number for each in back.applied.transitions} == {5e-4}
        assert back.applied.instance_id != before.applied.instance_id
        stopped = plane.wait(job, plane.ask(job, action=stop()), 90)
        assert launcher.wait(60) == 0, launcher.tail()
        assert "restart 1 of at most" in launcher.tail()
    finally:
        launcher.end()
        for pid in agents_of(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    first, second, last = plane.settled(job)
    assert second.applied == back.applied
    assert not second.reapplied
    assert last.applied == stopped.applied
    # What was in force before it is not: the checkpoint does not have it.
    assert not first.reapplied
    assert first.rolled_back_by == second.revision
    plane.in_state(job, job_pb2.JOB_STATE_FINISHED)
