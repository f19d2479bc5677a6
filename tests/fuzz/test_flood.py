"""An agent that says much and reads nothing: what the server has to say to it stays bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from control_plane.domain.errors import Reason
from control_plane.rpc.agent_servicer import _read
from control_plane.services.agent_session import AgentSession
from control_plane.services.outbox import MOST_WAITING, ItemError, Outbox
from midcourse.agent.v1 import session_pb2 as pb

FLOOD = 3 * MOST_WAITING


class Unread:
    """A session whose every message is bad, and whose answers nobody takes."""

    def __init__(self) -> None:
        self.outbox = Outbox()

    def begin(self, number: int) -> None:
        """Any number will do."""

    def bad_message(self, number: int, reason: Reason, message: str) -> None:
        self.outbox.put(ItemError(number, reason, message))


async def test_nothing_more_is_read_while_too_much_waits_to_be_sent() -> None:
    session, read = Unread(), 0

    async def flood() -> AsyncIterator[pb.SessionRequest]:
        nonlocal read
        for read in range(1, FLOOD + 1):
            yield pb.SessionRequest(sequence=read)

    given: Any = flood()
    reading = asyncio.create_task(_read(cast(AgentSession, session), given))
    for _ in range(10):
        await asyncio.sleep(0)
    assert (read, len(session.outbox)) == (MOST_WAITING, MOST_WAITING)
    while len(session.outbox):
        await session.outbox.get()
        await asyncio.sleep(0)
    await asyncio.wait_for(reading, 30)
    assert read == FLOOD
