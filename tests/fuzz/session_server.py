"""An agent that says anything, to a real control plane."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from grpc_runtime.errors import StatusError, from_rpc_error
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import control_pb2
from tests.fuzz.exploring import BOUND_SECONDS, Fuzzer
from tests.fuzz.material import Draw, altered, any_of, chance, noise, pick, spoiled
from tests.fuzz.stored import stored_in
from tests.support.any_request import LEAKS, OUR_FAULT, integers
from tests.support.plane import RunningPlane, running_plane
from tests.support.scripted_agent import applied, hello

SESSION = "/midcourse.agent.v1.AgentService/Session"
LONGEST = 8


class Stream:
    """A session as bytes. Numbers the messages unless told otherwise.

    Attributes:
        received: What the server said.
        error: How the stream ended; None: in good order, or not yet.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.stream_stream(SESSION)()
        self._reading = asyncio.create_task(self._read())
        self._news = asyncio.Event()
        self.received: list[pb.SessionResponse] = []
        self.sent: list[bytes] = []
        self.error: StatusError | None = None
        self.number = 0

    @property
    def ended(self) -> bool:
        return self._reading.done()

    @property
    def welcomed(self) -> bool:
        return any(each.HasField("welcome") for each in self.received)

    def answered(self, number: int) -> bool:
        """Whether the server has said what became of a message."""
        return self.refused(number) or any(
            each.acknowledgement.sequence >= number
            for each in self.received
            if each.HasField("acknowledgement")
        )

    def refused(self, number: int) -> bool:
        """Whether a message was refused by itself."""
        return any(
            each.HasField("item_error") and each.item_error.sequence == number
            for each in self.received
        )

    async def say(self, message: pb.SessionRequest) -> int:
        """Says a message with the next number, and returns that."""
        self.number += 1
        message.sequence = self.number
        await self.say_raw(message.SerializeToString())
        return self.number

    async def say_raw(self, raw: bytes) -> None:
        """Says bytes. Once the stream has ended nobody hears them."""
        self.sent.append(raw)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(raw)

    async def until(self, done: Any, what: str) -> None:
        """Waits until something is so, or the stream has ended."""
        try:
            async with asyncio.timeout(BOUND_SECONDS):
                while not (done() or self.ended):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"no {what}; got {self.received[-5:]}") from None

    async def leave(self, *, abruptly: bool) -> None:
        """Ends the stream."""
        if abruptly:
            self._call.cancel()
        else:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.done_writing()
        await asyncio.wait([self._reading], timeout=BOUND_SECONDS)
        assert self.ended, "the stream does not end"

    async def _read(self) -> None:
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                self.received.append(pb.SessionResponse.FromString(raw))
                self._news.set()
            if await self._call.code() is not grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    await self._call.code(),
                    await self._call.initial_metadata(),
                    await self._call.trailing_metadata(),
                    await self._call.details(),
                )
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error)
        except asyncio.CancelledError:
            if not self._call.cancelled():
                raise
        finally:
            self._news.set()


