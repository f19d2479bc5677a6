"""A control plane for agents to talk to: does what a test says, and records what it is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import grpc

from grpc_runtime.errors import StatusError, to_proto, trailing_metadata
from midcourse.agent.v1 import session_pb2, session_pb2_grpc
from midcourse.control.v1 import parameter_pb2, update_pb2

Request = session_pb2.SessionRequest
Response = session_pb2.SessionResponse


def learning_rate_update(revision: int, value: float = 1e-4) -> update_pb2.Update:
    """An update that sets the learning rate."""
    change = update_pb2.Change(
        parameter="learning_rate",
        set=update_pb2.SetChange(value=parameter_pb2.Value(number=value)),
    )
    return update_pb2.Update(
        name=f"jobs/job/updates/{revision}",
        revision=revision,
        spec=update_pb2.UpdateSpec(changes=[change]),
    )


@dataclass
class Stream:
    """One session, as the server sees it."""

    number: int
    received: list[Request] = field(default_factory=list)
    to_send: asyncio.Queue[Response | StatusError | None] = field(default_factory=asyncio.Queue)
    ended: bool = False

    @property
    def hello(self) -> session_pb2.Hello:
        return self.received[0].hello

    def of(self, kind: str) -> list[Request]:
        return [each for each in self.received if each.WhichOneof("message") == kind]

    @property
    def outcomes(self) -> list[session_pb2.UpdateOutcome]:
        """How updates ended, as told by themselves or in the reply to a delivery."""
        replies = [
            each.reply.settled for each in self.of("reply") if each.reply.HasField("settled")
        ]
        return [*(each.outcome for each in self.of("outcome")), *replies]

    def send(self, **message: object) -> None:
        self.to_send.put_nowait(Response(**message))  # type: ignore[arg-type]  # one of its fields

    def deliver(self, revision: int, nonce: int, *, time_left: float | None = None) -> None:
        delivery = session_pb2.Delivery(nonce=nonce, update=learning_rate_update(revision))
        if time_left is not None:
            delivery.time_left.FromNanoseconds(int(time_left * 1e9))
        self.send(delivery=delivery)

    def fail(self, error: StatusError) -> None:
        self.to_send.put_nowait(error)

    def end(self) -> None:
        self.to_send.put_nowait(None)


@dataclass
class Script:
    """What the server does by itself."""

    welcome: session_pb2.Welcome = field(
        default_factory=lambda: session_pb2.Welcome(max_samples=1000, max_message_bytes=4194304)
    )
    heartbeat_interval: float = 0.1
    acknowledge: bool = True
    """Acknowledge every message at once."""
    refuse_hello: Callable[[session_pb2.Hello], StatusError | None] = lambda _hello: None
    on_request: Callable[[Stream, Request], None] = lambda _stream, _request: None


class ScriptedAgentService(session_pb2_grpc.AgentServiceServicer):
    """Records sessions."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.streams: list[Stream] = []
        self.target = ""
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        session_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        self.target = f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """Breaks off everything at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def restart(self) -> None:
        await self.stop()
        await self.start(int(self.target.rpartition(":")[2]))

    @property
    def stream(self) -> Stream:
        """The newest stream."""
        return self.streams[-1]

    def everything(self, kind: str) -> list[Request]:
        return [request for stream in self.streams for request in stream.of(kind)]

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Waits until a condition on what was recorded holds."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    # Conditions may also look at things that do not wake this up.
                    async with asyncio.timeout(0.02):
                        await self._changed.wait()

    async def Session(
        self,
        request_iterator: AsyncIterator[Request],
        context: grpc.aio.ServicerContext[Request, Response],
    ) -> AsyncIterator[Response]:
        stream = Stream(len(self.streams) + 1)
        reader = asyncio.create_task(self._read(stream, request_iterator))
        try:
            while (response := await stream.to_send.get()) is not None:
                if isinstance(response, StatusError):
                    status = to_proto(response, default_domain="midcourse.control")
                    context.set_trailing_metadata(trailing_metadata(status))
                    await context.abort(response.code, response.message)
                else:
                    yield response
        finally:
            stream.ended = True
            self._changed.set()
            reader.cancel()

    async def _read(self, stream: Stream, requests: AsyncIterator[Request]) -> None:
        async for request in requests:
            first = not stream.received
            stream.received.append(request)
            if first:
                self.streams.append(stream)
                error = self.script.refuse_hello(request.hello)
                if error is not None:
                    stream.fail(error)
                    continue
                welcome = session_pb2.Welcome()
                welcome.CopyFrom(self.script.welcome)
                welcome.epoch = stream.number
                welcome.heartbeat_interval.FromNanoseconds(
                    int(self.script.heartbeat_interval * 1e9)
                )
                stream.send(welcome=welcome)
            if self.script.acknowledge:
                stream.send(acknowledgement=session_pb2.Acknowledgement(sequence=request.sequence))
            self.script.on_request(stream, request)
            self._changed.set()
            if request.HasField("goodbye"):
                stream.end()
        stream.end()
