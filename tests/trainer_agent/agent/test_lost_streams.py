"""What an agent says and does after a stream that ended by no fault of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from grpc_runtime.errors import StatusError

if TYPE_CHECKING:
    from tests.support.scripted_agent_service import ScriptedAgentService
    from tests.trainer_agent.agent.conftest import World


async def test_what_the_trainer_was_given_counts_as_held(
    world: World, service: ScriptedAgentService
) -> None:
    """Else the control plane takes it for lost, and may tell a caller that it was withdrawn."""
    trainer = await world.served_trainer()
    service.stream.deliver(1, 11)
    service.stream.deliver(2, 12)
    assert await trainer.poll_until(2) == ["delivery 1", "delivery 2"]
    await trainer.do("applied", 1, 5)
    await service.until(lambda: len(service.stream.outcomes) == 1)
    await service.restart()
    await service.until(lambda: len(service.streams) == 2)
    assert list(service.stream.hello.state.held) == [2]


async def test_a_stream_that_the_server_cancels_is_opened_again(
    world: World, service: ScriptedAgentService
) -> None:
    """As servers do with what is left at the end of their grace period, and proxies at will."""
    trainer = await world.served_trainer()
    cancelled = StatusError(grpc.StatusCode.CANCELLED, "no more time", reason="")
    service.stream.fail(cancelled)
    await service.until(lambda: len(service.streams) == 2)
    first, second = service.streams
    assert second.hello.agent_id == first.hello.agent_id, "the agent lives on"
    service.stream.deliver(1, 1)
    assert await trainer.poll_until(1) == ["delivery 1"]
