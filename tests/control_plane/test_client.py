"""Both clients against a real gRPC server: each test is run with the one and with the other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from control_plane import changes
from control_plane.client import (
    AlreadyExistsError,
    Client,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    MidcourseError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    RetryPolicy,
    UnauthenticatedError,
    UnavailableError,
    UpdateNotAppliedError,
    UpdateTimeoutError,
)
from grpc_runtime.errors import StatusError
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from tests.support.blocking_client import KINDS, Connect, connecting
from tests.support.fake_control_plane import FakeControlPlane, make_job, make_series

Code = grpc.StatusCode
QUICK = RetryPolicy(attempts=3, initial=0.005, maximum=0.01)


@pytest.fixture
def server() -> Iterator[FakeControlPlane]:
    with FakeControlPlane() as fake:
        fake.add(make_job("my-run"))
        yield fake


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients of one of the two kinds."""
    with connecting(request.param) as connect:
        yield connect


@pytest.fixture
def plane(connect: Connect, server: FakeControlPlane) -> Iterator[Client]:
    with connect(server.address, retry=QUICK) as client:
        yield client


def unavailable(retry_delay: float | None = None) -> StatusError:
    return StatusError(Code.UNAVAILABLE, "draining", reason="DRAINING", retry_delay=retry_delay)


def names(fake: FakeControlPlane) -> list[str]:
    return [name for name, _ in fake.calls]


def test_the_example_of_the_readme(plane: Client) -> None:
    update = plane.set("my-run", learning_rate=5e-5, wait=True)
    assert update.applied.step == 121
    assert update.applied.transitions[0].new_value.number == 5e-5


def test_set_sends_every_option(plane: Client, server: FakeControlPlane) -> None:
    plane.set(
        "jobs/my-run",
        {"learning_rate": changes.multiply("learning_rate", 0.5)},
        at_step=200,
        max_step=210,
        deadline=timedelta(minutes=10),
        reason="plateau",
        force=True,
        expected_revision=0,
        request_id="r-1",
    )
    method, request = server.calls[0]
    assert method == "UpdateParameters"
    assert request.job == "jobs/my-run"
    assert request.spec.changes[0].multiply.factor == 0.5
    assert (request.spec.apply_at.step, request.spec.apply_at.max_step) == (200, 210)
    assert request.spec.HasField("deadline")
    assert request.spec.reason == "plateau"
    assert request.spec.force
    assert request.HasField("expected_revision")
    assert request.request_id == "r-1"