class AgentFuzzer(Fuzzer):
    """Fuzzes AgentService/Session from the agent's side."""

    name = "session: agent -> server"

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        self.database: Path = self.folder / "agents.db"
        self.plane: RunningPlane = await stack.enter_async_context(running_plane(self.database))
        self.canary = await self.plane.agent("canary", instance_id="canary")

    async def converse(self, draw: Draw) -> None:
        streams: list[Stream] = []
        await self._clear()  # what was cut short before may have left something
        try:
            await self._talk(draw, streams)
        finally:
            # Also where hypothesis has had enough of this one, and says so as it draws.
            for each in streams:
                await each.leave(abruptly=each is streams[-1])
        for each in streams:
            self.said += len(each.sent)
            _proper(each)
        await self._nothing_has_suffered()

    async def _talk(self, draw: Draw, streams: list[Stream]) -> None:
        stream = await self._greet(draw, hello("fuzz"), streams)
        for _ in range(draw(st.integers(0, LONGEST))):
            if stream.ended:
                break
            action = pick(draw, *("message",) * 8, *_OTHERS)
            if action == "second":
                other = hello("fuzz", instance_id=pick(draw, "instance-1", "instance-2"))
                stream = await self._greet(draw, other, streams)
            elif stream.welcomed:
                await self._act(draw, stream, action)
                await self._settled(stream)  # what is drawn next must not depend on who is faster

    async def _greet(self, draw: Draw, greeting: pb.Hello, streams: list[Stream]) -> Stream:
        """Opens a stream with a hello that is mostly right."""
        stream = Stream(self.plane.channel)
        streams.append(stream)
        stored = stored_in(self.database)
        how = pick(draw, "well", "well", "altered", "altered", "any", "raw", "other")
        stream.number = draw(integers(64, signed=False)) if chance(draw, 6) else 0
        stream.number = min(stream.number, 2**64 - 2)
        match how:
            case "well":
                await stream.say(pb.SessionRequest(hello=greeting))
            case "altered":
                await stream.say(pb.SessionRequest(hello=altered(draw, greeting)))
            case "any":
                await stream.say(pb.SessionRequest(hello=any_of(draw, pb.Hello)))
            case "other":
                await stream.say(self._message(draw, stream))
            case _:
                raw = pb.SessionRequest(sequence=1, hello=greeting).SerializeToString()
                await stream.say_raw(spoiled(draw, raw))
        await stream.until(lambda: stream.welcomed, "answer to a hello")
        assert stream.welcomed or how != "well" or stream.error, "no answer to a good hello"
        if not stream.welcomed and stream.error is not None:
            assert stored_in(self.database) == stored, f"refused, and yet stored: {stream.sent}"
        return stream

    async def _act(self, draw: Draw, stream: Stream, action: str) -> None:
        match action:
            case "message":
                await self._say(draw, stream)
            case "gap":
                room = 2**64 - 2 - stream.number
                if room > 1000:
                    stream.number += draw(st.integers(1, 9) | st.integers(1, room - 1000))
                await self._say(draw, stream)
            case "replay":
                await stream.say_raw(stream.sent[draw(st.integers(0, 20)) % len(stream.sent)])
                await stream.until(lambda: False, "end after a number that was there before")
            case "raw":
                request = self._message(draw, stream)
                stream.number += 1
                request.sequence = stream.number
                await stream.say_raw(spoiled(draw, request.SerializeToString()))
            case "large":
                column = pb.MetricColumn(name=noise(1, 2**21).hex())
                await stream.say(pb.SessionRequest(heartbeat=pb.Heartbeat(metrics=[column])))
                await stream.until(lambda: False, "end after a message that is too large")
            case "update":
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.plane.update("fuzz", request_id=f"r{draw(st.integers(0, 3))}")
            case _:
                name = f"jobs/fuzz/updates/{draw(st.integers(1, 3))}"
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self.plane.control.CancelUpdate(
                        control_pb2.CancelUpdateRequest(name=name)
                    )

    async def _say(self, draw: Draw, stream: Stream) -> None:
        """Says something, waits for what becomes of it, and looks at the store."""
        if not await self._settled(stream):
            return
        stored = stored_in(self.database)
        number = await stream.say(self._message(draw, stream))
        if await self._settled(stream) and stream.refused(number):
            assert stored_in(self.database) == stored, (
                f"refused, and yet stored: {stream.sent[-2]!r}"
            )

    async def _settled(self, stream: Stream) -> bool:
        """Says something harmless and waits until all before it is answered."""
        if stream.number >= 2**64 - 2:
            return False
        number = await stream.say(pb.SessionRequest(heartbeat=pb.Heartbeat()))
        await stream.until(lambda: stream.answered(number), f"answer to message {number}")
        return not stream.ended

    def _message(self, draw: Draw, stream: Stream) -> pb.SessionRequest:
        how = pick(draw, "right", "altered", "altered", "any")
        if how == "any":
            return any_of(draw, pb.SessionRequest)
        message = _plausible(draw, stream)
        return altered(draw, message) if how == "altered" else message

    async def _nothing_has_suffered(self) -> None:
        """A well-behaved agent is served, on the same job and on its own; then all is cleared."""
        stream = Stream(self.plane.channel)
        greeting = hello("fuzz", instance_id="well-behaved")
        await stream.say(pb.SessionRequest(hello=greeting))
        await stream.until(lambda: stream.welcomed, "welcome for a well-behaved agent")
        assert stream.welcomed, f"a well-behaved agent is not served: {stream.error}"
        assert await self._settled(stream), f"a well-behaved agent is cut off: {stream.error}"
        update = await self.plane.update("fuzz", request_id="well-behaved")
        await stream.until(lambda: _delivered(stream, update.revision), "delivery")
        await stream.say(pb.SessionRequest(outcome=applied(update.revision, step=30)))
        assert await self._settled(stream)
        assert (await self.plane.get_update(update.revision, "fuzz")).HasField("applied")
        await stream.leave(abruptly=False)
        await self.canary.acknowledged(await self.canary.say(heartbeat=pb.Heartbeat()))
        await self._clear()

    async def _clear(self) -> None:
        """Deletes every job but one, which says that nothing of them is open any more."""
        jobs = await self.plane.control.ListJobs(control_pb2.ListJobsRequest(page_size=1000))
        for job in jobs.jobs:
            if job.name != "jobs/canary":
                await self._delete(job.name)

    async def _delete(self, name: str) -> None:
        """Deletes a job, as soon as the server has noticed that its agent has gone."""
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                try:
                    await self.plane.control.DeleteJob(control_pb2.DeleteJobRequest(name=name))
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                        raise
                    await asyncio.sleep(0.01)
                else:
                    return


