"""A server that says anything, to the real session code of an agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from hypothesis import strategies as st

from grpc_runtime.errors import StatusError, to_proto, trailing_metadata
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.link.v1 import link_pb2
from tests.fuzz.exploring import BOUND_SECONDS, Fuzzer
from tests.fuzz.material import Draw, altered, any_of, chance, pick, spoiled
from tests.support.any_request import STRINGS
from tests.support.scripted_agent import applied
from tests.support.scripted_agent_service import learning_rate_update
from tests.support.scripted_trainer import Book
from trainer_agent.agent.background import Background
from trainer_agent.agent.backoff import FullJitter
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.agent.relay import Relay
from trainer_agent.link.framing import frame

LONGEST_WAIT = 600.0
"""No server has an agent wait longer, in seconds, before it tries again."""
LONGEST = 6
SUPERSEDED = "INSTANCE_SUPERSEDED"

_Ending = StatusError | tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]] | None


class WildServer:
    """Serves sessions as bytes: what is on its list first, then properly."""

    def __init__(self) -> None:
        self.port = 0
        self.begin()
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])

    def begin(self) -> None:
        """Forgets what was; serves properly until told otherwise."""
        self.scripts: list[tuple[list[bytes], _Ending]] = []
        self.streams: list[list[pb.SessionRequest]] = []
        self.open_end = asyncio.Event()
        self.news = asyncio.Event()

    async def start(self) -> None:
        handler: Any = grpc.stream_stream_rpc_method_handler(self._session)
        service = grpc.method_handlers_generic_handler(
            "midcourse.agent.v1.AgentService", {"Session": handler}
        )
        self._server.add_generic_rpc_handlers((service,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _session(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        heard: list[pb.SessionRequest] = []
        iterator = aiter(requests)
        heard.append(pb.SessionRequest.FromString(await anext(iterator)))
        self.streams.append(heard)
        script = self.scripts.pop(0) if self.scripts else None
        if script is None:
            async for answer in self._properly(heard, iterator):
                yield answer
            return
        said, ending = script
        reader = asyncio.create_task(self._listen(heard, iterator))
        try:
            for raw in said:
                yield raw
            if isinstance(ending, StatusError):
                context.set_trailing_metadata(trailing_metadata(to_proto(ending)))
                await context.abort(ending.code, ending.message)
            elif ending is not None:
                code, details, trailing = ending
                await context.abort(code, details, trailing)
        finally:
            reader.cancel()

    async def _listen(self, heard: list[pb.SessionRequest], requests: AsyncIterator[bytes]) -> None:
        async for raw in requests:
            heard.append(pb.SessionRequest.FromString(raw))  # noqa: PERF401 - seen as it grows

    async def _properly(
        self, heard: list[pb.SessionRequest], requests: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        welcome = pb.Welcome(epoch=10**6, max_samples=1000, max_message_bytes=4 << 20)
        welcome.heartbeat_interval.FromMilliseconds(50)
        yield pb.SessionResponse(welcome=welcome).SerializeToString()
        delivery = pb.Delivery(nonce=99, update=learning_rate_update(PROPER))
        yield pb.SessionResponse(delivery=delivery).SerializeToString()
        async for raw in requests:
            heard.append(pb.SessionRequest.FromString(raw))
            acknowledged = pb.Acknowledgement(sequence=heard[-1].sequence)
            yield pb.SessionResponse(acknowledgement=acknowledged).SerializeToString()
            self.news.set()


PROPER = 2**40
"""Revision of what the server delivers once it behaves; no fuzzed one is the same."""


class WillingTrainer:
    """Applies what it is given, and keeps it."""

    is_open = True

    def __init__(self) -> None:
        self.given: list[link_pb2.AgentMessage] = []
        self.relay: Relay | None = None

    def attend(self) -> None:
        """It always does."""

    def send(self, message: link_pb2.AgentMessage) -> None:
        raw = frame(message.SerializeToString())  # what can not go over the socket fails here
        self.given.append(link_pb2.AgentMessage.FromString(raw[4:]))
        if message.HasField("delivery"):
            outcome = applied(message.delivery.update.revision)
            asyncio.get_running_loop().call_soon(self._tell, outcome)

    def _tell(self, outcome: pb.UpdateOutcome) -> None:
        assert self.relay is not None
        self.relay.take(link_pb2.TrainerMessage(outcome=outcome))


class NoWait(FullJitter):
    """Does not wait, but keeps how long it would have."""

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def next_delay(self, advised: float | None = None) -> float:
        self.delays.append(super().next_delay(advised))
        return 0.0


class ServerFuzzer(Fuzzer):
    """Fuzzes AgentService/Session from the server's side."""

    name = "session: server -> agent"

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        self.server = WildServer()
        await self.server.start()
        stack.push_async_callback(self.server.stop)

    async def converse(self, draw: Draw) -> None:
        server = self.server
        server.begin()
        for _ in range(draw(st.integers(1, 3))):
            server.scripts.append((self._lines(draw), _ending(draw)))
        fuzzed = len(server.scripts)
        final = any(_supersedes(ending) for _, ending in server.scripts)
        background, trainer, backoff = Background(), WillingTrainer(), NoWait()
        hello = Book("instance-1").hello()
        hello.job_id = "fuzz"
        relay = Relay(
            hello,
            control_plane=f"127.0.0.1:{server.port}",
            identity=AgentIdentity("agent-1", "0.1.0", "gpu-01"),
            background=background,
        )
        trainer.relay = relay
        relay._connector._backoff = backoff
        relay.greet(trainer, link_pb2.AgentWelcome(protocol_version=1), [], [])
        background.start(relay.converse())
        try:
            await served_in_the_end(server, relay, background, fuzzed=fuzzed, final=final)
        finally:
            await background.stop()
        for heard in server.streams:
            _numbered(heard)
        assert max(backoff.delays, default=0.0) <= LONGEST_WAIT, backoff.delays
        for message in trainer.given:
            if message.HasField("delivery"):
                assert message.delivery.update.revision > 0
                assert message.delivery.update.HasField("spec")

    def _lines(self, draw: Draw) -> list[bytes]:
        lines: list[bytes] = []
        if not chance(draw, 6):
            first = altered(draw, welcome()) if chance(draw, 2) else welcome()
            lines.append(first.SerializeToString())
        for _ in range(draw(st.integers(0, LONGEST))):
            message = self._message(draw)
            raw = message.SerializeToString()
            lines.append(spoiled(draw, raw) if chance(draw, 10) else raw)
            if chance(draw, 8):
                lines.append(lines[draw(st.integers(0, len(lines) - 1))])
        self.said += len(lines)
        return lines

    def _message(self, draw: Draw) -> pb.SessionResponse:
        how = pick(draw, "right", "altered", "altered", "any")
        if how == "any":
            return any_of(draw, pb.SessionResponse)
        message = _plausible(draw)
        return altered(draw, message) if how == "altered" else message


