from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpc_runtime import errors
from grpc_runtime.errors import FieldViolation, StatusError

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
# gRPC and protobuf carry UTF-8, so anything but surrogates.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
violations = st.lists(st.builds(FieldViolation, text, text), max_size=5)
status_errors = st.builds(
    StatusError,
    st.sampled_from(CODES),
    text,
    reason=st.from_regex(r"[A-Z][A-Z0-9_]{0,40}", fullmatch=True),
    domain=st.just("test.example"),
    metadata=st.dictionaries(text.filter(lambda key: len(key) <= 16), text, max_size=3),
    violations=violations,
    retry_delay=st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
)


def fields(error: StatusError) -> dict[str, Any]:
    names = ("code", "message", "reason", "domain", "metadata", "violations")
    return {name: getattr(error, name) for name in names}


def trailer_size(error: StatusError) -> int:
    """Size of an error's trailing metadata as HTTP/2 counts it, binary values in base64."""
    status = errors.to_proto(error)
    packed = status.SerializeToString()
    headers = {
        "grpc-status": 2,
        "grpc-message": errors._percent_encoded_size(status.message),
        "grpc-status-details-bin": (len(packed) + 2) // 3 * 4,
        errors.REQUEST_ID_KEY: 128,
    }
    return sum(len(name) + size + 32 for name, size in headers.items())


@given(status_errors)
def test_an_error_survives_packing(error: StatusError) -> None:
    back = errors.from_proto(errors.to_proto(error))
    assert fields(back) == fields(error)
    assert back.retry_delay == pytest.approx(error.retry_delay, abs=1e-9)


@given(
    st.builds(
        StatusError,
        st.sampled_from(CODES),
        st.text(max_size=3000),
        reason=st.text(max_size=300),
        domain=st.text(max_size=300),
        metadata=st.dictionaries(st.text(max_size=200), st.text(max_size=2000), max_size=20),
        violations=st.lists(
            st.builds(FieldViolation, st.text(max_size=400), st.text(max_size=2000)), max_size=40
        ),
        retry_delay=st.none() | st.floats(0, 1e6),
    )
)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_error_fits_into_trailing_metadata(error: StatusError) -> None:
    assert trailer_size(error) <= 8192


@pytest.mark.parametrize("character", ["x", "é", "語", "🙂", "\n", "%", "\ud800"])
def test_the_largest_error_fits_into_trailing_metadata(character: str) -> None:
    long = character * 10_000
    error = StatusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        long,
        reason=long,
        domain=long,
        metadata={f"{n}{long}": long for n in range(100)},
        violations=[FieldViolation(f"{n}{long}", long) for n in range(1000)],
        retry_delay=1.5,
    )
    assert trailer_size(error) <= 8192
    back = errors.from_proto(errors.to_proto(error))
    assert back.message.endswith("…")
    assert back.metadata["omitted"].isdigit()
    assert len(back.metadata) + int(back.metadata["omitted"]) == 100 + 1


def test_violations_that_do_not_fit_are_counted() -> None:
    wanted = [FieldViolation(f"changes[{n}].value", "must be positive") for n in range(500)]
    error = StatusError(grpc.StatusCode.INVALID_ARGUMENT, "bad", reason="BAD", violations=wanted)
    *kept, last = errors.from_proto(errors.to_proto(error)).violations
    assert kept == wanted[: len(kept)]
    assert len(kept) > 50
    assert last == FieldViolation("", f"and {500 - len(kept)} more")


def test_violations_that_fit_are_all_there() -> None:
    wanted = tuple(FieldViolation(f"changes[{n}].value", "must be positive") for n in range(50))
    error = StatusError(grpc.StatusCode.INVALID_ARGUMENT, "bad", reason="BAD", violations=wanted)
    assert errors.from_proto(errors.to_proto(error)).violations == wanted


def test_the_service_fills_in_the_domain() -> None:
    error = StatusError(grpc.StatusCode.NOT_FOUND, "no such thing", reason="THING_NOT_FOUND")
    assert errors.from_proto(errors.to_proto(error, default_domain="a.example")).domain == (
        "a.example"
    )
    error.domain = "b.example"
    assert errors.from_proto(errors.to_proto(error, default_domain="a.example")).domain == (
        "b.example"
    )


