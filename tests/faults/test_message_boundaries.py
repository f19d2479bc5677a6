"""A session's connection is cut before, inside and after each of its messages."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from midcourse.control.v1 import control_pb2 as pb
from tests.faults.callers import Servers, state_name
from tests.faults.frames import MessageCounter
from tests.faults.history import History, Recorder, recording
from tests.faults.proxy import Cut, Direction, Place, Proxy
from tests.faults.records import Answered, Asked, Change, StoredUpdate
from tests.faults.store_reader import engine_of, stored_records
from tests.faults.trainers import RecordedJob
from tests.faults.validators import validate
from tests.support.plane import running_plane
from tests.support.use_cases import eventually
from trainer_agent.simulate import LightJobSpec

SECONDS = 60.0
MESSAGES = 8
"""In each direction: hello or welcome, deliveries, a withdrawal, what is said of them, beats."""


class Course:
    """One job whose connection is cut once, while it gets three updates."""

    def __init__(self, name: str, proxy: Proxy, servers: Servers, cut: Cut | None) -> None:
        self.name = name
        self.proxy = proxy
        self.servers = servers
        proxy.cuts += [] if cut is None else [cut]
        self.must_cut = cut is not None
        spec = LightJobSpec(
            job_id=name, control_plane=proxy.address, step_time=0.02, report_every=0.1
        )
        self.job = RecordedJob(spec, servers.recorder)

    async def run(self) -> None:
        self.job.start()
        await eventually(lambda: self.job.connected, "a session", SECONDS)
        late = await self.ask("late", Change("learning_rate", "set", 0.5), at_step=1_000_000)
        await self.ask("now", Change("weight_decay", "multiply", 0.5))
        await self.ask("soon", Change("max_grad_norm", "multiply", 2.0))
        withdraw = Asked(
            caller=self.name, call=0, to="", method="cancel", jobs=(self.name,), revision=late
        )
        # An answer may be lost, and the next one says that it is done already.
        await self.servers.send(withdraw, random.Random(self.name))
        if self.must_cut:
            async with asyncio.timeout(SECONDS):
                await self.proxy.has_cut.wait()
        assert [await self.wait(each) for each in (1, 2, 3)] == ["cancelled", "applied", "applied"]
        await eventually(lambda: self.job.connected and self.job.rests, "rest", SECONDS)
        # One that waits for its cut has had as many by then.
        await eventually(lambda: min(self.proxy.seen.values()) >= MESSAGES, "messages", SECONDS)
        assert self.job.values["weight_decay"] == 0.005
        assert self.job.values["max_grad_norm"] == 2.0
        await self.job.kill()

    async def ask(self, what: str, change: Change, at_step: int | None = None) -> int:
        answered = await self.send(
            Asked(
                caller=self.name,
                call=0,
                to="",
                method="update",
                jobs=(self.name,),
                request_id=f"{self.name}-{what}",
                changes=(change,),
                at_step=at_step,
            )
        )
        return answered.revisions[self.name]

    async def send(self, asked: Asked) -> Answered:
        answer = await self.servers.send(asked, random.Random(self.name))
        assert isinstance(answer, Answered), answer
        return answer

    async def wait(self, revision: int) -> str:
        asked = pb.WaitUpdateRequest(name=f"jobs/{self.name}/updates/{revision}")
        asked.timeout.FromSeconds(int(SECONDS))
        found = await self.servers.at(self.servers.addresses[0]).WaitUpdate(asked)
        return state_name(found.update.state)


async def have(cuts: list[Cut | None], directory: Path, recorder: Recorder) -> list[Proxy]:
    """Has all of them cut side by side, each on a connection of its own."""
    settings: dict[str, Any] = {"heartbeat_interval": 0.1, "flush_interval": 0.0}
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(running_plane(directory / "control.db", **settings))
        servers = Servers([plane.address], recorder)
        stack.push_async_callback(servers.close)
        port = int(plane.address.rpartition(":")[2])
        proxies = [await stack.enter_async_context(Proxy(port).running()) for _ in cuts]
        courses = [
            Course(f"job-{number:03d}", proxy, servers, cut)
            for number, (proxy, cut) in enumerate(zip(proxies, cuts, strict=True))
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for course in courses:
                    group.create_task(course.run())
        finally:
            await asyncio.gather(*(course.job.kill() for course in courses))
    engine = engine_of(str(directory / "control.db"))
    for record in stored_records(engine):
        recorder.add(record)
    engine.dispose()
    return proxies


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def every_cut(resets: tuple[bool, ...], places: tuple[Place, ...]) -> list[Cut | None]:
    return [
        Cut(direction, number, place, reset)
        for direction in Direction
        for number in range(1, MESSAGES + 1)
        for place in places
        for reset in resets
    ]


async def check(cuts: list[Cut | None], directory: Path) -> None:
    with recording(directory / "history.jsonl") as recorder:
        proxies = await have(cuts, directory, recorder)
    history = History(recorder.records)
    found = validate(history)
    assert not found, "\n".join(map(str, found[:10]))
    assert len(history.of(StoredUpdate)) == 3 * len(cuts)
    asked = [cut is not None for cut in cuts]
    assert [proxy.has_cut.is_set() for proxy in proxies] == asked


async def test_an_uncut_session_and_some_cut_ones(tmp_path: Path) -> None:
    await check([None, *every_cut((True,), (Place.AFTER,))[::3]], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_connections_cut_at_every_message(tmp_path: Path) -> None:
    await check(every_cut((True,), (Place.BEFORE, Place.AFTER)), tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("reset", [True, False])
async def test_connections_cut_everywhere(tmp_path: Path, *, reset: bool) -> None:
    await check(every_cut((reset,), tuple(Place)), tmp_path)


def frame(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + (1).to_bytes(4) + payload


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4) + body


@pytest.mark.parametrize(("place", "last"), [(Place.BEFORE, 2), (Place.AFTER, 3)])
async def test_a_cut_counts_from_when_it_is_set(place: Place, last: int) -> None:
    """Also on a connection that has carried more messages by then."""
    sent = [_PREFACE, *(frame(0, message(bytes([n]) * 9)) for n in range(1, 5))]
    came: list[bytes] = []
    news = asyncio.Condition()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(1_000)
            async with news:
                came.append(data)
                news.notify_all()
            if not data:
                writer.close()
                return

    async def until_there(data: bytes) -> None:
        async with news, asyncio.timeout(SECONDS):
            await news.wait_for(lambda: b"".join(came) == data)

    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0) as server,
        Proxy(server.sockets[0].getsockname()[1]).running() as proxy,
    ):
        reader, writer = await asyncio.open_connection(*proxy.address.split(":"))
        writer.write(b"".join(sent[:3]))
        await until_there(b"".join(sent[:3]))
        proxy.cuts.append(Cut(Direction.UP, 1, place, reset=False))
        writer.write(b"".join(sent[3:]))
        async with asyncio.timeout(SECONDS):
            assert await reader.read() == b""
        await until_there(b"".join(sent[: last + 1]))
        assert proxy.has_cut.is_set()
        assert not proxy.cuts
        writer.close()


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_messages_are_found_however_the_bytes_come(size: int) -> None:
    first, two, part = message(b"hello"), message(b"") + message(b"xy"), message(b"z" * 300)
    sent = _PREFACE + frame(4, b"settings") + frame(0, first) + frame(0, two)
    sent += frame(0, part[:3]) + frame(8, b"grow") + frame(0, part[3:])
    counter = MessageCounter(preface=True)
    for at in range(0, len(sent), size):
        counter.feed(sent[at : at + size])
    at = len(_PREFACE) + 9 + 8
    assert [each.number for each in counter.messages] == [1, 2, 3, 4]
    assert (counter.messages[0].begin, counter.messages[0].end) == (at, at + 9 + len(first))
    assert counter.messages[1].begin == at + 9 + len(first)
    assert counter.messages[2].begin == counter.messages[1].end
    assert counter.messages[3].end == len(sent)
