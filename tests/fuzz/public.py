"""A caller that says anything, to a real control plane: over a channel, and over a bare socket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
from hypothesis import strategies as st

from grpc_runtime.errors import from_rpc_error
from midcourse.control.v1 import control_pb2
from tests.fuzz.exploring import BOUND_SECONDS, Fuzzer
from tests.fuzz.material import Draw, any_of, chance, noise, pick, spoiled
from tests.fuzz.session_server import SESSION
from tests.fuzz.stored import difference, stored_in
from tests.support.any_request import LEAKS, METHODS, OUR_FAULT
from tests.support.plane import RunningPlane, request, running_plane

_OPENED_AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_ANSWER_SECONDS = 0.15
"""How long calls that wait for something are given."""


class _Served(Fuzzer):
    """Talks to a control plane that has a job."""

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        self.database = self.folder / f"{type(self).__name__}.db"
        self.plane: RunningPlane = await stack.enter_async_context(running_plane(self.database))
        agent = await self.plane.agent("j")
        await self.plane.update("j")
        await agent.receive()
        await agent.leave()
        async with asyncio.timeout(BOUND_SECONDS):
            while await self._is_connected():  # noqa: ASYNC110 - nothing else tells of it
                await asyncio.sleep(0.01)

    async def _is_connected(self) -> bool:
        """Whether it is still on disk that the agent is there."""
        job = await self.plane.plane._store.read(lambda tx: tx.job("j"))
        return job is not None and job.session is not None and job.session.connected

    async def _nothing_has_suffered(self) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                # A path that is no UTF-8 ends grpc's server, which is then opened again.
                try:
                    jobs = await self.plane.control.ListJobs(
                        control_pb2.ListJobsRequest(), wait_for_ready=True
                    )
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _OPENED_AGAIN:
                        raise
                    continue
                break
        assert any(job.name == "jobs/j" for job in jobs.jobs)


class CallFuzzer(_Served):
    """Fuzzes every public method: replayed, cut, too large, to no method, with odd metadata."""

    name = "api: caller -> server"

    async def converse(self, draw: Draw) -> None:
        for _ in range(draw(st.integers(1, 4))):
            method = METHODS[draw(st.integers(0, len(METHODS) - 1))]
            raw = self._raw(draw, method)
            path = f"/{method.containing_service.full_name}/{method.name}"
            if chance(draw, 12):
                path += pick(draw, "x", "/", "%00", "/../GetJob")
            metadata = _metadata(draw) if chance(draw, 4) else None
            for _ in range(pick(draw, 1, 1, 2)):
                await self._call(method, path, raw, metadata)
        await self._nothing_has_suffered()

    def _raw(self, draw: Draw, method: Any) -> bytes:
        if chance(draw, 20):
            return noise(draw(st.integers(0, 9)), 5 * 1024 * 1024)
        if method.name == "UpdateParameters" and chance(draw, 2):
            raw = request("j", request_id="r").SerializeToString()
        else:
            raw = any_of(draw, method.input_type._concrete_class).SerializeToString()
        return spoiled(draw, raw) if chance(draw, 3) else raw

    async def _call(self, method: Any, path: str, raw: bytes, metadata: Any) -> None:
        self.said += 1
        stored = stored_in(self.database)
        asks = "stream" if method.client_streaming else "unary"
        answers = "stream" if method.server_streaming else "unary"
        stub = getattr(self.plane.channel, f"{asks}_{answers}")(path)
        waits = method.name.startswith(("Watch", "Wait", "Cancel"))
        seconds = _ANSWER_SECONDS if waits else BOUND_SECONDS
        said = [raw] if method.client_streaming else raw
        answered = False
        try:
            call = stub(said, timeout=seconds, metadata=metadata)
            if method.server_streaming:
                async for _ in call:
                    answered = True
                    call.cancel()
                    break
            else:
                await call
            return
        except asyncio.CancelledError:
            if not answered:
                raise
            return
        except grpc.aio.AioRpcError as error:
            told = from_rpc_error(error)
        waited = told.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert told.code not in OUR_FAULT, (told, path, raw[:200], metadata)
        assert not any(leak in str(told) for leak in LEAKS), told
        assert not waited or waits, (told, path, raw[:200])
        if not waited:
            assert told.reason, f"{told!r} names no reason: {path} {raw[:200]!r}"
            changed = difference(stored, stored_in(self.database))
            assert not changed, f"refused, and yet stored: {path} {raw[:200]!r}: {changed}"


def _metadata(draw: Draw) -> tuple[tuple[str, str | bytes], ...]:
    """Headers that gRPC lets through and nobody expects."""
    value = draw(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200))
    key = pick(draw, "authorization", "x-request-id", "traceparent", "grpc-trace", "x-odd")
    if chance(draw, 3):
        return ((f"{key}-bin", bytes(draw(st.binary(max_size=50)))),)
    return ((key, value),)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GO_AWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 7, 8, 9


class SocketFuzzer(_Served):
    """Fuzzes the port itself: what is no HTTP/2, frames that are wrong, calls that are cut."""

    name = "port: bytes -> server"
    expected = (UnicodeDecodeError,)  # of a path, in grpc's own loop, which is begun anew

    async def converse(self, draw: Draw) -> None:
        host, _, port = self.plane.address.rpartition(":")
        stored = stored_in(self.database)
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for piece in self._pieces(draw):
                self.said += 1
                writer.write(piece)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
            if draw(st.booleans()):
                with contextlib.suppress(OSError):
                    writer.write_eof()
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(0.02):  # long enough for an answer, where there is one
                    while said := await reader.read(1 << 16):
                        assert not any(leak.encode() in said for leak in LEAKS), said
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await self._nothing_has_suffered()
        changed = difference(stored, stored_in(self.database))
        assert not changed, f"bytes that are no call have changed something: {changed}"

    def _pieces(self, draw: Draw) -> list[bytes]:
        match pick(draw, "noise", "http/1", "frames", "frames", "call", "call", "call"):
            case "noise":
                return [bytes(draw(st.binary(min_size=1, max_size=200)))]
            case "http/1":
                return [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", bytes(draw(st.binary(max_size=99)))]
            case "frames":
                return [PREFACE, *[_any_frame(draw) for _ in range(draw(st.integers(1, 6)))]]
            case _:
                return [PREFACE, _frame(_SETTINGS, 0, 0, b""), *_call(draw)]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def _any_frame(draw: Draw) -> bytes:
    kind = pick(
        draw, _DATA, _HEADERS, _RESET, _SETTINGS, _GO_AWAY, _WINDOW, _CONTINUATION, 2, 5, 6, 99
    )
    payload = bytes(draw(st.binary(max_size=40)))
    framed = _frame(kind, draw(st.integers(0, 255)), draw(st.integers(0, 2**32 - 1)), payload)
    return spoiled(draw, framed) if chance(draw, 3) else framed


def _call(draw: Draw) -> list[bytes]:
    """A call of the session, or what a proxy might make of one."""
    headers = {
        b":method": pick(draw, b"POST", b"POST", b"GET"),
        b":scheme": b"http",
        b":path": pick(draw, SESSION.encode(), b"/x", b"\xff\xfe", b""),
        b":authority": b"x",
        b"content-type": pick(draw, b"application/grpc", b"application/grpc+json", b"text/html"),
        b"te": b"trailers",
        b"grpc-encoding": pick(draw, b"identity", b"gzip", b"nonsense"),
        b"grpc-timeout": pick(draw, b"1S", b"99999999H", b"-1", b"x"),
    }
    if chance(draw, 4):
        del headers[draw(st.sampled_from(sorted(headers)))]
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in headers.items()
    )
    body = bytes(draw(st.binary(max_size=40)))
    length = pick(draw, len(body), len(body) + 1, 0, 2**32 - 1)
    message = bytes([pick(draw, 0, 0, 1, 7)]) + length.to_bytes(4, "big") + body
    return [
        _frame(_HEADERS, 4, 1, block),
        _frame(_DATA, pick(draw, 0, 1), 1, message),
        *([_frame(_RESET, 0, 1, bytes(4))] if chance(draw, 3) else []),
    ]