async def served_in_the_end(
    server: WildServer, relay: Relay, background: Background, *, fuzzed: int, final: bool
) -> None:
    """Waits until a server that behaves has served an agent.

    Args:
        server: The server.
        relay: The agent.
        background: Where the agent works.
        fuzzed: How many streams the server misbehaves in before.
        final: It says that the agent is superseded, after which nobody serves it.
    """

    def done() -> bool:
        if relay.superseded:
            return True
        heard = server.streams[-1] if len(server.streams) > fuzzed else []
        return PROPER in _settled(heard)

    # What the server hears wakes nobody here: looked at now and then.
    async with asyncio.timeout(BOUND_SECONDS):
        while not await background.until(done, 0.01):
            pass
    assert not relay.superseded or final, "nobody has said that it is superseded"


def welcome() -> pb.SessionResponse:
    """A welcome as a server says it."""
    made = pb.Welcome(epoch=1, max_samples=1000, max_message_bytes=4 << 20)
    made.heartbeat_interval.FromMilliseconds(50)
    made.stall_after.FromSeconds(30)
    return pb.SessionResponse(welcome=made)


def _plausible(draw: Draw) -> pb.SessionResponse:
    """What a server might say."""
    revision, answer = draw(st.integers(1, 3)), pb.SessionResponse()
    match pick(draw, "delivery", "withdrawal", "ack", "state", "go_away", "item_error", "welcome"):
        case "delivery":
            answer.delivery.nonce = draw(st.integers(1, 5))
            answer.delivery.update.CopyFrom(learning_rate_update(revision))
            if chance(draw, 2):
                answer.delivery.time_left.seconds = 3600
        case "withdrawal":
            answer.withdrawal.revision = revision
        case "ack":
            answer.acknowledgement.sequence = draw(st.integers(0, 4))
        case "state":
            answer.state_request.reason = "missed something"
        case "go_away":
            answer.go_away.reconnect_delay.FromMilliseconds(100)
        case "item_error":
            answer.item_error.sequence = draw(st.integers(0, 4))
            answer.item_error.error.reason = pick(draw, "INVALID_ARGUMENT", "TOO_MANY_PENDING")
        case _:
            answer.CopyFrom(welcome())
    return answer


_CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
_REASONS = ["", "SESSION_FENCED", SUPERSEDED, "STORE_UNAVAILABLE", "WHAT_A_NEWER_SERVER_SAYS"]


def _ending(draw: Draw) -> _Ending:
    """How the server ends a stream."""
    match pick(draw, "plainly", "properly", "properly", "wildly"):
        case "plainly":
            return None
        case "properly":
            delay = draw(st.none() | st.sampled_from([0.0, 0.5, 60.0, 1e9]))
            reason = draw(st.sampled_from(_REASONS))
            return StatusError(
                draw(st.sampled_from(_CODES)), "no", reason=reason, retry_delay=delay
            )
        case _:
            details = draw(STRINGS)[:500]
            raw = bytes(draw(st.binary(max_size=60)))
            trailing = (("grpc-status-details-bin", raw),) if chance(draw, 2) else ()
            return draw(st.sampled_from(_CODES)), details, trailing


def _supersedes(ending: _Ending) -> bool:
    return isinstance(ending, StatusError) and ending.reason == SUPERSEDED


def _settled(heard: Iterable[pb.SessionRequest]) -> set[int]:
    return {each.outcome.revision for each in heard if each.HasField("outcome")} | {
        each.reply.revision
        for each in heard
        if each.HasField("reply") and each.reply.HasField("settled")
    }


def _numbered(heard: list[pb.SessionRequest]) -> None:
    """What an agent says is always proper, whatever it has heard."""
    assert heard[0].WhichOneof("message") == "hello"
    assert [each.sequence for each in heard] == list(range(1, len(heard) + 1))
    nonces = [each.reply.nonce for each in heard if each.HasField("reply")]
    for each in heard[1:]:
        assert each.WhichOneof("message") not in (None, "hello"), each
    assert len(nonces) <= len(heard)
