from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from grpc_runtime.auth import AnonymousAuthenticator, Caller, Principal, current_principal
from grpc_runtime.errors import FieldViolation, StatusError, from_rpc_error
from grpc_runtime.interceptors import CallInterceptor
from grpc_runtime.limits import TOO_MANY_STRANGERS, Strangers

CODE = grpc.StatusCode
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


class ThingMissingError(Exception):
    """An exception of the service under test."""


def translate(error: Exception) -> StatusError | None:
    if isinstance(error, ThingMissingError):
        return StatusError(
            CODE.NOT_FOUND,
            "there is no such thing",
            reason="THING_NOT_FOUND",
            metadata={"thing": str(error)},
            violations=[FieldViolation("name", "unknown")],
        )
    match error:
        case ZeroDivisionError():
            raise LookupError("translate is broken too")
        case _:
            return None


async def act(command: bytes, context: Any) -> bytes:
    """Does what a request says, the same in all kinds of RPC."""
    match command:
        case b"status":
            raise StatusError(CODE.ABORTED, "stale", reason="STALE", retry_delay=0.5)
        case b"own":
            raise ThingMissingError("x")
        case b"bug":
            raise KeyError("secret internals")
        case b"translate":
            return bytes(1 // len(command[:0]))
        case b"abort":
            await context.abort(CODE.DATA_LOSS, "by hand")
        case b"swallow":
            try:
                await context.abort(CODE.OUT_OF_RANGE, "by hand")
            except Exception as error:
                raise KeyError("after the abort") from error
        case b"set_code":
            context.set_code(CODE.ALREADY_EXISTS)
            context.set_details("set by hand")
        case b"cancelled":
            inner = asyncio.get_running_loop().create_future()
            inner.cancel()
            await inner
        case b"who":
            return current_principal().name.encode()
        case b"sleep":
            await asyncio.sleep(60)
        case _:
            pass
    return command


async def unary_unary(request: bytes, context: Any) -> bytes:
    return await act(request, context)


async def unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield await act(request, context)


async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"".join([await act(request, context) async for request in requests])


async def stream_stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield await act(request, context)


HANDLERS: dict[str, Any] = {
    "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary),
    "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream),
    "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary),
    "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream),
}


def start(channel: Any, kind: str, *requests: bytes, **options: Any) -> Any:
    """Starts a call of any kind."""
    method = f"/test.Echo/{kind}"
    match kind:
        case "UnaryUnary":
            return channel.unary_unary(method)(requests[0], **options)
        case "UnaryStream":
            return channel.unary_stream(method)(requests[0], **options)
        case "StreamUnary":
            return channel.stream_unary(method)(iter(requests), **options)
        case _:
            # A server may refuse a stream while its client is still sending, and then grpc.aio
            # reports the failed sending in place of the status. So nothing is sent if not asked.
            return channel.stream_stream(method)(iter(requests) if requests else None, **options)


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


async def finish(call: Any) -> bytes:
    """Returns all responses of a call of any kind."""
    if hasattr(call, "__aiter__"):
        return b"".join([response async for response in call])
    response: bytes = await call
    return response


async def fail(call: Any) -> StatusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish(call)
    return from_rpc_error(caught.value)


async def logged(events: list[Any], count: int = 1) -> list[Any]:
    """Returns the events of finished calls; a client may hear of an end before it is logged."""

    def found() -> list[Any]:
        return [event for event in events if event["event"] == "rpc"]

    async with asyncio.timeout(10):
        while len(found()) < count:  # noqa: ASYNC110 - captured events notify nobody
            await asyncio.sleep(0.001)
    return found()


@pytest.mark.parametrize("kind", KINDS)
async def test_success(serve: Any, events: list[Any], kind: str) -> None:
    async with serve(**HANDLERS) as (_, channel):
        call = start(channel, kind, b"hello", metadata=(("x-request-id", "req-1"),))
        assert await finish(call) == b"hello"
        assert ("x-request-id", "req-1") in tuple(await call.trailing_metadata())
    (event,) = await logged(events)
    assert event.pop("duration_ms") > 0
    assert event.pop("peer").startswith("ipv4:127.0.0.1:")
    assert event == {
        "event": "rpc",
        "log_level": "info",
        "method": f"/test.Echo/{kind}",
        "code": "OK",
        "principal": "anonymous",
        "request_id": "req-1",
    }


@pytest.mark.parametrize("kind", ["StreamUnary", "StreamStream"])
async def test_several_requests_pass(serve: Any, kind: str) -> None:
    async with serve(**HANDLERS) as (_, channel):
        assert await finish(start(channel, kind, b"a", b"b", b"c")) == b"abc"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_status_error_reaches_the_client(serve: Any, events: list[Any], kind: str) -> None:
    async with serve(**HANDLERS) as (_, channel):
        error = await fail(start(channel, kind, b"status"))
    assert (error.code, error.message, error.reason) == (CODE.ABORTED, "stale", "STALE")
    assert (error.domain, error.retry_delay) == ("test.example", 0.5)
    (event,) = await logged(events)
    assert event["request_id"] == error.request_id
    assert (event["code"], event["reason"], event["error"]) == ("ABORTED", "STALE", "stale")
    assert (event["log_level"], "exc_info" in event) == ("info", False)


@pytest.mark.parametrize("kind", KINDS)
async def test_own_exceptions_are_translated(serve: Any, kind: str) -> None:
    async with serve(service={"translate": translate}, **HANDLERS) as (_, channel):
        error = await fail(start(channel, kind, b"own"))
    assert (error.code, error.reason) == (CODE.NOT_FOUND, "THING_NOT_FOUND")
    assert error.metadata == {"thing": "x"}
    assert error.violations == (FieldViolation("name", "unknown"),)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", [b"bug", b"translate", b"cancelled"])
async def test_anything_else_is_internal_and_tells_nothing(
    serve: Any, events: list[Any], kind: str, command: bytes
) -> None:
    async with serve(service={"translate": translate}, **HANDLERS) as (_, channel):
        call = start(channel, kind, command, timeout=10)
        error = await fail(call)
        details = dict(tuple(await call.trailing_metadata()))["grpc-status-details-bin"]
    assert (error.code, error.reason, error.domain) == (CODE.INTERNAL, "INTERNAL", "test.example")
    assert error.request_id is not None
    assert error.message == (
        f"internal error; the server's log has the details under request id {error.request_id}"
    )
    wire = status_pb2.Status.FromString(details)
    for leak in ("secret internals", "Traceback", "KeyError", "ZeroDivision", ".py"):
        assert leak not in str(wire)
    (event,) = await logged(events)
    assert (event["log_level"], event["code"]) == ("error", "INTERNAL")
    assert event["request_id"] == error.request_id
    assert event["exc_info"].__traceback__ is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_abort_passes_untouched(serve: Any, events: list[Any], kind: str) -> None:
    async with serve(**HANDLERS) as (_, channel):
        error = await fail(start(channel, kind, b"abort"))
    assert (error.code, error.message, error.reason) == (CODE.DATA_LOSS, "by hand", "")
    assert error.request_id is not None
    assert (await logged(events))[0]["code"] == "DATA_LOSS"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_after_an_abort_is_logged(
    serve: Any, events: list[Any], kind: str
) -> None:
    async with serve(**HANDLERS) as (_, channel):
        error = await fail(start(channel, kind, b"swallow"))
        assert await finish(start(channel, kind, b"still here")) == b"still here"
    assert (error.code, error.message) == (CODE.OUT_OF_RANGE, "by hand")
    failed, _ = await logged(events, 2)
    assert isinstance(failed["exc_info"], KeyError)


@pytest.mark.parametrize("kind", ["UnaryUnary", "UnaryStream", "StreamUnary"])
async def test_a_status_that_was_set_is_logged(serve: Any, events: list[Any], kind: str) -> None:
    async with serve(**HANDLERS) as (_, channel):
        error = await fail(start(channel, kind, b"set_code"))
    assert (error.code, error.message) == (CODE.ALREADY_EXISTS, "set by hand")
    assert (await logged(events))[0]["code"] == "ALREADY_EXISTS"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_call_ends_its_handler(serve: Any, events: list[Any], kind: str) -> None:
    async with serve(**HANDLERS) as (_, channel):
        call = start(channel, kind, b"sleep", timeout=0.2)
        error = await fail(call)
        assert error.code is CODE.DEADLINE_EXCEEDED
        (event,) = await logged(events)
    assert event["code"] == "DEADLINE_EXCEEDED"
    assert event["log_level"] == "info"


async def test_a_call_given_up_by_its_client(serve: Any, events: list[Any]) -> None:
    started = asyncio.Event()
    cleaned_up = asyncio.Event()

    async def forever(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        try:
            started.set()
            while True:
                yield b"x"
                await asyncio.sleep(0.001)
        finally:
            cleaned_up.set()

    async with serve(UnaryStream=grpc.unary_stream_rpc_method_handler(forever)) as (_, channel):
        call = start(channel, "UnaryStream", b"")
        await asyncio.wait_for(started.wait(), 10)
        call.cancel()
        await asyncio.wait_for(cleaned_up.wait(), 10)
        (event,) = await logged(events)
    assert event["code"] == "CANCELLED"


async def test_a_handler_may_read_and_write_through_its_context(serve: Any) -> None:
    async def echo(_requests: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async with serve(StreamStream=grpc.stream_stream_rpc_method_handler(echo)) as (_, channel):
        assert await finish(start(channel, "StreamStream", b"a", b"b")) == b"ab"


@pytest.mark.parametrize("kind", KINDS)
async def test_unreadable_requests_are_the_callers_fault(serve: Any, kind: str) -> None:
    make: dict[str, Any] = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary, json.loads),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream, json.loads),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary, json.loads),
        "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream, json.loads),
    }
    async with serve(**{kind: make[kind]}) as (_, channel):
        error = await fail(start(channel, kind, b"\xff{"))
    assert (error.code, error.reason) == (CODE.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert f"/test.Echo/{kind}" in error.message


@pytest.mark.parametrize("kind", KINDS)
async def test_responses_that_cannot_be_sent_are_the_servers_fault(serve: Any, kind: str) -> None:
    make: dict[str, Any] = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(unary_unary, None, to_json),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(unary_stream, None, to_json),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(stream_unary, None, to_json),
        "StreamStream": grpc.stream_stream_rpc_method_handler(stream_stream, None, to_json),
    }
    async with serve(**{kind: make[kind]}) as (_, channel):
        error = await fail(start(channel, kind, b"bytes are no JSON"))
    assert (error.code, error.reason) == (CODE.INTERNAL, "INTERNAL")
    assert "JSON" not in error.message


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_methods(serve: Any, events: list[Any], kind: str) -> None:
    async with serve() as (_, channel):
        request = () if kind == "StreamStream" else (b"",)
        error = await fail(start(channel, kind, *request))
    assert (error.code, error.reason) == (CODE.UNIMPLEMENTED, "METHOD_NOT_FOUND"), repr(error)
    assert error.message == f"this server has no method /test.Echo/{kind}"
    assert (await logged(events))[0]["code"] == "UNIMPLEMENTED"


