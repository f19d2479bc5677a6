"""Scenes that every mutant of a kind shows itself in: the same each time, and good otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import psycopg

from midcourse.agent.v1 import session_pb2, session_pb2_grpc
from tests.faults.checkpoints import Checkpoints
from tests.faults.history import Recorder
from tests.faults.mutant_stage import (
    DECAY,
    HALVE,
    MUTE_SECONDS,
    SECONDS,
    Place,
    Stage,
    one_server,
    stage_at,
    two_servers,
)
from tests.faults.records import (
    Acknowledged,
    Change,
)
from tests.faults.trainers import eavesdropping
from tests.support.postgres import PostgresServer
from tests.support.processes import Process, free_port
from tests.support.use_cases import eventually
from trainer_agent.parameters import Value
from trainer_agent.parameters.user import Parameter


async def all_kinds_of_requests(place: Place, recorder: Recorder) -> None:
    """Each kind of request, one after the other, with two watchers."""
    async with one_server(place, recorder) as (stage, _):
        await stage.job("a")
        await stage.job("b")
        await stage.watch()
        await stage.watch("a")
        asked = stage.asked(HALVE)
        await stage.settled(await stage.accepted(asked))
        await stage.settled(await stage.accepted(asked))  # as when an answer was lost
        newest = await stage.update(HALVE, DECAY)
        await stage.send(stage.asked(HALVE, expected_revision=newest - 1))
        await stage.update(HALVE)
        await stage.send(stage.asked(HALVE, DECAY, jobs=("a", "b")))
        later = await stage.accepted(stage.asked(HALVE, at_step=1_000_000))
        await stage.send(stage.asked(method="cancel", request_id="", revision=later["a"]))
        await stage.quiet()


async def two_requests_for_one_job(place: Place, recorder: Recorder) -> None:
    """Two updates of one job, the second before the first is applied."""
    async with one_server(place, recorder) as (stage, _):
        await stage.job()
        await asyncio.gather(
            *(stage.accepted(stage.asked(each, at_step=1_000)) for each in (HALVE, DECAY))
        )


async def many_due_at_once(place: Place, recorder: Recorder) -> None:
    """A job finds several updates when it comes back."""
    async with one_server(place, recorder) as (stage, _):
        job = await stage.job()
        await job.kill()
        revisions = [await stage.accepted(stage.asked(HALVE)) for _ in range(6)]
        await stage.job(step_time=1.0)
        await stage.settled(revisions[-1])
        await stage.quiet()


async def delivered_twice(place: Place, recorder: Recorder) -> None:
    """The control plane sends an update that has been applied, as if it had never been answered."""
    async with one_server(place, recorder) as (stage, plane):
        await stage.job()
        revision = await stage.update(HALVE)
        await eventually(stage._at_rest, "its outcome is stored", SECONDS)
        session = plane.plane.sessions._open["a"]
        session.deliveries.send_again([await plane.plane.updates.get("a", revision)])
        await eventually(
            lambda: len(stage.told(revision)) > 1, "how it ended is told again", SECONDS
        )
        await stage.update(HALVE)
        await stage.quiet()


async def gone_back_and_killed(place: Place, recorder: Recorder) -> None:
    """A run goes back to a checkpoint, and goes on from there once more after it was killed."""
    checkpoints = Checkpoints(place.directory / "checkpoints")
    async with one_server(place, recorder) as (stage, _):
        job = await stage.job(checkpoints=checkpoints)
        await stage.update(HALVE)
        await stage.update(action="save_checkpoint")
        await stage.update(DECAY)
        back = await stage.accepted(stage.asked(HALVE, action="roll_back"))
        await eventually(lambda: job.went_back, "it goes back", SECONDS)
        await job.kill()
        left = checkpoints.take_over()
        at = Path(left.checkpoint)
        job = await stage.job(checkpoints=checkpoints, resume=at, left=left)
        await stage.settled(back)
        await eventually(stage._at_rest, "that is stored", SECONDS)
        await job.kill()
        await stage.job(checkpoints=checkpoints, resume=at)
        await stage.update(HALVE)  # what it is owed comes before
        await stage.quiet()


async def saved_before_a_step(place: Place, recorder: Recorder) -> None:
    """A job goes on from a checkpoint that was saved before a step had used a change in it."""
    checkpoints = Checkpoints(place.directory / "checkpoints")
    async with one_server(place, recorder) as (stage, _):
        job = await stage.job(checkpoints=checkpoints)
        await stage.update(DECAY)
        await stage.update(HALVE, action="save_checkpoint")
        await eventually(stage._at_rest, "that is stored", SECONDS)
        await job.kill()
        await stage.job(checkpoints=checkpoints, resume=checkpoints.newest)
        await stage.update(HALVE)
        await stage.quiet()


def _coarse(values: dict[str, Value], _step: Callable[[], int]) -> dict[str, Parameter]:
    def put(value: Value) -> None:
        values["learning_rate"] = round(cast("float", value), 3)

    return {
        "learning_rate": Parameter("learning_rate", lambda: values["learning_rate"], put, minimum=0)
    }


def _overwritten(values: dict[str, Value], step: Callable[[], int]) -> dict[str, Parameter]:
    """The rate is what was set until the next step, which puts back what was there before."""
    written: list[tuple[int, Value]] = []

    def get() -> Value:
        if written and written[-1][0] == step():
            return written[-1][1]
        return values["learning_rate"]

    rate = Parameter("learning_rate", get, lambda value: written.append((step(), value)), minimum=0)
    return {"learning_rate": rate}


async def a_script_that_rounds(place: Place, recorder: Recorder) -> None:
    """What the script makes of a value is another one."""
    async with one_server(place, recorder) as (stage, _):
        await stage.job(parameters=_coarse)
        await stage.update(Change("learning_rate", "set", 0.004))
        await stage.update(Change("learning_rate", "set", 0.0034))
        await stage.quiet()


async def a_script_that_writes_too(place: Place, recorder: Recorder) -> None:
    """Something else in the training process writes the value, at each step."""
    async with one_server(place, recorder) as (stage, _):
        await stage.job(parameters=_overwritten)
        await stage.update(Change("learning_rate", "set", 0.004))
        await stage.quiet()


def _brittle(values: dict[str, Value], _step: Callable[[], int]) -> dict[str, Parameter]:
    def put_rate(value: Value) -> None:
        values["learning_rate"] = value

    def put_decay(value: Value) -> None:
        if value == DECAY.value:
            raise OSError("the optimizer is elsewhere")
        values["weight_decay"] = value

    return {
        "learning_rate": Parameter("learning_rate", lambda: values["learning_rate"], put_rate),
        "weight_decay": Parameter("weight_decay", lambda: values["weight_decay"], put_decay),
    }


async def a_second_change_that_fails(place: Place, recorder: Recorder) -> None:
    """The second of two changes can not be made."""
    async with one_server(place, recorder) as (stage, _):
        await stage.job(parameters=_brittle)
        await stage.update(HALVE, DECAY)
        await stage.quiet()


async def an_older_session(place: Place, recorder: Recorder) -> None:
    """Somebody says Hello in the place of a job's agent, as one that was held up on its way."""
    async with one_server(place, recorder) as (stage, plane):
        await _with_an_impostor(stage, plane.address)