_OTHERS = ("gap", "replay", "raw", "large", "update", "update", "cancel", "second")


def _plausible(draw: Draw, stream: Stream) -> pb.SessionRequest:
    """What an agent might say at this point."""
    deliveries = [each.delivery for each in stream.received if each.HasField("delivery")]
    which = draw(st.integers(0, 3))
    given = deliveries[which % len(deliveries)] if deliveries else pb.Delivery(nonce=7)
    revision = given.update.revision or 1
    request = pb.SessionRequest()
    match pick(draw, "reply", "outcome", "heartbeat", "event", "state", "local_update", "goodbye"):
        case "reply":
            request.reply.nonce, request.reply.revision = given.nonce, revision
            match pick(draw, "received", "settled", "refused"):
                case "received":
                    request.reply.received.SetInParent()
                case "settled":
                    request.reply.settled.CopyFrom(applied(revision))
                case _:
                    request.reply.refused.reason = "NO"
        case "outcome":
            request.outcome.CopyFrom(applied(revision))
        case "heartbeat":
            beat = request.heartbeat
            beat.progress.step, beat.phase = 30, pb.TRAINER_PHASE_TRAINING
            beat.metrics.add(name="loss", steps=[29, 30], values=[1.0, 0.5], time_micros=[1, 2])
            beat.patient = draw(st.booleans())
        case "event":
            request.event.finished.step = 30
            request.event.time.seconds = 1
        case "state":
            request.state.CopyFrom(hello("fuzz").state)
            request.state.in_force.add(first=1, last=revision)
            request.state.outcomes.append(applied(revision))
        case "local_update":
            request.local_update.request_id = "guard-1"
            request.local_update.spec.action.pause.SetInParent()
        case _:
            request.goodbye.reason = "done"
    return request


def _delivered(stream: Stream, revision: int) -> bool:
    return any(
        each.HasField("delivery") and each.delivery.update.revision == revision
        for each in stream.received
    )


def _proper(stream: Stream) -> None:
    """Looks at all that the server has said."""
    numbers = {_number_of(raw) for raw in stream.sent}
    refused = [e.item_error for e in stream.received if e.HasField("item_error")]
    for each in refused:
        assert each.sequence in numbers, f"an error for a message that nobody sent: {each}"
        assert each.error.reason, each
        assert each.error.message, each
        assert not any(leak in each.error.message for leak in LEAKS), each
    assert len({each.sequence for each in refused}) == len(refused), f"refused twice: {refused}"
    acknowledged = [
        e.acknowledgement.sequence for e in stream.received if e.HasField("acknowledgement")
    ]
    assert acknowledged == sorted(set(acknowledged)), acknowledged
    nonces = [e.delivery.nonce for e in stream.received if e.HasField("delivery")]
    assert len(set(nonces)) == len(nonces), "a nonce was used twice"
    if stream.error is not None:
        told = stream.error
        assert told.code not in OUR_FAULT, (told, stream.sent)
        assert told.reason, f"{told!r} names no reason; sent {stream.sent}"
        assert not any(leak in str(told) for leak in LEAKS), told


def _number_of(raw: bytes) -> int | None:
    try:
        return pb.SessionRequest.FromString(raw).sequence
    except DecodeError:
        return None