@pytest.mark.parametrize("odd", ["", " ", "a b", "x" * 129, 'a"b', "a\\b", "ab{}"])
async def test_odd_request_ids_are_replaced(serve: Any, odd: str) -> None:
    async with serve(**HANDLERS) as (_, channel):
        call = start(channel, "UnaryUnary", b"", metadata=(("x-request-id", odd),))
        await call
        request_id = dict(tuple(await call.trailing_metadata()))["x-request-id"]
    assert request_id != odd
    assert len(request_id) == 16


async def test_every_call_has_its_own_request_id(serve: Any, events: list[Any]) -> None:
    async with serve(**HANDLERS) as (_, channel):
        await asyncio.gather(*(finish(start(channel, "UnaryUnary", b"")) for _ in range(20)))
    ids = {event["request_id"] for event in await logged(events, 20)}
    assert len(ids) == 20


class TokenAuthenticator:
    """Knows one token."""

    verifies = True

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    async def authenticate(self, caller: Caller) -> Principal:
        self.callers.append(caller)
        if ("authorization", "Bearer right") in caller.metadata:
            return Principal("ada", frozenset({"admin"}))
        raise StatusError(CODE.UNAUTHENTICATED, "no valid token", reason="TOKEN_INVALID")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_principal_is_known_while_a_call_is_served(
    serve: Any, events: list[Any], kind: str
) -> None:
    authenticator = TokenAuthenticator()
    async with serve(service={"authenticator": authenticator}, **HANDLERS) as (_, channel):
        right = (("authorization", "Bearer right"),)
        assert await finish(start(channel, kind, b"who", metadata=right)) == b"ada"
        request = () if kind == "StreamStream" else (b"who",)
        error = await fail(start(channel, kind, *request))
    assert (error.code, error.reason) == (CODE.UNAUTHENTICATED, "TOKEN_INVALID")
    served, refused = await logged(events, 2)
    assert (served["principal"], refused["principal"]) == ("ada", None)
    assert "right" not in str(events)
    caller = authenticator.callers[0]
    assert caller.method == f"/test.Echo/{kind}"
    assert caller.peer.startswith("ipv4:127.0.0.1:")