def test_every_way_of_changing(plane: Client, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    plane.set("my-run", learning_rate=1e-5, mode="hold", hold_steps=5, group="1")
    plane.set("my-run", learning_rate=1e-5, mode="peak")
    plane.multiply("my-run", {"learning_rate": 0.1})
    plane.ramp("my-run", {"learning_rate": 1e-6}, steps=10)
    plane.schedule("my-run", "learning_rate", "cosine", peak=1e-4, warmup_steps=3, floor=1e-6)
    plane.release("my-run", "learning_rate")
    hold, peak, multiply, ramp, schedule, release = (
        update.spec.changes[0] for update in plane.list_updates("my-run", oldest_first=True)
    )
    assert hold.set.mode == update_pb2.SET_MODE_HOLD
    assert hold.set.hold_steps == 5
    assert hold.group == "1"
    assert peak.set.mode == update_pb2.SET_MODE_PEAK
    assert not peak.set.HasField("hold_steps")
    assert multiply.multiply.factor == 0.1
    assert (ramp.ramp.value.number, ramp.ramp.steps) == (1e-6, 10)
    assert schedule.schedule.shape == update_pb2.SCHEDULE_SHAPE_COSINE
    assert not schedule.schedule.HasField("steps")
    assert release.WhichOneof("operation") == "release"


def test_every_action(plane: Client, server: FakeControlPlane) -> None:
    server.jobs["jobs/my-run"].actions.append(update_pb2.ACTION_KIND_ROLL_BACK)
    assert plane.pause("my-run", reason="a look", at_step=200).spec.reason == "a look"
    plane.resume("my-run")
    saved = plane.save_checkpoint("my-run", wait=True)
    assert saved.applied.action_result.checkpoint == "/runs/checkpoint-120"
    assert plane.evaluate("my-run", wait=True).applied.action_result.metrics["eval_loss"] == 1.25
    plane.stop("my-run")
    plane.roll_back("my-run")
    plane.roll_back(
        "my-run", "/runs/checkpoint-100", changes=[changes.multiply("learning_rate", 0.1)]
    )
    specs = [request.spec for name, request in server.calls if name == "UpdateParameters"]
    assert [spec.action.WhichOneof("kind") for spec in specs] == [
        *("pause", "resume", "save_checkpoint", "evaluate", "stop", "roll_back", "roll_back")
    ]
    assert [len(spec.changes) for spec in specs] == [0] * 6 + [1]
    assert specs[-1].action.roll_back.checkpoint == "/runs/checkpoint-100"
    del server.jobs["jobs/my-run"].actions[:]
    with pytest.raises(InvalidArgumentError):
        plane.pause("my-run")


def test_a_coupling(plane: Client, server: FakeControlPlane) -> None:
    with pytest.raises(InvalidArgumentError):  # this server knows of no batch size
        plane.set("my-run", global_batch_size=64, coupling="linear")
    assert server.calls[-1][1].spec.changes[0].coupling == update_pb2.COUPLING_LINEAR


def test_the_lineage(plane: Client, server: FakeControlPlane) -> None:
    server.lineage = [control_pb2.LineageSpan(instance_id="one", first_step=0)]
    assert plane.get_lineage("my-run") == server.lineage


def test_jobs(plane: Client, server: FakeControlPlane) -> None:
    assert plane.create_job("new-run", labels={"team": "vision"}).name == "jobs/new-run"
    with pytest.raises(AlreadyExistsError):
        plane.create_job("new-run")
    server.add(make_job("third"))
    assert [job.name for job in plane.list_jobs()] == ["jobs/my-run", "jobs/new-run", "jobs/third"]
    assert names(server)[-2:] == ["ListJobs", "ListJobs"]  # two pages
    assert [job.name for job in plane.list_jobs("team=vision")] == ["jobs/new-run"]
    assert not list(plane.list_jobs(states=[job_pb2.JOB_STATE_LOST]))
    assert plane.get_job("my-run").uid == "uid-my-run"
    with pytest.raises(FailedPreconditionError):
        plane.delete_job("my-run")
    server.jobs["jobs/my-run"].session.connected = False
    plane.delete_job("my-run")
    with pytest.raises(NotFoundError) as caught:
        plane.get_job("my-run")
    assert caught.value.code is Code.NOT_FOUND
    assert caught.value.reason == "JOB_NOT_FOUND"


def test_metrics(plane: Client, server: FakeControlPlane) -> None:
    server.series["jobs/my-run"] = [make_series("loss", [3.0, 2.0, 1.0]), make_series("lr", [1.0])]
    (loss,) = plane.query_metrics("my-run", ["loss"], first_step=1, last=2)
    assert list(loss.values) == [2.0, 1.0]
    assert server.calls[-1][1].steps.first == 1


def test_refusals_say_which_field(plane: Client) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        plane.set("my-run", learning_rate=float("nan"))
    assert caught.value.reason == "OUT_OF_BOUNDS"
    assert caught.value.violations[0].field == "spec.changes[0].set.value"
    assert "got nan" in str(caught.value)
    with pytest.raises(ConflictError):
        plane.set("my-run", learning_rate=1e-5, expected_revision=7)


def test_wait_raises_if_the_update_is_not_applied(plane: Client, server: FakeControlPlane) -> None:
    for state in (
        update_pb2.UPDATE_STATE_REJECTED,
        update_pb2.UPDATE_STATE_EXPIRED,
        update_pb2.UPDATE_STATE_CANCELLED,
    ):
        server.settle_as = state
        with pytest.raises(UpdateNotAppliedError) as caught:
            plane.set("my-run", learning_rate=1e-5, wait=True)
        assert caught.value.update.state == state
        assert update_pb2.UpdateState.Name(state).removeprefix("UPDATE_STATE_") in str(caught.value)


def test_wait_ends_in_time(plane: Client, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    with pytest.raises(UpdateTimeoutError) as caught:
        plane.set("my-run", learning_rate=1e-5, wait=True, wait_timeout=0.05)
    assert caught.value.update.revision == 1
    assert plane.wait_update("my-run", 1, timeout=0).state == update_pb2.UPDATE_STATE_PENDING


def test_wait_outlives_a_restart_of_the_server(plane: Client, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    plane.set("my-run", learning_rate=1e-5)
    server.fail("WaitUpdate", *[unavailable()] * 5)  # more than the tries of a single call
    settle = threading.Timer(
        0.1,
        server.settle,
        (server.updates["jobs/my-run"][0], update_pb2.UPDATE_STATE_APPLIED),
    )
    settle.start()
    assert plane.wait_applied("my-run", 1, timeout=20).applied.step == 121
    settle.join()


def test_cancel(plane: Client, server: FakeControlPlane) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    plane.set("my-run", learning_rate=1e-5)
    assert plane.cancel_update("my-run", 1).state == update_pb2.UPDATE_STATE_CANCELLED
    with pytest.raises(FailedPreconditionError):
        plane.cancel_update("my-run", 1)
    assert plane.get_update("my-run", 1).cancelled.principal == "ops"


def test_a_repeated_update_keeps_its_request_id(plane: Client, server: FakeControlPlane) -> None:
    server.fail("UpdateParameters", unavailable(), unavailable())
    plane.set("my-run", learning_rate=1e-5)
    ids = {request.request_id for name, request in server.calls if name == "UpdateParameters"}
    assert names(server).count("UpdateParameters") == 3
    assert len(ids) == 1
    assert ids != {""}
    assert len(server.updates["jobs/my-run"]) == 1


def test_tries_are_bounded(plane: Client, server: FakeControlPlane) -> None:
    server.fail("GetJob", *[unavailable()] * 3)
    with pytest.raises(UnavailableError):
        plane.get_job("my-run")
    assert names(server) == ["GetJob"] * 3
    assert plane.get_job("my-run").name == "jobs/my-run"


def test_what_cannot_be_repeated_is_tried_once(plane: Client, server: FakeControlPlane) -> None:
    server.fail("CreateJob", unavailable())
    with pytest.raises(UnavailableError):
        plane.create_job("other")
    server.fail("DeleteJob", unavailable())
    with pytest.raises(UnavailableError):
        plane.delete_job("my-run")
    assert names(server) == ["CreateJob", "DeleteJob"]


def test_a_delay_longer_than_the_call_may_take_is_not_waited_for(
    connect: Connect, server: FakeControlPlane
) -> None:
    server.fail("GetJob", unavailable(retry_delay=30.0))
    with (
        connect(server.address, timeout=5, retry=QUICK) as plane,
        pytest.raises(UnavailableError) as caught,
    ):
        plane.get_job("my-run")
    assert caught.value.retry_delay == 30.0


def test_overload_is_retried_only_if_the_server_says_when(
    plane: Client, server: FakeControlPlane
) -> None:
    busy = StatusError(Code.RESOURCE_EXHAUSTED, "busy", reason="BUSY", retry_delay=0.001)
    server.fail("GetJob", busy)
    assert plane.get_job("my-run").name == "jobs/my-run"
    server.fail("GetJob", StatusError(Code.RESOURCE_EXHAUSTED, "too large", reason="TOO_LARGE"))
    with pytest.raises(ResourceExhaustedError):
        plane.get_job("my-run")


def test_nobody_there(connect: Connect) -> None:
    with FakeControlPlane() as fake:
        address = fake.address
    with connect(address, retry=QUICK) as plane, pytest.raises(UnavailableError) as caught:
        plane.get_job("my-run")
    assert address in str(caught.value)
    assert "refused" in str(caught.value)


def test_a_silent_server(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with connect(address, timeout=0.2) as plane:
            with pytest.raises(DeadlineExceededError, match="did not answer in time"):
                plane.get_job("my-run")
            with pytest.raises(DeadlineExceededError):
                plane.set("my-run", learning_rate=1e-5)


def test_a_unix_socket(connect: Connect, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/plane.sock"
    fake = FakeControlPlane().start(address)
    try:
        fake.add(make_job("my-run"))
        with connect(address) as plane:
            assert plane.address == address
            assert plane.get_job("my-run").method == "sft"
    finally:
        fake.stop()


def test_the_address_comes_from_argument_environment_or_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIDCOURSE_CONTROL_PLANE", "plane.example:7000")
    assert Client("127.0.0.1:1").address == "127.0.0.1:1"
    assert Client().address == "plane.example:7000"
    monkeypatch.delenv("MIDCOURSE_CONTROL_PLANE")
    assert Client().address == "127.0.0.1:50051"


@pytest.mark.parametrize(
    ("address", "words"),
    [("localhost", "no port"), ("http://localhost:50051", "write 'localhost:50051'")],
)
def test_an_address_that_is_none(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Client(address)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, InvalidArgumentError),
        (Code.NOT_FOUND, NotFoundError),
        (Code.ALREADY_EXISTS, AlreadyExistsError),
        (Code.FAILED_PRECONDITION, FailedPreconditionError),
        (Code.ABORTED, ConflictError),
        (Code.OUT_OF_RANGE, OutOfRangeError),
        (Code.PERMISSION_DENIED, PermissionDeniedError),
        (Code.UNAUTHENTICATED, UnauthenticatedError),
        (Code.RESOURCE_EXHAUSTED, ResourceExhaustedError),
        (Code.DEADLINE_EXCEEDED, DeadlineExceededError),
        (Code.INTERNAL, MidcourseError),
    ],
)
def test_exceptions_by_code(
    server: FakeControlPlane, plane: Client, code: grpc.StatusCode, kind: type[MidcourseError]
) -> None:
    server.fail("GetJob", StatusError(code, "no", reason="BECAUSE", metadata={"limit": "3"}))
    with pytest.raises(MidcourseError, match="no") as caught:
        plane.get_job("my-run")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, "BECAUSE")
    assert caught.value.metadata == {"limit": "3"}
    assert names(server) == ["GetJob"]


def test_labels_are_set_again_only_without_an_etag(server: FakeControlPlane, plane: Client) -> None:
    server.fail("UpdateJob", *[unavailable()] * 4)
    with pytest.raises(UnavailableError):
        plane.label_job("my-run", {"team": "vision"}, etag="1")
    assert names(server) == ["UpdateJob"]
    with pytest.raises(UnavailableError):
        plane.label_job("my-run", {"team": "vision"})
    assert names(server) == ["UpdateJob"] * 4


def test_a_closed_client_says_so(connect: Connect, server: FakeControlPlane) -> None:
    with connect(server.address) as plane:
        other = plane.with_metadata([("authorization", "Bearer s3cret")])
        assert plane.get_job("my-run").name == "jobs/my-run"
        watch = plane.watch_jobs()
    for call in (plane.get_job, other.get_job):
        with pytest.raises(MidcourseError, match="control plane is closed") as caught:
            call("my-run")
        assert caught.value.code is Code.CANCELLED
    with pytest.raises(MidcourseError, match="control plane is closed"):
        next(watch)


# Watching


def kinds(events: list[control_pb2.WatchJobsResponse]) -> list[str]:
    return [
        control_pb2.JobEventType.Name(event.type).removeprefix("JOB_EVENT_TYPE_")
        for event in events
    ]


def test_watch_goes_on_by_itself(plane: Client, server: FakeControlPlane) -> None:
    job = server.jobs["jobs/my-run"]
    with plane.watch_jobs(progress_interval=0.1) as watch:
        events = [next(watch), next(watch)]
        server.publish(control_pb2.JOB_EVENT_TYPE_MODIFIED, job)
        events.append(next(watch))
        server.break_watches(unavailable())
        server.publish(control_pb2.JOB_EVENT_TYPE_PROGRESS, job)
        events.append(next(watch))
        slow = StatusError(
            Code.RESOURCE_EXHAUSTED, "read faster", reason="WATCHER_TOO_SLOW", retry_delay=0.001
        )
        server.break_watches(slow)
        server.publish(control_pb2.JOB_EVENT_TYPE_PROGRESS, job)
        events.append(next(watch))
        server.break_watches(None)  # a plain end is no end of the watch either
        server.publish(control_pb2.JOB_EVENT_TYPE_MODIFIED, job)
        events.append(next(watch))
        assert watch.interruption is None
        assert watch.position == "4"
    changed = ["MODIFIED", "PROGRESS", "PROGRESS", "MODIFIED"]
    assert kinds(events) == ["SNAPSHOT", "BOOKMARK", *changed]
    positions = [request.position for name, request in server.calls if name == "WatchJobs"]
    assert positions == ["", "1", "2", "3"]


def test_watch_ends_with_the_job(plane: Client, server: FakeControlPlane) -> None:
    job = server.jobs["jobs/my-run"]
    watch = plane.watch_jobs(job="my-run")
    assert kinds([next(watch), next(watch)]) == ["SNAPSHOT", "BOOKMARK"]
    server.publish(control_pb2.JOB_EVENT_TYPE_DELETED, job)
    assert kinds(list(watch)) == ["DELETED"]


def test_watch_can_be_closed_from_another_thread(plane: Client) -> None:
    watch = plane.watch_jobs()
    next(watch)
    next(watch)
    closing = threading.Timer(0.05, watch.close)
    closing.start()
    assert list(watch) == []
    closing.join()


def test_a_client_that_is_closed_before_its_first_call(connect: Connect) -> None:
    with connect("127.0.0.1:9") as plane:
        other = plane.with_metadata([("authorization", "Bearer s3cret")])
    for call in (plane.get_job, other.get_job):
        with pytest.raises(MidcourseError, match="control plane is closed"):
            call("my-run")
    with pytest.raises(MidcourseError, match="control plane is closed"):
        next(plane.watch_jobs())


def test_closing_the_client_ends_a_watch_with_an_error(
    connect: Connect, server: FakeControlPlane
) -> None:
    """It is nobody's wish for the end of the watch: silence would say that the job is gone."""
    with connect(server.address) as plane:
        watch = plane.watch_jobs(job="my-run")
        assert kinds([next(watch), next(watch)]) == ["SNAPSHOT", "BOOKMARK"]
        closing = threading.Timer(0.05, plane.__exit__, (None, None, None))
        closing.start()
        with pytest.raises(MidcourseError) as caught:
            next(watch)
        assert caught.value.code is Code.CANCELLED
        closing.join()


def test_watch_refuses_what_it_cannot_mend(plane: Client, server: FakeControlPlane) -> None:
    gone = StatusError(Code.OUT_OF_RANGE, "position 1 is gone", reason="POSITION_GONE")
    server.fail("WatchJobs", gone)
    with pytest.raises(OutOfRangeError):
        next(plane.watch_jobs(position="1"))


def test_watch_gives_up_as_told(plane: Client, server: FakeControlPlane) -> None:
    server.fail("WatchJobs", *[unavailable()] * 3)
    with pytest.raises(UnavailableError):
        next(plane.watch_jobs())
    watch = plane.watch_jobs(patience=0.05)
    next(watch)
    next(watch)
    server.fail("WatchJobs", *[unavailable()] * 1000)
    server.break_watches(unavailable())
    with pytest.raises(UnavailableError):
        next(watch)


# On behalf of others


def test_a_client_with_metadata_sends_it_with_every_kind_of_call(
    plane: Client, server: FakeControlPlane
) -> None:
    asking = plane.with_metadata([("authorization", "Bearer s3cret")])
    asking.get_job("my-run")
    list(asking.list_jobs())
    asking.set("my-run", learning_rate=1e-5, wait=True)
    with asking.watch_jobs() as watch:
        next(watch)
    assert {name for name, _ in server.calls} == set(server.authorization)
    assert set(server.authorization.values()) == {"Bearer s3cret"}
    assert "s3cret" not in f"{asking!r}{vars(asking)!r}"


def test_closing_a_client_with_metadata_closes_nothing(
    plane: Client, server: FakeControlPlane
) -> None:
    with plane.with_metadata([("authorization", "Bearer s3cret")]) as asking:
        assert asking.address == plane.address
    assert plane.get_job("my-run").name == "jobs/my-run"
    assert server.authorization["GetJob"] is None


def test_metadata_that_grpc_would_refuse(plane: Client) -> None:
    with pytest.raises(ValueError, match="'authorization'") as caught:
        plane.with_metadata([("authorization", "s3cret\n")])
    assert "s3cret" not in str(caught.value)