async def an_older_session_elsewhere(place: Place, recorder: Recorder) -> None:
    """The same, at another server."""
    async with two_servers(place, recorder) as stage:
        await _with_an_impostor(stage, stage.addresses[1])


async def _with_an_impostor(stage: Stage, to: str) -> None:
    job = await stage.job()
    await stage.update(HALVE)
    assert job.ear is not None
    hello = job.ear.hello
    async with eavesdropping(to, stage.recorder, impostor=True) as ear:
        stub = session_pb2_grpc.AgentServiceStub(cast("Any", ear))
        call: Any = stub.Session()
        await call.write(session_pb2.SessionRequest(sequence=1, hello=hello))
        await call.read()
        assert ear.epoch is not None
        await stage.update(HALVE)
        await eventually(stage._at_rest, "its outcome is acknowledged", SECONDS)
        call.cancel()
    await stage.quiet()


async def a_listener_that_is_cut(place: Place, recorder: Recorder) -> None:
    """A server's listening connection breaks, and what is written before it is back is missed."""
    async with two_servers(place, recorder) as stage:
        assert place.postgres is not None
        await stage.job()
        await stage.watch(at=1)
        await stage.update(HALVE)
        may_connect = asyncio.Event()
        connect = psycopg.AsyncConnection.connect

        async def waiting(*args: Any, **options: Any) -> Any:
            await may_connect.wait()
            return await connect(*args, **options)

        with mock.patch.object(psycopg.AsyncConnection, "connect", waiting):
            _cut_listeners(place.postgres)
            await stage.update(HALVE)
            may_connect.set()
            await eventually(lambda: _listeners(place.postgres) == 2, "both listen again", SECONDS)
        await stage.quiet(patience=MUTE_SECONDS if place.mutant else SECONDS)


