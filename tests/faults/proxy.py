"""A TCP proxy between whoever connects and a server, that does to connections what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from tests.faults.frames import MessageCounter

_READ_BYTES = 64 * 1024


class Direction(StrEnum):
    """Who speaks."""

    UP = "to the server"
    DOWN = "from the server"


class Place(StrEnum):
    """Where in a message a connection is cut."""

    BEFORE = "before"
    INSIDE = "inside"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Cut:
    """Cuts the first connection on which this message comes by.

    Attributes:
        direction: Who speaks.
        number: Of the message, from 1: of those that begin on its connection from now on.
        place: Where the last byte goes through.
        reset: By RST and not by FIN.
    """

    direction: Direction
    number: int
    place: Place
    reset: bool


@dataclass(frozen=True, slots=True)
class Trickle:
    """So few bytes at a time, and so long between two times."""

    bytes: int
    seconds: float


class _Way:
    """One direction of one connection."""

    def __init__(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link: _Link,
    ) -> None:
        self._direction = direction
        self._reader = reader
        self._writer = writer
        self._link = link
        self._counter = MessageCounter(preface=direction is Direction.UP)
        self._gone = 0
        self._since: dict[Cut, int] = {}

    async def run(self) -> None:
        """Hands on what comes, until that ends."""
        proxy = self._link.proxy
        while data := await self._reader.read(_READ_BYTES):
            await proxy.thawed.wait()
            if self._direction in proxy.silent:
                continue  # nobody hears of it, and nobody is told so
            begun = len(self._counter.messages)
            cuts = [cut for cut in proxy.cuts if cut.direction is self._direction]
            self._since = {cut: self._since.get(cut, begun) for cut in cuts}
            self._count(data)
            for cut in cuts:
                place = self._place(cut, self._gone + len(data))
                if place is not None:
                    proxy.cuts.remove(cut)
                    self._writer.write(data[: max(0, place - self._gone)])
                    await self._link.end(reset=cut.reset)
                    proxy.has_cut.set()
                    return
            await self._hand_on(data)
            self._gone += len(data)
        await proxy.thawed.wait()
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def _count(self, data: bytes) -> None:
        self._counter.feed(data)
        self._link.proxy.seen[self._direction] = max(
            self._link.proxy.seen[self._direction], len(self._counter.messages)
        )

    def _place(self, cut: Cut, end: int) -> int | None:
        """The byte at which the connection is to be cut; None: it is not there yet."""
        for message in self._counter.messages[self._since[cut] + cut.number - 1 :]:
            place = {
                Place.BEFORE: message.begin,
                Place.INSIDE: (message.begin + message.end) // 2,
                Place.AFTER: message.end,
            }[cut.place]
            return place if place <= end else None
        return None

    async def _hand_on(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            trickle = self._link.proxy.trickle
            size = len(data) - at if trickle is None else trickle.bytes
            self._writer.write(data[at : at + size])
            await self._writer.drain()
            at += size
            if trickle is not None:
                await asyncio.sleep(trickle.seconds)


class _Link:
    """A connection, and the one behind it."""

    def __init__(self, proxy: Proxy, *writers: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self._writers = writers

    async def end(self, *, reset: bool) -> None:
        """Ends it at both ends."""
        for writer in self._writers:
            with contextlib.suppress(OSError):
                if reset:
                    # What was handed on before is to arrive; it is small, and goes out at once.
                    await writer.drain()
                    raw: socket.socket = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                else:
                    writer.close()


class Proxy:
    """Listens on a port of 127.0.0.1 and hands on what comes to a server's, and back.

    Attributes:
        address: Where it listens.
        thawed: While it is not set, nothing goes through; all of it does later.
        silent: What is said in these directions is lost.
        trickle: How slowly bytes go through; None: as fast as they come.
        cuts: Where to cut a connection; what was done is taken out.
        has_cut: Whether any was done.
        seen: How many messages a single connection has carried, at most, in each direction.
    """

    def __init__(self, upstream: int) -> None:
        """Prepares to hand on to a port of 127.0.0.1."""
        self.address = ""
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.silent: frozenset[Direction] = frozenset()
        self.trickle: Trickle | None = None
        self.cuts: list[Cut] = []
        self.has_cut = asyncio.Event()
        self.seen = {Direction.UP: 0, Direction.DOWN: 0}
        self._upstream = upstream
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Listens while the block runs."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            await self.end_all(reset=True)
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def end_all(self, *, reset: bool) -> None:
        """Ends all connections, by RST or by FIN."""
        for link in list(self._links):
            await link.end(reset=reset)

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Nothing goes through while the block runs; all of it does afterwards."""
        self.thawed.clear()
        try:
            yield
        finally:
            self.thawed.set()

    @contextlib.asynccontextmanager
    async def deaf(self, *directions: Direction) -> AsyncIterator[None]:
        """What is said is lost while the block runs: connections are of no use afterwards."""
        self.silent = frozenset(directions)
        try:
            yield
        finally:
            self.silent = frozenset()
            await self.end_all(reset=True)

    @contextlib.asynccontextmanager
    async def slow(self, trickle: Trickle) -> AsyncIterator[None]:
        """Few bytes go through while the block runs."""
        self.trickle = trickle
        try:
            yield
        finally:
            self.trickle = None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, writer, behind[1])
        self._links.add(link)
        ways = (
            _Way(Direction.UP, reader, behind[1], link),
            _Way(Direction.DOWN, behind[0], writer, link),
        )
        try:
            async with asyncio.TaskGroup() as group:
                for way in ways:
                    group.create_task(_quietly(way))
        finally:
            self._links.discard(link)
            writer.close()
            behind[1].close()


async def _quietly(way: _Way) -> None:
    """An end that is gone is what this is about."""
    with contextlib.suppress(OSError):
        await way.run()
