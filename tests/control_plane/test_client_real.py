"""Both clients against a real control plane: each test is run with the one and with the other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.client import (
    Client,
    ConflictError,
    Credentials,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RetryPolicy,
    UnauthenticatedError,
    UpdateNotAppliedError,
)
from control_plane.domain.access import Access, Role
from midcourse.control.v1 import access_pb2, batch_pb2, control_pb2, update_pb2
from tests.support.applying_agent import ScriptedAgent
from tests.support.blocking_client import KINDS, Connect, EventLoop, connecting
from tests.support.plane import RunningPlane, running_plane

PATIENT = RetryPolicy(attempts=100, initial=0.02, maximum=0.1)


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients of one of the two kinds."""
    with connecting(request.param) as connect:
        yield connect


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    """Where control planes run."""
    loop = EventLoop()
    yield loop
    loop.stop()


@contextlib.contextmanager
def served(loop: EventLoop, database: Path, **settings: Any) -> Iterator[RunningPlane]:
    """A control plane beside the test."""
    running = running_plane(database, **settings)
    try:
        yield loop.run(running.__aenter__())
    finally:
        loop.run(running.__aexit__(None, None, None))


@pytest.fixture
def plane(connect: Connect, loop: EventLoop, tmp_path: Path) -> Iterator[Client]:
    with served(loop, tmp_path / "c.db") as running, connect(running.address) as client:
        yield client


@pytest.fixture
def agents(plane: Client) -> Iterator[dict[str, ScriptedAgent]]:
    """Two jobs of a team that apply what they get."""
    running = {job: ScriptedAgent(plane.address, job, team="nlp") for job in ("a", "b")}
    yield running
    for agent in running.values():
        agent.close()


def test_one_job(plane: Client, agents: dict[str, ScriptedAgent]) -> None:
    assert plane.get_caller().access.role == access_pb2.ROLE_ADMIN
    made = plane.set("a", learning_rate=1e-5, wait=True, reason="too fast")
    assert (made.revision, made.applied.step) == (1, 121)
    assert plane.multiply("a", {"learning_rate": 0.5}, wait=True, expected_revision=1).revision == 2
    with pytest.raises(ConflictError):
        plane.multiply("a", {"learning_rate": 0.5}, expected_revision=1)
    with pytest.raises(InvalidArgumentError) as refused:
        plane.set("a", {"learning_rat": 1.0})
    assert refused.value.violations[0].field == "spec.changes[0].parameter"
    again = [plane.release("a", "learning_rate", request_id="once").revision for _ in range(2)]
    assert again == [3, 3]
    assert plane.save_checkpoint("a", wait=True).applied.action_result.checkpoint
    agents["a"].rejects = True
    with pytest.raises(UpdateNotAppliedError, match="the optimizer is shut") as rejected:
        plane.set("a", learning_rate=1e-5, wait=True)
    assert rejected.value.reason == "NOT_NOW"
    assert [update.revision for update in plane.list_updates("a", page_size=2)] == [5, 4, 3, 2, 1]
    assert plane.get_update("a", 1).spec.reason == "too fast"
    assert [span.instance_id for span in plane.get_lineage("a")] == ["instance-1"]
    agents["b"].silent = True
    asked = plane.set("b", learning_rate=1e-5)
    cancelled = plane.cancel_update("b", asked.revision, wait=0.01)
    assert cancelled.cancel_requested or cancelled.state == update_pb2.UPDATE_STATE_CANCELLED
    with pytest.raises(FailedPreconditionError):
        plane.delete_job("a")


def test_jobs_and_metrics(plane: Client, agents: dict[str, ScriptedAgent]) -> None:
    plane.create_job("planned", labels={"team": "vision"})
    assert [job.name for job in plane.list_jobs(page_size=1)] == [
        "jobs/a",
        "jobs/b",
        "jobs/planned",
    ]
    assert [job.name for job in plane.list_jobs("team in (vision)")] == ["jobs/planned"]
    labelled = plane.label_job("planned", {"prio": "high"}, remove=["team"])
    assert dict(labelled.labels) == {"prio": "high"}
    with plane.watch_jobs(job="a", progress_interval=0.1) as watch:
        assert next(watch).job.name == "jobs/a"
        assert not next(watch).HasField("job")
        assert watch.position
        agents["a"].beat(121, loss=2.5)
        for event in watch:
            if event.job.metrics:
                break
    (loss,) = plane.query_metrics("a", ["loss"], first_step=121)
    assert list(loss.values) == [2.5]
    plane.delete_job("planned", etag=labelled.etag)
    with pytest.raises(NotFoundError):
        plane.get_job("planned")