async def test_what_strangers_send_is_hardly_looked_at(serve: Any) -> None:
    """Reading may take long, for what a caller chooses to send."""
    read: list[int] = []
    told: list[Any] = []

    def deserialize(raw: bytes) -> bytes:
        read.append(len(raw))
        return raw

    handler: Any = grpc.unary_unary_rpc_method_handler(
        unary_unary, request_deserializer=deserialize
    )
    options = {"authenticator": TokenAuthenticator(), "strangers": Strangers(2.0, clock=lambda: 0)}
    async with serve(service=options, Echo=handler) as (server, channel):
        server.observe(lambda call: told.append((call.reason, call.request)))
        call = channel.unary_unary("/test.Echo/Echo")
        for request in (b"small", bytes(20_000), b"beyond"):
            await fail(call(request))
        right = (("authorization", "Bearer right"),)
        assert await call(bytes(20_000), metadata=right) == bytes(20_000)
    assert told == [
        ("TOKEN_INVALID", b"small"),
        ("TOKEN_INVALID", None),
        (TOO_MANY_STRANGERS, None),
        ("", bytes(20_000)),
    ]
    assert read == [5, 20_000]


def test_there_is_no_principal_outside_a_call() -> None:
    with pytest.raises(LookupError, match="no RPC is being served"):
        current_principal()


async def test_health_checks_are_logged_at_debug(serve: Any, events: list[Any]) -> None:
    async with serve() as (_, channel):
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    (event,) = await logged(events)
    assert event["log_level"] == "debug"


async def test_who_is_gone_before_its_status_is_sent_is_no_failure(events: list[Any]) -> None:
    class Gone:
        async def abort(self, *_status: Any) -> None:
            raise grpc.aio.InternalError('Failed "execute_batch"')

    interceptor = CallInterceptor(AnonymousAuthenticator(), domain="test.example")
    with pytest.raises(asyncio.CancelledError):
        await interceptor._abort(Gone(), StatusError(CODE.ABORTED, "stale", reason="STALE"), "r1")
    assert [event["log_level"] for event in events] == ["info"]
