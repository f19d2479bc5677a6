"""The control plane as a process of its own: killed, told to stop, called by strangers."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from midcourse.agent.v1 import session_pb2 as session
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import update_pb2
from tests.support.plane import Callers, callers, request
from tests.support.processes import Process, free_port, serve
from tests.support.scripted_agent import applied
from tests.support.use_cases import eventually

GRPCURL = Path(sys.executable).parent / "grpcurl"


@pytest.fixture
async def processes() -> AsyncIterator[list[Process]]:
    """Processes that are ended after the test, whatever becomes of it."""
    started: list[Process] = []
    yield started
    for process in started:
        process.end()


async def answering(port: int, process: Process) -> Callers:
    """A channel to a server, once it answers."""
    to = Callers(f"127.0.0.1:{port}")
    try:
        await to.control.ListJobs(pb.ListJobsRequest(), wait_for_ready=True, timeout=30)
    except grpc.aio.AioRpcError:
        raise AssertionError(f"it does not serve:\n{process.tail()}") from None
    return to


async def test_an_accepted_update_survives_the_servers_death(
    tmp_path: Path, processes: list[Process]
) -> None:
    """Killed as soon as it answers: what was answered is there, and a repetition adds nothing."""
    port = free_port()
    processes.append(serve(port, tmp_path))
    first = await answering(port, processes[-1])
    agent = await first.agent()
    answered: dict[str, int] = {}

    async def submit(number: int) -> None:
        made = await first.update(request_id=f"r{number}")
        answered[made.request_id] = made.revision

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(_until_death(submit, number))
        await eventually(lambda: answered, "an answer")
        processes[-1].kill(signal.SIGKILL)
    await agent.end()
    await first.channel.close()
    processes.append(serve(port, tmp_path))
    second = await answering(port, processes[-1])
    for request_id, revision in answered.items():
        assert (await second.get_update(revision)).request_id == request_id
    # What the caller was not told of may be there too; a repetition tells.
    for number in range(60):
        made = await second.update(request_id=f"r{number}")
        assert answered.setdefault(made.request_id, made.revision) == made.revision
    assert sorted(answered.values()) == list(range(1, 61))
    await second.channel.close()


async def _until_death(submit: Any, number: int) -> None:
    try:
        await submit(number)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise


async def test_sigterm_drains_within_the_grace(tmp_path: Path, processes: list[Process]) -> None:
    port = free_port()
    processes.append(serve(port, tmp_path, grace=20))
    to = await answering(port, processes[-1])
    agent = await to.agent()
    await to.update(request_id="r")
    await agent.receive()
    processes[-1]._process.send_signal(signal.SIGTERM)
    (away,) = await agent.wait_for("go_away")
    assert away.go_away.reconnect_delay.ToMilliseconds() > 0
    await agent.acknowledged(await agent.say(outcome=applied(1)))
    await agent.say(goodbye=session.Goodbye())
    assert await agent.end() is None
    assert processes[-1].wait(15) == 0
    await to.channel.close()
    processes.append(serve(port, tmp_path))
    again = await answering(port, processes[-1])
    assert (await again.get_update(1)).state == update_pb2.UPDATE_STATE_APPLIED
    await again.channel.close()


async def test_an_agent_that_stays_does_not_hold_up_the_end(
    tmp_path: Path, processes: list[Process]
) -> None:
    port = free_port()
    processes.append(serve(port, tmp_path, grace=0.5))
    to = await answering(port, processes[-1])
    agent = await to.agent()
    processes[-1]._process.send_signal(signal.SIGTERM)
    await agent.wait_for("go_away")
    assert processes[-1].wait(15) == 0
    assert "Traceback" not in processes[-1].tail(100_000)
    await agent.end()
    await to.channel.close()


def grpcurl(*arguments: str) -> str:
    """What grpcurl prints."""
    done = subprocess.run(
        [GRPCURL, "-plaintext", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_grpcurl_needs_nothing_of_ours(tmp_path: Path, processes: list[Process]) -> None:
    port = free_port()
    processes.append(serve(port, tmp_path))
    to = await answering(port, processes[-1])
    agent = await to.agent()
    address = f"127.0.0.1:{port}"

    async def ask(*arguments: str) -> str:
        return await asyncio.to_thread(grpcurl, *arguments)

    services = (await ask(address, "list")).split()
    assert {
        "grpc.health.v1.Health",
        "midcourse.agent.v1.AgentService",
        "midcourse.control.v1.ControlPlaneService",
    } <= set(services)
    described = await ask(address, "describe", "midcourse.control.v1.UpdateParametersRequest")
    assert ".midcourse.control.v1.UpdateSpec spec" in described
    message = {
        "job": "jobs/j",
        "spec": {
            "changes": [{"parameter": "learning_rate", "set": {"value": {"number": 1e-5}}}],
            "reason": "by hand",
        },
    }
    method = "midcourse.control.v1.ControlPlaneService/UpdateParameters"
    answer = json.loads(await ask("-d", json.dumps(message), address, method))
    assert answer["update"]["name"] == "jobs/j/updates/1"
    assert answer["update"]["state"] == "UPDATE_STATE_PENDING"
    (got,) = await agent.receive()
    assert got.spec.changes[0].set.value.number == 1e-5
    await agent.apply(1, step=25)
    asked = json.dumps({"name": "jobs/j/updates/1"})
    method = "midcourse.control.v1.ControlPlaneService/WaitUpdate"
    settled = json.loads(await ask("-d", asked, address, method))
    assert settled["update"]["applied"]["step"] == "25"
    await to.channel.close()


async def test_two_servers_do_not_share_a_database(
    tmp_path: Path, processes: list[Process]
) -> None:
    port = free_port()
    processes.append(serve(port, tmp_path))
    to = await answering(port, processes[-1])
    second = Process(
        "second",
        [
            *("-m", "control_plane.cli", "serve", "--listen=127.0.0.1:0"),
            f"--database={tmp_path / 'control.db'}",
        ],
        tmp_path,
    )
    processes.append(second)
    assert second.wait(30) != 0
    assert "another control plane" in second.tail().replace("\n", " ")
    assert "Traceback" not in second.tail()
    async with callers(to.address) as still:
        assert not (await still.control.ListJobs(pb.ListJobsRequest())).jobs
        assert request().job == "jobs/j"
    await to.channel.close()
