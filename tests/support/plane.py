"""A control plane that runs in the test's own event loop, behind a real port."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from control_plane.config import ServerSettings
from control_plane.server import ControlPlane
from grpc_runtime.errors import StatusError, from_rpc_error
from grpc_runtime.options import client_options
from midcourse.agent.v1 import session_pb2_grpc
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import control_pb2_grpc, update_pb2
from tests.support.scripted_agent import ScriptedAgent

FAST: dict[str, Any] = {"heartbeat_interval": 60.0, "flush_interval": 0.0, "grace": 2.0}
"""Settings that spare tests the waiting."""


class Callers:
    """A channel to a control plane, with both services on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(
            address,
            options=[*client_options(), ("grpc.use_local_subchannel_pool", 1)],
        )
        self.control: Any = control_pb2_grpc.ControlPlaneServiceStub(self.channel)
        self.agents: Any = session_pb2_grpc.AgentServiceStub(self.channel)

    async def agent(self, job: str = "j", **hello: Any) -> ScriptedAgent:
        """An agent that has been welcomed."""
        agent = ScriptedAgent(self.agents, job, **hello)
        await agent.connect()
        return agent

    async def update(self, job: str = "j", **fields: Any) -> update_pb2.Update:
        """Sends UpdateParameters; `value` or `spec`, and the fields of the request."""
        answer: pb.UpdateParametersResponse
        answer = await self.control.UpdateParameters(request(job, **fields))
        return answer.update

    async def get_job(self, job: str = "j") -> Any:
        return (await self.control.GetJob(pb.GetJobRequest(name=f"jobs/{job}"))).job

    async def get_update(self, revision: int, job: str = "j") -> update_pb2.Update:
        name = f"jobs/{job}/updates/{revision}"
        answer: pb.GetUpdateResponse
        answer = await self.control.GetUpdate(pb.GetUpdateRequest(name=name))
        return answer.update

    async def wait(self, revision: int, job: str = "j", seconds: int = 10) -> update_pb2.Update:
        asked = pb.WaitUpdateRequest(name=f"jobs/{job}/updates/{revision}")
        asked.timeout.FromSeconds(seconds)
        answer: pb.WaitUpdateResponse = await self.control.WaitUpdate(asked)
        return answer.update


class RunningPlane(Callers):
    """A control plane and a channel to it."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        super().__init__(str(plane.service.address))


@contextlib.asynccontextmanager
async def callers(address: str) -> AsyncIterator[Callers]:
    """A channel to whoever listens there."""
    to = Callers(address)
    try:
        yield to
    finally:
        await to.channel.close()


@contextlib.asynccontextmanager
async def running_plane(database: Path | str, **settings: Any) -> AsyncIterator[RunningPlane]:
    """Serves on a free port while the block runs."""
    options = {"listen": "127.0.0.1:0", **FAST, **settings}
    async with ControlPlane.open(ServerSettings(database=str(database), **options)) as plane:
        running = RunningPlane(plane)
        try:
            yield running
        finally:
            await running.channel.close()


def set_rate(value: float = 1e-5, **spec: Any) -> update_pb2.UpdateSpec:
    """What a caller asks for: the learning rate."""
    made = update_pb2.UpdateSpec(**spec)
    made.changes.add(parameter="learning_rate").set.value.number = value
    return made


def request(job: str = "j", value: float = 1e-5, **fields: Any) -> pb.UpdateParametersRequest:
    """A request for an update, by default of the learning rate."""
    fields.setdefault("spec", set_rate(value))
    return pb.UpdateParametersRequest(job=f"jobs/{job}", **fields)


async def error_of(call: Any) -> StatusError:
    """The error that a call fails with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call did not fail")
