"""A fake of the providers' HTTP: OpenAI's responses and chat completions, Anthropic's messages.

In tests::

    async with fake_provider() as fake:
        call = fake.reply(text("Hel", "lo"), usage=Usage(input=7, output=2))
        fake.reply(tool_call("list_jobs", {"limit": 5}))
        fake.fail(429, headers={"retry-after": "2"}, kind="rate_limit_exceeded")
        ...  # point a provider at fake.openai_url or fake.anthropic_url
        request = await call.received()
        await call.disconnected()  # the client went away before the end

Each request is answered by the next reply in the queue, whichever protocol it speaks; with an
empty queue by `fake.default`, and where that is None with an HTTP 400 that says so. Every request
is in `fake.requests`. Waiting is always bounded.

A reply is a list of parts, told one after another, then its finish and its usage:

==========================  ====================================================================
``text(*deltas)``           text, one event a delta
``tool_call(...)``          a call of a tool; ``arguments`` as text are sent as they are
``interleaved(*calls)``     several calls, their arguments taking turns
``gate(event)``             waits for an `asyncio.Event` of the test's
``stall()``                 waits until the client has gone
``pause(seconds)``          waits that long; for processes and benchmarks, not for tests
``finish(reason)``          tells the finish reason here, to let something follow it
``cut()``                   closes the connection
``garbage()``               an event that is no JSON
``event(data, name)``       any event
``error_event(kind, ...)``  an error in the stream, which ends there
==========================  ====================================================================

`Reply(finish=None)` ends without a finish, though the HTTP response is whole. Reasons are
those of chat completions; they are translated for the others.

As a process, for tests that kill and for benchmarks (`fake_provider_process` runs it)::

    python -m tests.support.fake_provider --port 0 --deltas 50 --interval-ms 5

prints one line of JSON with its URLs and answers every request alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.fake_provider_script import (
    DEFAULT_USAGE,
    Cut,
    Failure,
    Gate,
    Part,
    Pause,
    Reply,
    Stall,
    Usage,
    cut,
    error_event,
    event,
    finish,
    garbage,
    gate,
    interleaved,
    paced,
    pause,
    stall,
    text,
    tool_call,
)
from tests.support.fake_provider_wire import http_error, is_anthropic, steps

__all__ = [
    "BOUND",
    "Call",
    "Failure",
    "FakeProvider",
    "Reply",
    "Request",
    "Usage",
    "cut",
    "error_event",
    "event",
    "fake_provider",
    "fake_provider_process",
    "finish",
    "garbage",
    "gate",
    "interleaved",
    "paced",
    "pause",
    "stall",
    "text",
    "tool_call",
]

BOUND = 10.0
"""Seconds after which waiting for something has failed."""


@dataclass
class Request:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def protocol(self) -> str:
        return "anthropic" if is_anthropic(self.path) else "openai"

    @property
    def is_disconnected(self) -> bool:
        return self._gone.is_set()

    async def disconnected(self) -> None:
        """Waits until the client has closed the connection before the end of the answer."""
        async with asyncio.timeout(BOUND):
            await self._gone.wait()

    async def answered(self) -> None:
        """Waits until the whole answer is sent."""
        async with asyncio.timeout(BOUND):
            await self._done.wait()


class Call:
    """A reply in the queue, and the request that takes it."""

    def __init__(self, answer: Reply | Failure) -> None:
        self.answer = answer
        self._request: asyncio.Future[Request] = asyncio.get_running_loop().create_future()

    def _take(self, request: Request) -> None:
        self._request.set_result(request)

    async def received(self) -> Request:
        """Waits for the request."""
        async with asyncio.timeout(BOUND):
            return await asyncio.shield(self._request)

    async def disconnected(self) -> None:
        """Waits until the client has gone before the end of the answer."""
        await (await self.received()).disconnected()


class FakeProvider:
    """The fake; see the module. Make it with `fake_provider`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.default: Reply | Failure | Callable[[Request], Reply | Failure] | None = None
        self._queue: deque[Call] = deque()
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        """The base URL for an OpenAI-compatible client."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """The base URL for an Anthropic client."""
        return self.url

    def reply(
        self,
        *parts: Part,
        usage: Usage | None = DEFAULT_USAGE,
        finish: str | None = "auto",
        model: str | None = None,
    ) -> Call:
        """Queues an answer."""
        return self._enqueue(Reply(parts, usage, finish, model))

    def fail(
        self,
        status: int,
        *,
        kind: str = "error",
        message: str = "no luck",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Call:
        """Queues an HTTP error; `kind` is its name in the body, `body` replaces all of that."""
        return self._enqueue(Failure(status, kind, message, headers or {}, body))

    def _enqueue(self, answer: Reply | Failure) -> Call:
        call = Call(answer)
        self._queue.append(call)
        return call

    @property
    def waiting(self) -> int:
        """Replies that nobody has taken."""
        return len(self._queue)

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", port, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            await connection.end()
        await self._server.wait_closed()

    def _answer(self, request: Request) -> Reply | Failure:
        self.requests.append(request)
        if self._queue:
            call = self._queue.popleft()
            call._take(request)
            return call.answer
        if self.default is None:
            return Failure(400, "unscripted", "the fake provider has no reply in its queue")
        return self.default(request) if callable(self.default) else self.default


@contextlib.asynccontextmanager
async def fake_provider() -> AsyncIterator[FakeProvider]:
    """Runs a fake on a free port of 127.0.0.1."""
    fake = FakeProvider()
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


class _Connection(asyncio.Protocol):
    """One connection: HTTP/1.1 with keep-alive, one request after another."""

    def __init__(self, fake: FakeProvider) -> None:
        self._fake = fake
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._fake._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def _next(self) -> None:
        if self._task is not None:
            return
        head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not found:
            return
        start, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._buffer = bytearray(rest[length:])
        request = Request(start.split(" ")[1], headers, json.loads(rest[:length] or b"{}"))
        self._request = request
        self._task = asyncio.ensure_future(self._serve(request))

    def eof_received(self) -> bool:
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._fake._connections.discard(self)

    def _leave(self) -> None:
        if self._request is not None:
            self._request._gone.set()
        if self._task is not None:
            self._task.cancel()

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._transport is not None:
            self._transport.abort()

    async def _serve(self, request: Request) -> None:
        assert self._transport is not None
        answer = self._fake._answer(request)
        if isinstance(answer, Failure):
            self._transport.write(http_error(answer, request.path))
        elif not await self._stream(answer, request, self._transport):
            self._request = self._task = None
            request._done.set()
            self._transport.close()
            return
        request._done.set()
        self._request = self._task = None
        self._next()

    async def _stream(self, reply: Reply, request: Request, transport: asyncio.Transport) -> bool:
        transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for step in steps(reply, request.path, request.body):
            match step:
                case bytes():
                    transport.write(b"%x\r\n%b\r\n" % (len(step), step))
                case Gate(waited):
                    await waited.wait()
                case Pause(seconds):
                    await asyncio.sleep(seconds)
                case Stall():
                    await asyncio.get_running_loop().create_future()
                case Cut():
                    return False
        transport.write(b"0\r\n\r\n")
        return True


@dataclass(frozen=True)
class FakeProcess:
    """A fake in a process of its own."""

    process: subprocess.Popen[str]
    openai_url: str
    anthropic_url: str


@contextlib.contextmanager
def fake_provider_process(*options: str) -> Iterator[FakeProcess]:
    """Runs a fake with the options of the command; ends it with SIGKILL."""
    command = [sys.executable, "-m", "tests.support.fake_provider", *options]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            urls = json.loads(process.stdout.readline())
            yield FakeProcess(process, urls["openai"], urls["anthropic"])
        finally:
            process.kill()


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A fake provider that answers all alike.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--word", default="word ", help="text of each delta")
    parser.add_argument("--deltas", type=int, default=20)
    parser.add_argument("--interval-ms", type=float, default=0.0, help="time before each delta")
    parser.add_argument("--model", help="the model that serves; by default the one asked for")
    arguments = parser.parse_args()
    fake = FakeProvider()
    fake.default = replace(
        paced(arguments.deltas, arguments.interval_ms / 1000, arguments.word),
        model=arguments.model,
    )
    await fake.start(arguments.port)
    urls = {"openai": fake.openai_url, "anthropic": fake.anthropic_url, "port": fake.port}
    print(json.dumps(urls), flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await fake.stop()


if __name__ == "__main__":
    asyncio.run(_main())
