"""The least of an agent: says over a real stream what a test tells it to, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from grpc_runtime.errors import StatusError, from_rpc_error
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import parameter_pb2, update_pb2

LEARNING_RATE = parameter_pb2.ParameterSpec(
    name="learning_rate",
    kind=parameter_pb2.PARAMETER_KIND_NUMBER,
    unit="1/step",
    bounds=parameter_pb2.Bounds(minimum=0.0, maximum=1.0),
    boundary=parameter_pb2.BOUNDARY_STEP,
    operations=[
        parameter_pb2.OPERATION_SET,
        parameter_pb2.OPERATION_PEAK,
        parameter_pb2.OPERATION_HOLD,
        parameter_pb2.OPERATION_MULTIPLY,
        parameter_pb2.OPERATION_RAMP,
        parameter_pb2.OPERATION_SCHEDULE,
        parameter_pb2.OPERATION_RELEASE,
    ],
    groups=["0", "1"],
    current_value=parameter_pb2.Value(number=2e-5),
    description="Learning rate of the next step.",
)
ACCUMULATION = parameter_pb2.ParameterSpec(
    name="gradient_accumulation_steps",
    kind=parameter_pb2.PARAMETER_KIND_INTEGER,
    bounds=parameter_pb2.Bounds(minimum=1, maximum=1024),
    boundary=parameter_pb2.BOUNDARY_ACCUMULATION,
    operations=[parameter_pb2.OPERATION_SET],
    current_value=parameter_pb2.Value(integer=4),
)


def hello(job: str = "j", **fields: Any) -> pb.Hello:
    """A training process that offers a learning rate and an accumulation."""
    given = {
        "protocol_version": 1,
        "job_id": job,
        "instance_id": "instance-1",
        "agent_id": "agent-1",
        "agent_version": "0.1.0",
        "method": "sft",
        "host": "gpu-01",
        "trainer_pid": 4242,
    }
    made = pb.Hello(**{**given, **fields})
    if not made.HasField("state"):
        made.state.parameters.extend([LEARNING_RATE, ACCUMULATION])
        made.state.phase = pb.TRAINER_PHASE_TRAINING
        made.state.progress.step = 20
    return made


def applied(revision: int, step: int = 21, instance_id: str = "instance-1") -> pb.UpdateOutcome:
    """The learning rate of an update is in force."""
    outcome = pb.UpdateOutcome(revision=revision)
    outcome.applied.step = step
    outcome.applied.instance_id = instance_id
    moved = outcome.applied.transitions.add(parameter="learning_rate")
    moved.old_value.number, moved.new_value.number = 2e-5, 1e-5
    return outcome


class ScriptedAgent:
    """One stream at a time; everything that is received is kept.

    Attributes:
        received: What the server said on the present stream.
        error: How the stream ended, where it ended with an error.
    """

    def __init__(self, stub: Any, job: str = "j", **fields: Any) -> None:
        self._stub = stub
        self.hello = hello(job, **fields)
        self.received: list[pb.SessionResponse] = []
        self.error: StatusError | None = None
        self.number = 0
        self._answered = 0
        self._over = False
        self._call: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()

    async def connect(self, metadata: Any = None) -> pb.Welcome:
        """Opens a stream and says hello.

        Args:
            metadata: To be sent along, such as a token.

        Raises:
            StatusError: The server does not serve it.
        """
        self.received, self.error, self.number = [], None, 0
        self._answered, self._over = 0, False
        self._call = self._stub.Session(metadata=metadata)
        self._reading = asyncio.create_task(self._read(self._call))
        await self.say(hello=self.hello)
        return (await self.wait_for("welcome"))[0].welcome

    async def say(self, **message: Any) -> int:
        """Sends one message and returns its number."""
        self.number += 1
        await self.say_as(self.number, **message)
        return self.number

    async def say_as(self, number: int, **message: Any) -> None:
        """Sends a message with a number of the test's choice."""
        try:
            await self._call.write(pb.SessionRequest(sequence=number, **message))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The stream has ended; how, its reader learns.
            assert self._reading is not None
            await asyncio.wait([self._reading], timeout=10)

    def of(self, kind: str) -> list[pb.SessionResponse]:
        """What was received of one kind."""
        return [each for each in self.received if each.WhichOneof("message") == kind]

    async def wait_for(self, kind: str, count: int = 1) -> list[pb.SessionResponse]:
        """Waits for messages of one kind.

        Raises:
            StatusError: The stream ended first.
        """
        await self.until(lambda: len(self.of(kind)) >= count or self._ended(), f"{count} {kind}")
        if len(self.of(kind)) < count:
            raise self.error or AssertionError(f"the stream ended without {kind}")
        return self.of(kind)

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Waits until a condition holds that only what is received can change."""
        try:
            async with asyncio.timeout(10), self._news:
                await self._news.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"waited in vain for {what}; got {self.received}") from None

    async def end(self) -> StatusError | None:
        """Waits for the end of the stream; returns the error that it ended with."""
        assert self._reading is not None
        await asyncio.wait_for(asyncio.shield(self._reading), 10)
        return self.error

    async def receive(self, count: int = 1) -> list[update_pb2.Update]:
        """Waits for so many deliveries in all; has answered them on disk when it returns."""
        deliveries = [each.delivery for each in await self.wait_for("delivery", count)]
        for each in deliveries[self._answered :]:
            await self.say(
                reply=pb.DeliveryReply(
                    nonce=each.nonce,
                    revision=each.update.revision,
                    received=pb.DeliveryReceived(),
                )
            )
        self._answered = len(deliveries)
        await self.acknowledged(self.number)
        return [each.update for each in deliveries]

    async def apply(self, revision: int, step: int = 21) -> None:
        """Reports an update as applied and waits until that is on disk."""
        number = await self.say(outcome=applied(revision, step, instance_id=self.hello.instance_id))
        await self.acknowledged(number)

    async def acknowledged(self, number: int) -> None:
        """Waits until messages up to this number are acknowledged."""
        await self.until(
            lambda: any(a.acknowledgement.sequence >= number for a in self.of("acknowledgement")),
            f"acknowledgement of {number}",
        )

    async def leave(self) -> None:
        """Breaks the stream off."""
        self._call.cancel()
        assert self._reading is not None
        await asyncio.wait([self._reading], timeout=10)

    def _ended(self) -> bool:
        return self._over

    async def _read(self, call: Any) -> None:
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                async with self._news:
                    self.received.append(response)
                    self._news.notify_all()
            if (code := await call.code()) is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    code,
                    await call.initial_metadata(),
                    await call.trailing_metadata(),
                    await call.details(),
                )
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error)
        except asyncio.CancelledError:
            if not call.cancelled():
                raise  # the test is ended; else it has cancelled the call
        finally:
            async with self._news:
                self._over = True
                self._news.notify_all()
