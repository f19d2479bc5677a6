"""Moments of an agent that are awkward, and reached without a process of its own."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from tests.support.scripted_agent_service import learning_rate_update
from tests.support.scripted_trainer import Book
from trainer_agent.agent import job_agent
from trainer_agent.agent.background import Background
from trainer_agent.agent.job_agent import JobAgent
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.agent.relay import Relay
from trainer_agent.link.address import locate
from trainer_agent.link.peer import PeerCredentials
from trainer_agent.link.server import TrainerConnection
from trainer_agent.link.spawn import LOG_LIMIT_BYTES

IDENTITY = AgentIdentity("agent-1", "0.1.0", "gpu-01")
NOBODY = "127.0.0.1:1"


def hello() -> link_pb2.TrainerHello:
    said = Book("instance-1").hello()
    said.protocol_version, said.job_id = 1, "job"
    return said


class Connection:
    """A trainer's end whose process can not be seen; it breaks once it was told enough.

    Args:
        relay: Whose trainer it is.
        breaks_after: Messages that it takes.
    """

    peer = PeerCredentials(uid=0, pid=None)
    is_open = True

    def __init__(self, relay: Relay | None = None, breaks_after: int = 1000) -> None:
        self._relay = relay
        self._breaks_after = breaks_after

    def attend(self) -> None:
        """Listens always."""

    def take_pidfd(self) -> None:
        """Has none."""

    def close(self) -> None:
        self.is_open = False

    def send(self, message: link_pb2.AgentMessage) -> None:
        self._breaks_after -= 1
        if self._breaks_after < 0 and self._relay is not None:
            self.is_open = False
            self._relay.trainer = None


async def test_a_connection_that_breaks_while_it_is_told_something_ends_nothing() -> None:
    relay = Relay(hello(), control_plane=NOBODY, identity=IDENTITY, background=Background())
    for revision in (1, 2, 3):
        update = learning_rate_update(revision)
        relay._deliveries.deliver(session_pb2.Delivery(nonce=revision, update=update), 0)
    relay.greet(Connection(relay, 2), link_pb2.AgentWelcome(), [], [])
    assert relay.trainer is None
    relay.detached = link_pb2.Detached(reason="X", message="x")
    relay.greet(Connection(relay, 0), link_pb2.AgentWelcome(), [], [])
    assert cast("Any", relay).trainer is None


async def test_a_trainer_that_comes_back_is_not_given_up_on(tmp_path: Path) -> None:
    agent = JobAgent(
        job_id="job",
        control_plane=NOBODY,
        address=locate("job", tmp_path),
        identity=IDENTITY,
        linger=3600,
    )
    said = link_pb2.TrainerMessage(hello=hello())
    said.hello.control_plane = NOBODY
    first, second = (cast("TrainerConnection", Connection()) for _ in range(2))
    try:
        agent.trainer_said(first, said)
        agent.trainer_lost(first)
        waits = asyncio.create_task(agent._give_up_on_trainer())
        await asyncio.sleep(0)  # it waits by now
        agent.trainer_said(second, said)
        await asyncio.wait_for(waits, 30)
        assert agent._ending is None
    finally:
        await agent._background.stop()


async def test_the_log_is_kept_bounded_while_an_agent_runs_that_its_trainer_started(
    socket_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with log.open("ab") as file:
        file.truncate(LOG_LIMIT_BYTES + 1)
        monkeypatch.setattr(job_agent, "_STDERR", file.fileno())
        monkeypatch.setattr(job_agent, "_LOOK_AT_LOG", 0.0)
        ours, theirs = socket.socketpair()
        agent = JobAgent(
            job_id="job",
            control_plane=NOBODY,
            address=locate("job", socket_dir),
            identity=IDENTITY,
            linger=0,
            trainer_fd=theirs.detach(),
        )
        runs = asyncio.create_task(agent.run())
        async with asyncio.timeout(30):
            while log.stat().st_size:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)
        ours.close()  # so that it ends, as its trainer never said hello
        assert await asyncio.wait_for(runs, 30) == 0
