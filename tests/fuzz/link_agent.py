"""A training process that says anything, to a real agent, over the real socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from typing import Any

from hypothesis import strategies as st

from grpc_runtime.observing import FinishedCall
from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from tests.fuzz.exploring import BOUND_SECONDS, Fuzzer
from tests.fuzz.material import Draw, altered, any_of, chance, noise, pick, spoiled
from tests.support.any_request import OUR_FAULT
from tests.support.plane import RunningPlane, running_plane
from tests.support.scripted_agent import applied
from tests.support.scripted_trainer import Book
from trainer_agent.agent.job_agent import JobAgent
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.link.address import LinkAddress, locate
from trainer_agent.link.framing import MAX_MESSAGE_BYTES, FrameDecoder, frame
from trainer_agent.link.server import AlreadyServedError

LONGEST = 10
LINGER_SECONDS = 0.3


class Process:
    """A connection to an agent, as bytes."""

    def __init__(self, address: LinkAddress) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            self._socket.connect(str(address.socket))
        except OSError:
            self._socket.close()
            raise
        self._decoder = FrameDecoder()
        self._loop = asyncio.get_running_loop()
        self.heard: list[link_pb2.AgentMessage] = []

    async def say(self, raw: bytes) -> None:
        """Sends bytes; where the agent has closed the connection nobody hears them."""
        with contextlib.suppress(OSError):
            await self._loop.sock_sendall(self._socket, raw)

    async def hear(self, kind: str) -> bool:
        """Waits for a message of a kind, all of which must be readable; False: it hung up first."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not any(each.WhichOneof("message") == kind for each in self.heard):
                try:
                    data = await self._loop.sock_recv(self._socket, 1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    return False
                self.heard += map(link_pb2.AgentMessage.FromString, self._decoder.feed(data))
        return True

    def hang_up(self) -> None:
        self._socket.close()


class AgentSideFuzzer(Fuzzer):
    """Fuzzes the local link from the trainer's side, with a real control plane behind the agent."""

    name = "link: trainer -> agent"

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        self.plane: RunningPlane = await stack.enter_async_context(
            running_plane(self.folder / "trainers.db")
        )
        self._faults: list[FinishedCall] = []
        self.plane.plane.service.observe(self._look_at)
        self._numbers = itertools.count(1)

    async def converse(self, draw: Draw) -> None:
        job = f"fuzz-{next(self._numbers)}"
        address = locate(job, self.folder / "t")
        async with self._agent(job, address) as served:
            processes = [Process(address)]
            try:
                for _ in range(draw(st.integers(0, LONGEST))):
                    await self._act(draw, job, address, processes)
                    await asyncio.sleep(0)
            finally:
                for each in processes:
                    each.hang_up()
            await self._serves_on(job, address, served)
        assert not self._faults, f"what the trainer said broke the control plane: {self._faults}"

    def _look_at(self, call: FinishedCall) -> None:
        if call.code in OUR_FAULT:
            self._faults.append(call)

    @contextlib.asynccontextmanager
    async def _agent(self, job: str, address: LinkAddress) -> Any:
        agent = JobAgent(
            job_id=job,
            control_plane=self.plane.address,
            address=address,
            identity=AgentIdentity("agent-1", "0.1.0", "gpu-01"),
            linger=LINGER_SECONDS,
        )
        serving = asyncio.create_task(agent.run())
        while not address.socket.exists() and not serving.done():  # noqa: ASYNC110 - made at once
            await asyncio.sleep(0)
        try:
            yield serving
        finally:
            agent.stop("the conversation is over")
            async with asyncio.timeout(BOUND_SECONDS):
                assert await serving in (0, 1)

    async def _act(
        self, draw: Draw, job: str, address: LinkAddress, processes: list[Process]
    ) -> None:
        self.said += 1
        process = processes[draw(st.integers(0, 3)) % len(processes)]
        match pick(draw, *("message",) * 8, "hello", "hello", "raw", "large", "part", "again"):
            case "hello":
                hello = _hello(job, pick(draw, "instance-1", "instance-1", "instance-2"))
                if chance(draw, 2):
                    hello = altered(draw, hello)
                await process.say(_framed(link_pb2.TrainerMessage(hello=hello)))
            case "message":
                await process.say(_framed(self._message(draw, job)))
            case "raw" if chance(draw, 2):
                await process.say(spoiled(draw, _framed(self._message(draw, job))))
            case "raw":
                await process.say(
                    frame(spoiled(draw, self._message(draw, job).SerializeToString()))
                )
            case "large":
                size = draw(st.sampled_from([MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES + 1, 2**32 - 1]))
                await process.say(size.to_bytes(4, "big") + noise(size, 1000))
            case "part":
                raw = _framed(self._message(draw, job))
                await process.say(raw[: draw(st.integers(1, 12))])
            case _:
                if draw(st.booleans()):
                    process.hang_up()
                with contextlib.suppress(OSError):  # it has stopped to listen
                    processes.append(Process(address))

    def _message(self, draw: Draw, job: str) -> link_pb2.TrainerMessage:
        how = pick(draw, "right", "altered", "altered", "any")
        if how == "any":
            return any_of(draw, link_pb2.TrainerMessage)
        message = _plausible(draw, job)
        return altered(draw, message) if how == "altered" else message

    async def _serves_on(self, job: str, address: LinkAddress, serving: asyncio.Task[int]) -> None:
        """The agent serves a well-behaved process, or has ended in good order for another to."""
        with contextlib.suppress(OSError):
            process = Process(address)
            try:
                for instance in ("instance-1", "instance-2"):
                    hello = link_pb2.TrainerMessage(hello=_hello(job, instance))
                    await process.say(_framed(hello))
                    if await process.hear("welcome"):
                        return
            finally:
                process.hang_up()
        async with asyncio.timeout(BOUND_SECONDS):
            assert await asyncio.shield(serving) in (0, 1)
        with contextlib.suppress(AlreadyServedError):
            async with self._agent(job, address):
                process = Process(address)
                await process.say(
                    _framed(link_pb2.TrainerMessage(hello=_hello(job, "well-behaved")))
                )
                assert await process.hear("welcome"), "a well-behaved process is not served"
                process.hang_up()


def _framed(message: link_pb2.TrainerMessage) -> bytes:
    return frame(message.SerializeToString())


def _hello(job: str, instance_id: str) -> link_pb2.TrainerHello:
    hello = Book(instance_id).hello()
    hello.protocol_version, hello.job_id, hello.pid = 1, job, 1
    return hello


def _plausible(draw: Draw, job: str) -> link_pb2.TrainerMessage:
    """What a training process might say."""
    message, step = link_pb2.TrainerMessage(), draw(st.integers(1, 20))
    match pick(draw, "step", "steps", "outcome", "state", "fault", "local", "finished", "goodbye"):
        case "step":
            message.step.step, message.step.time_nanos = step, 1
            message.step.names.append("loss")
            message.step.values.append(draw(st.floats()))
        case "steps":
            message.steps.steps.extend([step, step + 1])
            message.steps.time_nanos.extend([1, 2])
            message.steps.names.extend(["loss", "rate"])
            message.steps.values.extend([1.0, 2.0, 3.0, 4.0])
        case "outcome":
            message.outcome.CopyFrom(applied(draw(st.integers(1, 3))))
        case "state":
            message.state.CopyFrom(_hello(job, "instance-1").state)
            message.state.phase = session_pb2.TRAINER_PHASE_PAUSED
        case "fault":
            message.fault.component = "callback"
        case "local":
            message.local_update.request_id = "guard-1"
            message.local_update.spec.action.pause.SetInParent()
        case "finished":
            message.finished.step = step
        case _:
            message.goodbye.SetInParent()
    return message
