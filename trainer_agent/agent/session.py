"""One stream to the control plane: the hello, then one writer and one reader."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc

from grpc_runtime.errors import StatusError, from_rpc_error
from grpc_runtime.logging import get_logger
from midcourse.agent.v1 import session_pb2, session_pb2_grpc
from trainer_agent.agent.deliveries import MALFORMED_DELIVERY, MAX_UPDATE_BYTES, Deliveries

if TYPE_CHECKING:
    from grpc_runtime.client.metadata import Metadata
    from trainer_agent.agent.ledger import AgentIdentity, Ledger

_log = get_logger(__name__)

TOO_MANY_PENDING: Final = "TOO_MANY_PENDING"
"""Reason of the error that asks to send a message again later."""

_WELCOME_TIMEOUT: Final = 20.0
_DEFAULT_INTERVAL: Final = 1.0
_SHORTEST_INTERVAL: Final = 0.05
# Of so many heartbeats in their turn one is to be acknowledged at once. That takes either side as
# long as the heartbeat did, and all that hangs on it is what is kept until then.
_ACKNOWLEDGED_EVERY: Final = 5
# After the last message was written: for the server to take it and to end the stream.
_ENDING_TIMEOUT: Final = 2.0
_DEFAULT_GO_AWAY_DELAY: Final = 1.0

RECEIPT_SECONDS: Final = 0.05
"""An update that ends within so long of its receipt is answered once, by how it ended."""

_Call = Any  # grpc.aio.StreamStreamCall; its stubs do not know that read() may return EOF

MALFORMED_RESPONSE: Final = "MALFORMED_RESPONSE"
"""Reason of the error that ends a stream on which something came that is no message."""


async def _next(call: _Call) -> session_pb2.SessionResponse | None:
    """Returns what the server says next; None: it has said all.

    Raises:
        StatusError: It is no message.
    """
    response: Any = await call.read()
    if response is grpc.aio.EOF:
        return None
    if not isinstance(response, session_pb2.SessionResponse):  # grpc gives None for what it is not
        raise StatusError(
            grpc.StatusCode.INTERNAL,
            "the control plane sent something that is no message of the session",
            reason=MALFORMED_RESPONSE,
        )
    return response


class SessionEvents(Protocol):
    """What a session tells the agent; called on the event loop."""

    def welcomed(self, welcome: session_pb2.Welcome) -> None:
        """The control plane serves this agent."""

    def outcomes_stored(self, revisions: Sequence[int]) -> None:
        """The control plane has these outcomes on disk."""

    def acknowledged(self) -> None:
        """The control plane has more on disk than before."""

    def updates_arrived(self) -> None:
        """There is something for the trainer in the deliveries."""


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended in good order.

    Attributes:
        reconnect_delay: The server went away and asked to wait so long, in seconds; None: it
            just ended the stream.
        said_goodbye: The server has had our goodbye.
    """

    reconnect_delay: float | None
    said_goodbye: bool


