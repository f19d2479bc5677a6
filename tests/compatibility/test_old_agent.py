"""An agent of the frozen version, or of a newer one, with the present control plane."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from grpc_runtime.errors import StatusError
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from tests.compatibility import frozen
from tests.compatibility.frozen import NEWS, Said, Wire, with_news
from tests.compatibility.parties import BOUND_SECONDS, METHOD
from tests.support.plane import RunningPlane, running_plane


class Agent:
    """Says what was recorded of an agent; knows its own version's messages and no others."""

    def __init__(self, plane: RunningPlane, wire: Wire) -> None:
        self._plane = plane
        self._wire = wire
        self._call: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self.heard: list[Any] = []

    async def replay(self, conversation: list[Said]) -> None:
        """Goes through a conversation: says its own part, and waits for the others' to come."""
        async with asyncio.TaskGroup() as callers:
            for each in conversation:
                if each.by == "agent":
                    await self._say(self._read("agent.v1.SessionRequest", each.raw))
                elif each.by == "server":
                    await self._expect(self._wire.parse("agent.v1.SessionResponse", each.raw))
                else:
                    asking = callers.create_task(
                        self._ask(each.by.removeprefix("caller "), each.raw)
                    )
                    if "Cancel" not in each.by:  # that waits for what the agent says
                        await asking
            await self._leave()

    async def until(self, kind: str, revision: int = 0) -> Any:
        """Waits for a message of the server: of a kind, and of a revision if one is named."""
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                for each in self.heard:
                    if each.WhichOneof("message") == kind and revision in (0, _revision(each)):
                        return each
                assert self._reading is not None
                assert not self._reading.done(), f"the stream ended without {kind}"
                self._news.clear()
                await self._news.wait()

    def _read(self, name: str, raw: bytes) -> Any:
        message = self._wire.parse(name, raw)
        if self._wire is frozen.newer():
            with_news(message)
        return message

    async def _say(self, request: Any) -> None:
        kind = request.WhichOneof("message")
        if kind == "hello":
            await self._leave()
            self.heard = []
            self._call = self._plane.channel.stream_stream(METHOD)()
            self._reading = asyncio.create_task(self._listen(self._call))
        elif kind == "reply":
            # Nonces die with their stream, so this one's are others than were recorded.
            request.reply.nonce = (
                await self.until("delivery", request.reply.revision)
            ).delivery.nonce
        await self._call.write(request.SerializeToString())
        if kind == "hello":
            await self.until("welcome")

    async def _expect(self, response: Any) -> None:
        match response.WhichOneof("message"):
            case "delivery":
                came = await self.until("delivery", response.delivery.update.revision)
                assert came.delivery.update.spec == response.delivery.update.spec
            case "withdrawal" | "welcome" | "state_request" as kind:
                await self.until(kind, _revision(response))
            case _:
                pass  # acknowledgements come as they come, and nobody goes away here

    async def _ask(self, method: str, raw: bytes) -> None:
        asks, gives = self._wire.method(method)
        request = asks.FromString(raw)
        if self._wire is frozen.newer():
            with_news(request)
        stub: Any = self._plane.channel.unary_unary(f"/midcourse.{method}")
        answer = gives.FromString(await stub(request.SerializeToString()))
        assert answer.update.name.startswith("jobs/job/updates/")

    async def _leave(self) -> None:
        if self._call is not None and self._reading is not None:
            await self._call.done_writing()
            await asyncio.wait_for(self._reading, BOUND_SECONDS)

    async def _listen(self, call: Any) -> None:
        while (raw := await call.read()) is not grpc.aio.EOF:
            self.heard.append(self._wire.parse("agent.v1.SessionResponse", raw))
            self._news.set()
        assert await call.code() is grpc.StatusCode.OK, await call.details()


def _revision(response: Any) -> int:
    match response.WhichOneof("message"):
        case "delivery":
            return int(response.delivery.update.revision)
        case "withdrawal":
            return int(response.withdrawal.revision)
        case _:
            return 0


@pytest.mark.parametrize("wire", [frozen.old, frozen.newer], ids=["old", "newer"])
async def test_an_agent_of_another_version_is_served(tmp_path: Path, wire: Any) -> None:
    async with running_plane(tmp_path / "control.db") as plane:
        agent = Agent(plane, wire())
        await agent.replay(frozen.read(frozen.SESSION))
        assert [
            each.WhichOneof("message") for each in agent.heard if each.HasField("item_error")
        ] == []
        updates = [await plane.get_update(revision, "job") for revision in (1, 2, 3, 4)]
        assert [each.state for each in updates] == [
            update_pb2.UPDATE_STATE_APPLIED,
            update_pb2.UPDATE_STATE_CANCELLED,
            update_pb2.UPDATE_STATE_REJECTED,
            update_pb2.UPDATE_STATE_APPLIED,
        ]
        assert updates[0].applied.step == 2
        assert updates[3].author == "guard"
        job = await plane.get_job("job")
        assert job.state == job_pb2.JOB_STATE_FINISHED
        asked = control_pb2.QueryMetricsRequest(job="jobs/job", names=["loss"])
        (series,) = (await plane.control.QueryMetrics(asked)).series
        assert list(series.steps) == [1, 2, 3]


async def test_what_only_a_newer_agent_says_is_refused_by_itself(tmp_path: Path) -> None:
    """A kind of message that this server does not know, and a phase that it does not know."""
    async with running_plane(tmp_path / "control.db") as plane:
        agent = await plane.agent("j")
        wire = frozen.newer()
        unknown: Any = wire.message("agent.v1.SessionRequest")(sequence=2, news="what is this?")
        await agent._call.write(pb.SessionRequest.FromString(unknown.SerializeToString()))
        agent.number = 2
        error = (await agent.wait_for("item_error"))[0].item_error
        assert (error.sequence, error.error.reason) == (2, "PROTOCOL_VIOLATION")
        beat: Any = wire.message("agent.v1.Heartbeat")(phase=NEWS)
        beat.progress.step = 30
        known = pb.Heartbeat.FromString(beat.SerializeToString())
        await agent.acknowledged(await agent.say(heartbeat=known))
        assert (await plane.get_job("j")).progress.step == 30


@pytest.mark.parametrize(
    ("version", "advice"), [(0, "upgrade the agent"), (2, "upgrade this server")]
)
async def test_an_agent_of_another_protocol_is_told_what_to_upgrade(
    tmp_path: Path, version: int, advice: str
) -> None:
    async with running_plane(tmp_path / "control.db") as plane:
        with pytest.raises(StatusError) as raised:
            await plane.agent("j", protocol_version=version)
        refused = raised.value
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.reason == "PROTOCOL_VERSION_UNSUPPORTED"
        assert f"version {version}" in refused.message
        assert advice in refused.message
        assert refused.metadata == {"supported": "1", "got": str(version)}
        assert not (await plane.control.ListJobs(control_pb2.ListJobsRequest())).jobs
