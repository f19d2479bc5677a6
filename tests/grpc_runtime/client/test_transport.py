"""Blocking and asynchronous calls alike, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from grpc_runtime.client.aio import AsyncTransport
from grpc_runtime.client.errors import (
    DeadlineExceededError,
    MidcourseError,
    NotFoundError,
    UnavailableError,
)
from grpc_runtime.client.retry import RetryPolicy
from grpc_runtime.client.target import Target
from grpc_runtime.client.transport import BaseTransport, Transport
from grpc_runtime.errors import StatusError

Code = grpc.StatusCode
TARGET = Target("echo service", "ECHO_ADDRESS", "127.0.0.1:7")
QUICK = RetryPolicy(attempts=3, initial=0.001, maximum=0.002)
SECRET = "s3cret"


@dataclass
class Listing:
    """A request and a response of a listing; JSON on the wire."""

    page_token: str = ""
    page_size: int = 0
    next_page_token: str = ""
    items: list[int] = field(default_factory=list)

    def write(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def read(cls, raw: bytes) -> Listing:
        return cls(**json.loads(raw))


class Script:
    """What the server does: fails as often as it is told, then counts pages of two to five."""

    def __init__(self) -> None:
        self.failures: list[StatusError] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.calls = 0
        self.arrived = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()

    async def list(self, request: Listing, context: grpc.aio.ServicerContext[Any, Any]) -> Listing:
        self.calls += 1
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.arrived.set()
        await self.release.wait()
        if self.failures:
            raise self.failures.pop(0)
        first = int(request.page_token or "1")
        last = min(first + 1, 5)
        return Listing(
            items=list(range(first, last + 1)), next_page_token=str(last + 1) if last < 5 else ""
        )


class Caller:
    """One kind of transport, used the same way: the blocking one from a thread."""

    def __init__(self, transport: BaseTransport) -> None:
        self.transport = transport

    @property
    def method(self) -> Any:
        assert isinstance(self.transport, Transport | AsyncTransport)
        return self.transport.channel.unary_unary(
            "/test.Echo/list",
            request_serializer=Listing.write,
            response_deserializer=Listing.read,
        )

    async def call(self, **options: Any) -> list[int]:
        if isinstance(self.transport, AsyncTransport):
            page: Listing = await self.transport.call(self.method, Listing(), **options)
            return page.items
        assert isinstance(self.transport, Transport)
        transport = self.transport
        answer = await asyncio.to_thread(lambda: transport.call(self.method, Listing(), **options))
        return list(answer.items)

    async def pages(self, at_most: int = 100) -> list[int]:
        found: list[int] = []
        if isinstance(self.transport, AsyncTransport):
            async for item in self.transport.pages(self.method, Listing(), lambda page: page.items):
                found.append(item)
                if len(found) == at_most:
                    break
            return found
        assert isinstance(self.transport, Transport)
        pages = self.transport.pages(self.method, Listing(), lambda page: page.items)

        def take() -> None:
            for item in pages:
                found.append(item)
                if len(found) == at_most:
                    break

        await asyncio.to_thread(take)
        return found

    async def close(self) -> None:
        if isinstance(self.transport, AsyncTransport):
            await self.transport.close()
        elif isinstance(self.transport, Transport):
            self.transport.close()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture(params=[Transport, AsyncTransport])
async def caller(
    request: pytest.FixtureRequest, serve: Callable[..., Any], script: Script
) -> AsyncIterator[Caller]:
    handler = grpc.unary_unary_rpc_method_handler(
        script.list, request_deserializer=Listing.read, response_serializer=Listing.write
    )
    async with serve(list=handler) as (server, _):
        transport = request.param(
            TARGET, str(server.address), timeout=5.0, retry=QUICK, credentials=None
        )
        made = Caller(transport)
        yield made
        script.release.set()
        await made.close()


def unavailable() -> StatusError:
    return StatusError(Code.UNAVAILABLE, "draining", reason="DRAINING")


async def test_a_call_is_tried_again(caller: Caller, script: Script) -> None:
    script.failures = [unavailable(), unavailable()]
    assert await caller.call() == [1, 2]
    assert script.calls == 3


async def test_tries_are_bounded(caller: Caller, script: Script) -> None:
    script.failures = [unavailable()] * 5
    with pytest.raises(UnavailableError, match="draining") as caught:
        await caller.call()
    assert script.calls == 3
    assert caught.value.reason == "DRAINING"
    assert caught.value.request_id


async def test_what_cannot_be_repeated_is_tried_once(caller: Caller, script: Script) -> None:
    script.failures = [unavailable()]
    with pytest.raises(UnavailableError):
        await caller.call(repeatable=False)
    assert script.calls == 1


async def test_a_refusal_is_not_tried_again(caller: Caller, script: Script) -> None:
    script.failures = [StatusError(Code.NOT_FOUND, "no such thing", reason="THING_NOT_FOUND")]
    with pytest.raises(NotFoundError, match="no such thing"):
        await caller.call()
    assert script.calls == 1


async def test_a_silent_server(caller: Caller, script: Script) -> None:
    script.release.clear()
    with pytest.raises(DeadlineExceededError, match=r"the echo service at .* in time"):
        await caller.call(timeout=0.05)


async def test_all_pages_each_when_it_is_come_to(caller: Caller, script: Script) -> None:
    script.failures = [unavailable()]
    assert await caller.pages() == [1, 2, 3, 4, 5]
    assert script.calls == 4
    assert await caller.pages(at_most=2) == [1, 2]
    assert script.calls == 5


@pytest.mark.parametrize("transport", [Transport, AsyncTransport])
@pytest.mark.parametrize("largest", [1, 20])
async def test_pages_that_are_too_large_are_asked_for_in_parts(
    serve: Callable[..., Any], transport: type[Transport | AsyncTransport], largest: int
) -> None:
    """Of items of some 100 bytes with one of another size; messages may have 1,000."""
    items = [10**100] * 20 + [10 ** (100 * largest)] + [10**100] * 20
    sizes: list[int] = []

    async def page(request: Listing, _context: Any) -> Listing:
        sizes.append(request.page_size)
        begin = int(request.page_token or "0")
        end = begin + (request.page_size or 100)
        left = str(end) if end < len(items) else ""
        return Listing(items=items[begin:end], next_page_token=left)

    handler = grpc.unary_unary_rpc_method_handler(
        page, request_deserializer=Listing.read, response_serializer=Listing.write
    )
    async with serve(service={"max_message_bytes": 1_000}, list=handler) as (server, _):
        caller = Caller(
            transport(TARGET, str(server.address), timeout=5.0, retry=QUICK, credentials=None)
        )
        if largest == 1:
            assert await caller.pages() == items
            assert sizes == [0, 50, 25, 12, *[6] * 7]
        else:
            with pytest.raises(MidcourseError, match="too large"):
                await caller.pages()
            assert sizes[-1] == 1
        await caller.close()


async def test_metadata_goes_with_every_call_and_is_never_shown(
    caller: Caller, script: Script
) -> None:
    own = caller.transport.with_metadata([("authorization", "service's own")])
    with_secret = Caller(own.with_metadata([("authorization", SECRET), ("x-bin", b"\x00")]))
    script.failures = [unavailable()] * 4
    with pytest.raises(UnavailableError) as caught:
        await with_secret.call()
    assert await with_secret.pages() == [1, 2, 3, 4, 5]
    assert [seen["authorization"] for seen in script.metadata] == [SECRET] * len(script.metadata)
    assert script.metadata[0]["x-bin"] == b"\x00"
    shown = (repr(with_secret.transport), repr(caught.value), str(caught.value))
    assert not [text for text in (*shown, repr(caught.value.__cause__)) if SECRET in text]


async def test_closing_a_shared_transport_leaves_the_channel_open(
    caller: Caller, script: Script
) -> None:
    await Caller(caller.transport.with_metadata([("authorization", SECRET)])).close()
    assert await caller.call() == [1, 2]
    assert "authorization" not in script.metadata[-1]


async def test_closing_ends_calls_under_way_with_an_error(caller: Caller, script: Script) -> None:
    script.release.clear()
    call = asyncio.create_task(caller.call())
    await script.arrived.wait()
    await caller.close()
    with pytest.raises(MidcourseError) as caught:
        await call
    assert caught.value.code is Code.CANCELLED


async def test_a_cancelled_task_stays_cancelled(serve: Callable[..., Any], script: Script) -> None:
    """And so is its call, on the server."""
    gone = asyncio.Event()

    async def wait(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        script.arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError

    async with serve(list=grpc.unary_unary_rpc_method_handler(wait)) as (server, _):
        transport = AsyncTransport(
            TARGET, str(server.address), timeout=30.0, retry=QUICK, credentials=None
        )
        call = asyncio.create_task(Caller(transport).call())
        await script.arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await gone.wait()
        await transport.close()


def test_an_asynchronous_transport_needs_its_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncTransport(TARGET, None, timeout=1.0, retry=QUICK, credentials=None)