class Session:
    """One stream, from hello to its end."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        deliveries: Deliveries,
        identity: AgentIdentity,
        events: SessionEvents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares a stream."""
        self._ledger = ledger
        self._deliveries = deliveries
        self._identity = identity
        self._events = events
        self._clock = clock
        self._wake = asyncio.Event()
        self._replies: deque[session_pb2.DeliveryReply] = deque()
        # By revision, and when each is due; replies that say no more than "received".
        self._receipts: dict[int, tuple[float, session_pb2.DeliveryReply]] = {}
        self._receipts_due: asyncio.TimerHandle | None = None
        self._sequence = 0
        self._interval = _DEFAULT_INTERVAL
        self._next_heartbeat = 0.0
        self._patient_heartbeats = -1  # so that the first is acknowledged at once
        self._in_a_hurry = False
        self._state_requested = False
        self._draining = False
        self._goodbye: str | None = None
        self._said_goodbye = False
        self._reconnect_delay: float | None = None

    def wake(self) -> None:
        """Sends at once what is urgent."""
        self._wake.set()

    def reply(self, replies: Sequence[session_pb2.DeliveryReply]) -> None:
        """Sends replies; those that tell of no end yet may wait for it for a moment."""
        for each in replies:
            if each.HasField("received"):
                if (older := self._receipts.pop(each.revision, None)) is not None:
                    self._replies.append(older[1])
                self._receipts[each.revision] = (self._clock() + RECEIPT_SECONDS, each)
            else:
                self._replies.append(each)
        if self._replies or self._draining:
            self._wake.set()
        self._await_receipts()

    def drain(self) -> None:
        """Sends every sample from now on without waiting for the next heartbeat.

        What is sent and not acknowledged is asked for.
        """
        self._draining = self._in_a_hurry = True
        self._wake.set()

    def say_goodbye(self, reason: str) -> None:
        """Sends what is left, then a goodbye, and ends the stream."""
        self._goodbye = reason
        self.drain()

    async def run(
        self, stub: session_pb2_grpc.AgentServiceAsyncStub, metadata: Metadata = ()
    ) -> StreamEnd:
        """Opens the stream and serves it until it ends.

        Args:
            stub: Of the control plane.
            metadata: What goes along, such as a token.

        Raises:
            StatusError: The control plane, or the way there, failed or refused.
        """
        call: _Call = stub.Session(metadata=metadata)
        try:
            await self._open(call)
            reader = asyncio.create_task(self._read(call))
            writer = asyncio.create_task(self._write(call))
            try:
                await self._until_ended(reader, writer)
            finally:
                if self._receipts_due is not None:
                    self._receipts_due.cancel()
                for task in (reader, writer):
                    task.cancel()
                await asyncio.gather(reader, writer, return_exceptions=True)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()
        return StreamEnd(self._reconnect_delay, self._said_goodbye)

    async def _open(self, call: _Call) -> None:
        self._deliveries.begin_stream()
        hello = self._ledger.begin_stream(self._identity)
        self._tell_held(hello.state)
        self._sequence = 1
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT):
                await call.write(session_pb2.SessionRequest(sequence=1, hello=hello))
                response = await _next(call)
        except TimeoutError:
            raise StatusError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no answer from the control plane within {_WELCOME_TIMEOUT:.0f} s",
                reason="",
            ) from None
        if response is None or not response.HasField("welcome"):
            raise StatusError(
                grpc.StatusCode.UNAVAILABLE, "the control plane did not answer the hello", reason=""
            )
        welcome = response.welcome
        interval = welcome.heartbeat_interval.ToNanoseconds() / 1e9
        self._interval = max(interval, _SHORTEST_INTERVAL) if interval else _DEFAULT_INTERVAL
        self._next_heartbeat = self._clock()
        stored = self._ledger.welcome(welcome)
        self._events.welcomed(welcome)
        self._events.outcomes_stored(stored)
        self._events.updates_arrived()

    async def _until_ended(self, reader: asyncio.Task[None], writer: asyncio.Task[None]) -> None:
        await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        if not reader.done():
            # All is written, or writing failed: in both cases the server has the last word.
            await asyncio.wait({reader}, timeout=_ENDING_TIMEOUT)
        if reader.done():
            reader.result()
        if writer.done():
            writer.result()

    # -------------------------------------------------------------------------------- writing

    async def _write(self, call: _Call) -> None:
        try:
            while True:
                self._wake.clear()
                while (request := self._next_request()) is not None:
                    await call.write(request)
                if self._said_goodbye or self._reconnect_delay is not None:
                    await call.done_writing()
                    return
                try:
                    async with asyncio.timeout(max(self._next_heartbeat - self._clock(), 0)):
                        await self._wake.wait()
                except TimeoutError:
                    pass  # a heartbeat is due
        except asyncio.InvalidStateError:
            return  # the stream has ended; the reader knows why

    def _next_request(self) -> session_pb2.SessionRequest | None:
        """Returns what to write next, commands before state; None: nothing is due."""
        sequence = self._sequence + 1
        request = session_pb2.SessionRequest(sequence=sequence)
        ledger = self._ledger
        if self._said_goodbye:
            return None
        if self._replies:
            request.reply.CopyFrom(self._replies.popleft())
        elif self._state_requested or ledger.offers_anew:
            self._state_requested = False
            request.state.CopyFrom(ledger.full_state(sequence))
            self._tell_held(request.state)
        elif (outcome := ledger.next_outcome(sequence)) is not None:
            _, receipt = self._receipts.pop(outcome.revision, (0.0, None))
            if receipt is not None:
                receipt.settled.CopyFrom(outcome)
                request.reply.CopyFrom(receipt)
            else:
                request.outcome.CopyFrom(outcome)
        elif (receipt := self._next_receipt()) is not None:
            request.reply.CopyFrom(receipt)
        elif (local := ledger.next_local_update(sequence)) is not None:
            request.local_update.CopyFrom(local)
        elif (event := ledger.next_event(sequence)) is not None:
            request.event.CopyFrom(event)
        elif self._heartbeat_due():
            now = self._clock()
            self._next_heartbeat = now + self._interval
            patient = self._may_wait()
            request.heartbeat.CopyFrom(ledger.heartbeat(sequence, now))
            request.heartbeat.patient = patient
        elif self._goodbye is not None:
            self._said_goodbye = True
            request.goodbye.reason = self._goodbye
        else:
            return None
        self._sequence = sequence
        return request

    def _next_receipt(self) -> session_pb2.DeliveryReply | None:
        """Returns the oldest reply that has waited long enough; None: there is none."""
        revision, (due, receipt) = next(iter(self._receipts.items()), (0, (0.0, None)))
        if receipt is None or (due > self._clock() and not self._draining):
            self._await_receipts()
            return None
        del self._receipts[revision]
        return receipt

    def _await_receipts(self) -> None:
        """Has the writer look again once the oldest receipt is due."""
        if self._receipts and self._receipts_due is None:
            due, _ = next(iter(self._receipts.values()))
            wait = max(0.0, due - self._clock())
            self._receipts_due = asyncio.get_running_loop().call_later(wait, self._look_again)

    def _look_again(self) -> None:
        self._receipts_due = None
        self._wake.set()

    def _tell_held(self, state: session_pb2.FullState) -> None:
        """Adds what the trainer has, or will get, and has said nothing of yet.

        Without it the control plane would take these updates for lost on the way.
        """
        state.held[:] = sorted({*state.held, *self._deliveries.held()})

    def _heartbeat_due(self) -> bool:
        ledger = self._ledger
        return (
            ledger.urgent
            or self._clock() >= self._next_heartbeat
            or ledger.has_full_heartbeat
            or (self._draining and ledger.has_samples)
            or (self._in_a_hurry and not ledger.owes_nothing)
        )

    def _may_wait(self) -> bool:
        """Tells whether the heartbeat that is due now need not be acknowledged by itself."""
        if self._ledger.urgent or self._draining or self._ledger.has_full_heartbeat:
            self._patient_heartbeats = 0
        else:
            self._patient_heartbeats = (self._patient_heartbeats + 1) % _ACKNOWLEDGED_EVERY
        self._in_a_hurry = False
        return self._patient_heartbeats > 0

    # -------------------------------------------------------------------------------- reading

    async def _read(self, call: _Call) -> None:
        while (response := await _next(call)) is not None:
            self._handle(response)

    def _handle(self, response: session_pb2.SessionResponse) -> None:
        match response.WhichOneof("message"):
            case "delivery":
                self._delivered(response.delivery)
            case "withdrawal":
                revision = response.withdrawal.revision
                if self._ledger.answer_again(revision):
                    self.wake()
                else:
                    self._deliveries.withdraw(revision)
                    self._events.updates_arrived()
            case "acknowledgement":
                stored = self._ledger.acknowledged(response.acknowledgement.sequence)
                self._events.outcomes_stored(stored)
                self._events.acknowledged()
            case "state_request":
                _log.info("state_requested", reason=response.state_request.reason)
                self._state_requested = True
                self.wake()
            case "go_away":
                delay = _DEFAULT_GO_AWAY_DELAY
                if response.go_away.HasField("reconnect_delay"):
                    delay = max(0.0, response.go_away.reconnect_delay.ToNanoseconds() / 1e9)
                _log.info("server_goes_away", reason=response.go_away.reason, delay=delay)
                self._reconnect_delay = delay
                self.drain()
            case "item_error":
                _log.warning(
                    "message_refused",
                    sequence=response.item_error.sequence,
                    reason=response.item_error.error.reason,
                    message=response.item_error.error.message,
                )
                self._ledger.refused(
                    response.item_error.sequence,
                    for_now=response.item_error.error.reason == TOO_MANY_PENDING,
                )
            case other:
                _log.warning("unexpected_message", kind=other)  # perhaps of a newer server

    def _delivered(self, delivery: session_pb2.Delivery) -> None:
        revision = delivery.update.revision
        _log.debug("delivery", revision=revision, nonce=delivery.nonce)
        self._ledger.delivered(delivery.update)
        outcome = self._ledger.outcome_of(revision)
        reply = session_pb2.DeliveryReply(nonce=delivery.nonce, revision=revision)
        if outcome is not None:
            reply.settled.CopyFrom(outcome)
            self.reply([reply])
        elif self._deliveries.deliver(delivery, time.monotonic_ns()):
            self._events.updates_arrived()
        else:
            reply.refused.reason = MALFORMED_DELIVERY
            reply.refused.message = (
                f"a delivery needs an update with a revision of at least 1 and a spec, of at most "
                f"{MAX_UPDATE_BYTES} bytes, got revision {revision}, "
                f"{'a' if delivery.update.HasField('spec') else 'no'} spec, "
                f"{delivery.update.ByteSize()} bytes"
            )
            self.reply([reply])
