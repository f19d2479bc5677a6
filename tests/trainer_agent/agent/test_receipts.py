"""What an agent says of an update that it has received, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.scripted_agent_service import ScriptedAgentService
from trainer_agent.simulate import LightJobs

RECEIPT_SECONDS = "trainer_agent.agent.session.RECEIPT_SECONDS"


@pytest.fixture
async def service() -> AsyncIterator[ScriptedAgentService]:
    service = ScriptedAgentService()
    service.script.heartbeat_interval = 3600
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def test_an_update_that_ends_at_once_is_answered_once(
    service: ScriptedAgentService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RECEIPT_SECONDS, 3600.0)
    async with LightJobs(service.target, step_time=0.001) as jobs:
        stream = service.stream
        for revision in (1, 2):
            stream.deliver(revision, 10 + revision)
            await jobs[0].outcome(revision)
            await service.until(lambda r=revision: len(stream.outcomes) == r)  # type: ignore[misc]
        replies = [request.reply for request in stream.of("reply")]
        assert [(each.nonce, each.settled.revision) for each in replies] == [(11, 1), (12, 2)]
        assert stream.of("outcome") == []
        await jobs[0].until(lambda: jobs[0].everything_stored)


async def test_what_does_not_end_is_told_as_received(service: ScriptedAgentService) -> None:
    async with LightJobs(service.target, step_time=3600) as jobs:
        service.stream.deliver(1, 11)
        service.stream.deliver(2, 12)
        await service.until(lambda: len(service.stream.of("reply")) == 2)
        replies = [request.reply for request in service.stream.of("reply")]
        assert [(each.nonce, each.WhichOneof("result")) for each in replies] == [
            (11, "received"),
            (12, "received"),
        ]
        assert jobs[0].outcomes == {}


async def test_a_goodbye_does_not_wait_for_receipts(
    service: ScriptedAgentService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RECEIPT_SECONDS, 3600.0)
    async with LightJobs(service.target, step_time=3600) as jobs:
        service.stream.deliver(1, 11)
        stream = service.stream
        await service.until(lambda: len(stream.of("hello")) == 1)
        relay = jobs[0]._link.relay  # type: ignore[union-attr]  # it has begun
        async with asyncio.timeout(30):
            while relay.session is None or not relay.session._receipts:  # noqa: ASYNC110 - nobody
                await asyncio.sleep(0.01)  # tells of a receipt that is held back
        assert stream.of("reply") == []
    await service.until(lambda: bool(stream.of("goodbye")))
    kinds = [request.WhichOneof("message") for request in stream.received]
    assert "reply" in kinds
    assert kinds.index("reply") < kinds.index("goodbye")