def test_a_batch(plane: Client, agents: dict[str, ScriptedAgent]) -> None:
    agents["b"].rejects = True
    tried = plane.batch_set("team=nlp", {"learning_rate": 1e-5}, validate_only=True)
    assert [item.job for item in tried.items] == ["jobs/a", "jobs/b"]
    made = plane.batch_set("team=nlp", {"learning_rate": 1e-5}, request_id="once")
    same = plane.batch_set("team=nlp", {"learning_rate": 1e-5}, request_id="once")
    assert made.batch.name == same.batch.name
    last: dict[str, batch_pb2.BatchItem] = {}
    for event in plane.watch_batch(made.batch.name):
        last.update({item.job: item for item in event.items})
    assert {job: item.state for job, item in last.items()} == {
        "jobs/a": update_pb2.UPDATE_STATE_APPLIED,
        "jobs/b": update_pb2.UPDATE_STATE_REJECTED,
    }
    assert last["jobs/b"].refusal.message == "the optimizer is shut"
    assert plane.get_batch(made.batch.name).name == made.batch.name
    assert [batch.name for batch in plane.list_batches()] == [made.batch.name]
    assert len(list(plane.list_updates(selector="team=nlp"))) == 2
    with pytest.raises(FailedPreconditionError):
        plane.cancel_batch(made.batch.name)
    with pytest.raises(NotFoundError):
        plane.batch_set("team=none", {"learning_rate": 1e-5})


def test_tokens(connect: Connect, loop: EventLoop, tmp_path: Path) -> None:
    with served(loop, tmp_path / "c.db", auth="token") as running:
        _, secret = loop.run(
            running.plane.tokens.create("root", Access(Role.ADMIN), lifetime=None, creator="test")
        )
        with connect(running.address, credentials=Credentials(token=secret)) as admin:
            assert admin.get_caller().principal == "root"
            made = admin.create_token("eve", "viewer", description="a look", lifetime=60)
            with connect(running.address, credentials=Credentials(token=made.secret)) as viewer:
                assert not list(viewer.list_jobs())
                with pytest.raises(PermissionDeniedError):
                    viewer.create_job("j")
                admin.revoke_token(made.token.name)
                with pytest.raises(UnauthenticatedError):
                    viewer.get_caller()
            listed = {token.principal: token for token in admin.list_tokens(show_inactive=True)}
            assert listed["eve"].description == "a look"
            assert {record.principal for record in admin.list_audit_records()} >= {"root"}


def test_a_watch_outlives_restarts_without_gaps_and_duplicates(
    connect: Connect, loop: EventLoop, tmp_path: Path
) -> None:
    rounds, jobs = 3, 4
    made = [f"jobs/j-{n:02d}" for n in range(rounds * jobs)]
    seen: list[control_pb2.WatchJobsResponse] = []
    told = threading.Condition()

    def read(plane: Client) -> None:
        with plane.watch_jobs("team=nlp") as watch:
            for event in watch:
                with told:
                    seen.append(event)
                    told.notify_all()
                if event.job.name == made[-1]:
                    return

    address = "127.0.0.1:0"
    reader = None
    with contextlib.ExitStack() as stack:
        for turn in range(rounds):
            with served(loop, tmp_path / "c.db", listen=address) as running:
                address = running.address
                caller = stack.enter_context(Client(address, retry=PATIENT))
                if reader is None:
                    caller.create_job("first", labels={"team": "nlp"})
                    plane = stack.enter_context(connect(address, retry=PATIENT))
                    reader = threading.Thread(target=read, args=(plane,))
                    reader.start()
                    with told:
                        assert told.wait_for(lambda: len(seen) == 2, 30)
                for name in made[turn * jobs : (turn + 1) * jobs]:
                    caller.create_job(name, labels={"team": "nlp"})
                if turn == rounds - 1:
                    reader.join(30)
                    assert not reader.is_alive()
    snapshot, bookmark, *changed = seen
    assert snapshot.type == control_pb2.JOB_EVENT_TYPE_SNAPSHOT
    assert bookmark.type == control_pb2.JOB_EVENT_TYPE_BOOKMARK
    created = [event for event in changed if event.type != control_pb2.JOB_EVENT_TYPE_BOOKMARK]
    assert [event.job.name for event in created] == made
    assert {event.type for event in created} == {control_pb2.JOB_EVENT_TYPE_CREATED}


def test_a_watch_of_a_batch_outlives_a_restart(
    connect: Connect, loop: EventLoop, tmp_path: Path
) -> None:
    """It goes on with another server, and all items come again."""
    told = threading.Condition()
    seen: list[control_pb2.WatchBatchResponse] = []
    last: dict[str, int] = {}

    def read(plane: Client, batch: str) -> None:
        for event in plane.watch_batch(batch):
            with told:
                seen.append(event)
                last.update({item.job: item.state for item in event.items})
                told.notify_all()

    with contextlib.ExitStack() as stack:
        with served(loop, tmp_path / "c.db") as running:
            # Gone again: nothing is on its way to a trainer that would have to give it back.
            loop.run(loop.run(running.agent("j")).leave())
            plane = stack.enter_context(connect(running.address, retry=PATIENT))
            batch = plane.batch_set("", {"learning_rate": 1e-5}, jobs=["j"]).batch.name
            reader = threading.Thread(target=read, args=(plane, batch))
            reader.start()
            with told:
                assert told.wait_for(lambda: len(seen) == 1, 30)
        with served(loop, tmp_path / "c.db", listen=running.address) as running:
            with told:
                assert told.wait_for(lambda: len(seen) == 2, 30)
            plane.cancel_batch(batch)
            reader.join(30)
            assert not reader.is_alive()
    assert [[item.job for item in event.items] for event in seen[:2]] == [["jobs/j"]] * 2
    assert last == {"jobs/j": update_pb2.UPDATE_STATE_CANCELLED}