def test_str_names_the_violations() -> None:
    error = StatusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "2 fields are wrong",
        reason="BAD",
        violations=[FieldViolation("a", "got 1, allowed 2..3"), FieldViolation("", "and 4 more")],
    )
    assert str(error) == "2 fields are wrong; a: got 1, allowed 2..3; and 4 more"


def test_ok_is_no_error() -> None:
    with pytest.raises(ValueError, match="OK is not an error"):
        StatusError(grpc.StatusCode.OK, "fine", reason="FINE")


@pytest.mark.parametrize("delay", [-1.0, float("nan")])
def test_a_retry_delay_is_a_duration(delay: float) -> None:
    with pytest.raises(ValueError, match="0 or more seconds"):
        StatusError(grpc.StatusCode.UNAVAILABLE, "busy", reason="BUSY", retry_delay=delay)


def aio_error(
    code: grpc.StatusCode, details: str | None, *trailing: tuple[str, str | bytes]
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def test_an_error_without_details_has_no_reason() -> None:
    error = errors.from_rpc_error(aio_error(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert (error.code, error.message) == (grpc.StatusCode.UNAVAILABLE, "connection refused")
    assert (error.reason, error.domain, error.request_id) == ("", "", None)


@pytest.mark.parametrize("details", [b"\xff\xff no protobuf", b"\x08\x05\x12\x05other"])
def test_details_that_cannot_be_believed_are_passed_over(details: bytes) -> None:
    error = errors.from_rpc_error(
        aio_error(grpc.StatusCode.ABORTED, "conflict", ("grpc-status-details-bin", details))
    )
    assert (error.code, error.message, error.reason) == (
        grpc.StatusCode.ABORTED, "conflict", "",
    )  # fmt: skip


def test_unknown_details_are_passed_over() -> None:
    status = errors.to_proto(
        StatusError(grpc.StatusCode.ABORTED, "conflict", reason="CONFLICT", domain="d")
    )
    status.details.add().Pack(error_details_pb2.Help())
    assert errors.from_proto(status).reason == "CONFLICT"


def test_a_status_that_grpc_lost_is_unknown() -> None:
    """What grpc.aio makes of a stream that the server ended while the client was sending."""
    error = errors.from_rpc_error(aio_error(grpc.StatusCode.INTERNAL, "Internal error from Core"))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, errors.STATUS_LOST)


def test_a_bare_rpc_error_is_unknown() -> None:
    error = errors.from_rpc_error(grpc.RpcError("odd"))
    assert (error.code, error.message) == (grpc.StatusCode.UNKNOWN, "odd")


def test_any_error_survives_the_wire(serve: Any) -> None:
    """Raises errors with arbitrary Unicode in a handler and reads them in a client."""
    raised: list[StatusError] = []

    async def fail(_request: bytes, _context: Any) -> bytes:
        raise raised.pop()

    async def exchange(call: Any, error: StatusError) -> StatusError:
        raised.append(error)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=(("x-request-id", "r-1"),))
        return errors.from_rpc_error(caught.value)

    with asyncio.Runner() as runner:
        serving = serve(Fail=grpc.unary_unary_rpc_method_handler(fail))
        _, channel = runner.run(serving.__aenter__())
        call = channel.unary_unary("/test.Echo/Fail")

        @given(status_errors)
        @settings(deadline=None)
        def check(error: StatusError) -> None:
            back = runner.run(exchange(call, error))
            assert fields(back) == fields(error)
            assert back.request_id == "r-1"

        try:
            check()
        finally:
            runner.run(serving.__aexit__(None, None, None))


def test_a_synchronous_client_reads_the_same(sync_target: str) -> None:
    with grpc.insecure_channel(sync_target) as channel:
        call: Any = channel.unary_unary("/test.Echo/Fail")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
    error = errors.from_rpc_error(caught.value)
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (error.message, error.reason) == ("état", "STATE")
    assert error.retry_delay == 2.5


@pytest.fixture
def sync_target() -> Any:
    from concurrent.futures import ThreadPoolExecutor

    from grpc_status import rpc_status

    def fail(_request: bytes, context: Any) -> bytes:
        error = StatusError(
            grpc.StatusCode.FAILED_PRECONDITION, "état", reason="STATE", retry_delay=2.5
        )
        context.abort_with_status(rpc_status.to_status(errors.to_proto(error)))
        return b""

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        handler: Any = grpc.unary_unary_rpc_method_handler(fail)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Echo", {"Fail": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()
