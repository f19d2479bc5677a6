"""What a broken control plane may say to an agent, and did when it was fuzzed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from grpc_runtime.errors import StatusError
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.link.v1 import link_pb2
from tests.fuzz.session_agent import (
    PROPER,
    NoWait,
    WildServer,
    WillingTrainer,
    served_in_the_end,
    welcome,
)
from tests.support.scripted_agent_service import learning_rate_update
from tests.support.scripted_trainer import Book
from trainer_agent.agent.background import Background
from trainer_agent.agent.backoff import LONGEST_ADVICE_SECONDS, FullJitter
from trainer_agent.agent.deliveries import MAX_UPDATE_BYTES, Deliveries
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.agent.relay import Relay


class Agent:
    """The session code of an agent, with a trainer that applies what it is given."""

    def __init__(self, server: WildServer) -> None:
        self.server = server
        self.background = Background()
        self.trainer = WillingTrainer()
        hello = Book("instance-1").hello()
        hello.job_id = "job"
        self.relay = self.trainer.relay = Relay(
            hello,
            control_plane=f"127.0.0.1:{server.port}",
            identity=AgentIdentity("agent-1", "0.1.0", "gpu-01"),
            background=self.background,
        )
        self.relay._connector._backoff = NoWait()

    async def hears(self, *said: bytes, ending: StatusError | None = None) -> None:
        """Is served by a server that says this, and then by one that behaves."""
        self.server.scripts.append((list(said), ending))
        self.relay.greet(self.trainer, link_pb2.AgentWelcome(protocol_version=1), [], [])
        self.background.start(self.relay.converse())
        try:
            await served_in_the_end(self.server, self.relay, self.background, fuzzed=1, final=False)
        finally:
            await self.background.stop()

    def given(self, revision: int) -> list[link_pb2.LinkDelivery]:
        """What its trainer was given of an update."""
        all_given = [m.delivery for m in self.trainer.given if m.HasField("delivery")]
        return [each for each in all_given if each.update.revision == revision]


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    server = WildServer()
    await server.start()
    yield Agent(server)
    await server.stop()


WELCOME = welcome().SerializeToString()


@pytest.mark.parametrize("said", [[b"\xff"], [WELCOME, b"\xff"]], ids=["first", "later"])
async def test_what_is_no_message_ends_the_stream_and_not_the_agent(
    agent: Agent, said: list[bytes]
) -> None:
    await agent.hears(*said)
    assert agent.given(PROPER)


async def test_a_deadline_beyond_all_time_is_none(agent: Agent) -> None:
    """It does not fit into the 64 bits that it has on the local wire."""
    delivery = pb.Delivery(nonce=1, update=learning_rate_update(1))
    delivery.time_left.seconds = 2**62
    late = pb.Delivery(nonce=2, update=learning_rate_update(2))
    late.time_left.seconds = -(2**62)
    said = [pb.SessionResponse(delivery=each).SerializeToString() for each in (delivery, late)]
    await agent.hears(WELCOME, *said)
    assert not agent.given(1)[0].HasField("deadline_monotonic_nanos")
    assert agent.given(2)[0].deadline_monotonic_nanos == 0


async def test_an_update_that_is_too_large_for_the_local_wire_is_refused(agent: Agent) -> None:
    delivery = pb.Delivery(nonce=1, update=learning_rate_update(1))
    delivery.update.spec.reason = "x" * MAX_UPDATE_BYTES
    assert not Deliveries().deliver(delivery, 0)
    await agent.hears(WELCOME, pb.SessionResponse(delivery=delivery).SerializeToString())
    assert not agent.given(1)


def test_nobody_stays_away_for_years_because_it_was_told_to() -> None:
    most = FullJitter(uniform=lambda _low, high: high).next_delay(1e18)
    assert most == LONGEST_ADVICE_SECONDS * 1.5


async def test_a_server_that_asks_to_wait_for_ever_is_asked_again(agent: Agent) -> None:
    away = StatusError(grpc.StatusCode.UNAVAILABLE, "later", reason="X", retry_delay=1e9)
    async with asyncio.timeout(60):
        await agent.hears(WELCOME, ending=away)
    assert max(agent.relay._connector._backoff.delays) <= LONGEST_ADVICE_SECONDS * 1.5  # type: ignore[attr-defined]  # of NoWait
