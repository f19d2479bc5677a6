"""The present agent with a control plane and a training process of another version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility import frozen
from tests.compatibility.frozen import Said, Wire, with_news
from tests.compatibility.parties import BOUND_SECONDS, BytesServer, LinkEnd, present_agent

_LOOK_SECONDS = 0.005
_LOOKS = int(BOUND_SECONDS / _LOOK_SECONDS)


class Server:
    """Says what was recorded of a server, each thing after what it was an answer to."""

    def __init__(self, wire: Wire, conversation: list[Said]) -> None:
        self._wire = wire
        self._script = [each for each in conversation if each.by in ("agent", "server")]
        self._streams = _by_stream(wire, self._script)
        self.heard: list[list[Any]] = []
        self.parted = asyncio.Event()

    async def serve(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        """Serves the next stream as it was recorded, and acknowledges what comes."""
        heard: list[Any] = []
        script = self._streams[min(len(self.heard), len(self._streams) - 1)]
        self.heard.append(heard)
        said: asyncio.Queue[bytes | None] = asyncio.Queue()
        listening = asyncio.create_task(self._listen(requests, heard, said))
        following = asyncio.create_task(self._follow(script, heard, said))
        try:
            while (raw := await said.get()) is not None:
                yield raw
            await following
        finally:
            listening.cancel()
            following.cancel()

    async def _listen(
        self, requests: AsyncIterator[bytes], heard: list[Any], said: asyncio.Queue[bytes | None]
    ) -> None:
        async for raw in requests:
            request: Any = self._wire.parse("agent.v1.SessionRequest", raw)
            heard.append(request)
            if request.HasField("goodbye"):
                self.parted.set()
            if len(heard) > 1:
                answer: Any = self._wire.message("agent.v1.SessionResponse")()
                answer.acknowledgement.sequence = request.sequence
                said.put_nowait(answer.SerializeToString())
        said.put_nowait(None)

    async def _follow(
        self, script: list[tuple[str, Any]], heard: list[Any], said: asyncio.Queue[bytes | None]
    ) -> None:
        for by, message in script:
            if by == "agent":
                for _ in range(_LOOKS):
                    if any(_alike(message, each) for each in heard):
                        break
                    await asyncio.sleep(_LOOK_SECONDS)
                else:
                    raise AssertionError(f"waited in vain for {message}; heard {heard}")
            elif not message.HasField("acknowledgement"):
                if self._wire is frozen.newer():
                    with_news(message)
                said.put_nowait(message.SerializeToString())


def _by_stream(wire: Wire, script: list[Said]) -> list[list[tuple[str, Any]]]:
    streams: list[list[tuple[str, Any]]] = []
    for each in script:
        name = "SessionRequest" if each.by == "agent" else "SessionResponse"
        message: Any = wire.parse(f"agent.v1.{name}", each.raw)
        if message.WhichOneof("message") == "hello":
            streams.append([])
        streams[-1].append((each.by, message))
    return streams


def _alike(recorded: Any, came: Any) -> bool:
    """Whether what came is what was recorded at that point, apart from times and numbers."""
    kind = recorded.WhichOneof("message")
    if kind == "outcome":
        told = _outcomes([came])
        return [_how(recorded.outcome)] == [_how(each) for each in told]
    if came.WhichOneof("message") != kind:
        return False
    match kind:
        case "reply":
            return bool(
                came.reply.nonce == recorded.reply.nonce
                and came.reply.revision == recorded.reply.revision
                and came.reply.WhichOneof("result")
            )
        case "local_update":
            return bool(came.local_update.request_id == recorded.local_update.request_id)
        case "event":
            return bool(came.event.WhichOneof("kind") == recorded.event.WhichOneof("kind"))
        case _:
            return True


def _outcomes(heard: Iterable[Any]) -> list[Any]:
    """How updates ended, said alone or in answer to a delivery."""
    alone = [each.outcome for each in heard if each.HasField("outcome")]
    return alone + [each.reply.settled for each in heard if each.reply.HasField("settled")]


def _how(outcome: Any) -> tuple[int, str]:
    return outcome.revision, outcome.WhichOneof("result")


class Trainer:
    """Says what was recorded of a training process."""

    def __init__(self, wire: Wire, end: LinkEnd, conversation: list[Said]) -> None:
        self._wire = wire
        self._end = end
        self._conversation = conversation
        self.heard: list[Any] = []

    async def train(self) -> None:
        """Goes through a conversation; what was heard is waited for before more is said."""
        for each in self._conversation:
            if each.by == "trainer":
                message: Any = self._wire.parse("link.v1.TrainerMessage", each.raw)
                if self._wire is frozen.newer():
                    with_news(message)
                await self._end.say(message.SerializeToString())
            else:
                await self._expect(self._wire.parse("link.v1.AgentMessage", each.raw))

    async def _expect(self, recorded: Any) -> None:
        kind = recorded.WhichOneof("message")
        while True:
            for each in self.heard:
                if each.WhichOneof("message") == kind and _same(recorded, each):
                    return
            self.heard.append(self._wire.parse("link.v1.AgentMessage", await self._end.hear()))


def _same(recorded: Any, came: Any) -> bool:
    match recorded.WhichOneof("message"):
        case "delivery":
            ours, theirs = came.delivery.update, recorded.delivery.update
            return bool(ours.revision == theirs.revision and ours.request_id == theirs.request_id)
        case "withdrawal":
            return bool(came.withdrawal.revision == recorded.withdrawal.revision)
        case "stored":
            return bool(set(came.stored.revisions) & set(recorded.stored.revisions))
        case _:
            return True


@pytest.mark.parametrize("wire", [frozen.old, frozen.newer], ids=["old", "newer"])
async def test_server_and_trainer_of_another_version_are_served(tmp_path: Path, wire: Any) -> None:
    server = Server(wire(), frozen.read(frozen.SESSION))
    async with (
        BytesServer(server.serve) as listening,
        present_agent("job", listening.address, tmp_path / "s") as address,
    ):
        end = LinkEnd(address)
        trainer = Trainer(wire(), end, frozen.read(frozen.LINK))
        await trainer.train()
        end.close()
        async with asyncio.timeout(BOUND_SECONDS):
            await server.parted.wait()
    first, second = server.heard[0], server.heard[-1]
    assert first[0].hello.protocol_version == 1
    assert first[0].hello.state.parameters[0].name == "learning_rate"
    assert second[0].hello.last_epoch > 0
    assert [each.sequence for each in first] == list(range(1, len(first) + 1))
    kinds = {each.WhichOneof("message") for heard in server.heard for each in heard}
    expected = {"hello", "reply", "heartbeat", "event", "state", "local_update", "goodbye"}
    assert kinds - {"outcome"} == expected
    outcomes = dict(_how(each) for heard in server.heard for each in _outcomes(heard))
    assert outcomes == {1: "applied", 2: "withdrawn", 3: "rejected", 4: "applied"}