_LISTENERS = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"


def _listeners(postgres: PostgresServer | None) -> int:
    assert postgres is not None
    with postgres.session() as session:
        return len(session.execute(_LISTENERS).fetchall())


def _cut_listeners(postgres: PostgresServer) -> None:
    with postgres.session() as session:
        session.execute(f"SELECT pg_terminate_backend(pid) FROM ({_LISTENERS}) AS those")


async def killed_after_an_answer(place: Place, recorder: Recorder) -> None:
    """A server is killed as soon as it has answered."""
    async with _server_to_kill(place, recorder) as (stage, kill):
        await stage.job()
        await stage.accepted(stage.asked(HALVE, at_step=1_000_000))
        await kill()


async def killed_after_an_acknowledgement(place: Place, recorder: Recorder) -> None:
    """A server is killed as soon as it has acknowledged an outcome."""
    async with _server_to_kill(place, recorder) as (stage, kill):
        job = await stage.job()
        await stage.update(HALVE)
        await eventually(lambda: job.rests, "the outcome is acknowledged", SECONDS)
        assert any(isinstance(each, Acknowledged) for each in recorder.records)
        await kill()


@contextlib.asynccontextmanager
async def _server_to_kill(
    place: Place, recorder: Recorder
) -> AsyncIterator[tuple[Stage, Callable[[], Awaitable[int]]]]:
    database, port = str(place.directory / "control.db"), free_port()
    server = Process(
        "control-plane",
        [
            *("-m", "tests.faults.mutant_server", place.mutant, "serve"),
            *(f"--listen=127.0.0.1:{port}", f"--database={database}"),
        ],
        place.directory,
    )
    try:
        async with stage_at(recorder, [f"127.0.0.1:{port}"], database) as stage:
            yield stage, lambda: asyncio.to_thread(server.kill, signal.SIGKILL)
    except BaseException:
        print(server.tail())
        raise
    finally:
        server.end()


Scene = Callable[[Place, Recorder], Awaitable[None]]

SCENES: dict[str, Scene] = {
    "answers-before-commit": killed_after_an_answer,
    "acknowledges-before-commit": killed_after_an_acknowledgement,
    "revision-without-lock": two_requests_for_one_job,
    "newest-first": many_due_at_once,
    "delivery-applied-again": delivered_twice,
    "outcome-taken-again": delivered_twice,
    "rolled-back-sent-again": gone_back_and_killed,
    "nothing-sent-again": gone_back_and_killed,
    "checkpoint-forgotten": gone_back_and_killed,
    "in-force-not-saved": saved_before_a_step,
    "no-read-back": a_script_that_rounds,
    "no-verification": a_script_that_writes_too,
    "no-undo": a_second_change_that_fails,
    "two-boundaries": all_kinds_of_requests,
    "half-a-batch": all_kinds_of_requests,
    "request-id-forgotten": all_kinds_of_requests,
    "expected-revision-ignored": all_kinds_of_requests,
    "no-fence": an_older_session,
    "position-left-out": all_kinds_of_requests,
    "position-repeated": all_kinds_of_requests,
    "no-look-after-listening": a_listener_that_is_cut,
    "notification-is-data": a_listener_that_is_cut,
}
"""By the names of the mutants that show themselves in them."""
