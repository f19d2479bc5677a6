"""NUL characters in the texts of messages are found, wherever they are, and can be replaced."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.errors import from_rpc_error
from grpc_runtime.texts import MOST_PARTS, TooManyPartsError, field_with_nul, replace_nul

INFO = error_details_pb2.ErrorInfo
BAD = error_details_pb2.BadRequest
VIOLATION = BAD.FieldViolation


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (INFO(reason="a\0"), "reason"),
        (INFO(metadata={"k": "\0"}), "metadata['k']"),
        (INFO(metadata={"\0": "v"}), "metadata['\\x00']"),
        (BAD(field_violations=[VIOLATION(), VIOLATION(field="\0")]), "field_violations[1].field"),
        (error_details_pb2.DebugInfo(stack_entries=["", "\0"]), "stack_entries[1]"),
        (
            struct_pb2.ListValue(values=[struct_pb2.Value(string_value="\0")]),
            "values[0].string_value",
        ),
        (
            struct_pb2.Struct(fields={"a": struct_pb2.Value(string_value="\0")}),
            "fields['a'].string_value",
        ),
        (struct_pb2.Struct(fields={"a\0": struct_pb2.Value(number_value=1)}), "fields['a\\x00']"),
        (INFO(reason="fine", metadata={"k": "v"}), ""),
    ],
)
def test_it_is_found_and_replaced(message: Message, path: str) -> None:
    assert field_with_nul(message) == path
    replace_nul(message)
    assert field_with_nul(message) == ""
    assert ("\N{REPLACEMENT CHARACTER}".encode() in message.SerializeToString()) == bool(path)


TEXTS = st.text(st.sampled_from("a\0"), max_size=3)


@given(st.dictionaries(TEXTS, TEXTS, max_size=3), TEXTS, TEXTS)
def test_exactly_those_that_have_one(metadata: dict[str, str], reason: str, domain: str) -> None:
    message = INFO(metadata=metadata, reason=reason, domain=domain)
    every = [*metadata, *metadata.values(), reason, domain]
    assert bool(field_with_nul(message)) == any("\0" in each for each in every)
    replace_nul(message)
    assert field_with_nul(message) == ""
    assert message.reason == reason.replace("\0", "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize(
    "message",
    [
        BAD(field_violations=[VIOLATION(description="\0")] + [VIOLATION()] * MOST_PARTS),
        struct_pb2.ListValue(
            values=[
                struct_pb2.Value(list_value=struct_pb2.ListValue(values=[struct_pb2.Value()] * 500))
            ]
            * (MOST_PARTS // 500)
        ),
        error_details_pb2.DebugInfo(stack_entries=[""] * (MOST_PARTS + 1)),
    ],
    ids=["in a row", "within each other", "texts"],
)
def test_one_with_too_many_parts_is_not_searched(message: Message) -> None:
    for search in (field_with_nul, replace_nul):
        with pytest.raises(TooManyPartsError, match="more than 100,000 items in lists"):
            search(message)


async def test_a_request_with_too_many_parts_is_refused(serve: Any) -> None:
    async def unary(request: Any, context: Any) -> Any:
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(unary, request_deserializer=BAD.FromString)
    async with serve(Unary=handler) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/test.Echo/Unary")(b"\n\0" * (MOST_PARTS + 1))
    error = from_rpc_error(refused.value)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than 100,000 items" in error.message


async def test_a_request_with_one_is_refused_and_a_stream_of_requests_goes_on(serve: Any) -> None:
    async def unary(request: Any, context: Any) -> Any:
        return request

    async def stream(requests: Any, context: Any) -> Any:
        async for each in requests:
            yield each

    kinds = {
        "request_deserializer": INFO.FromString,
        "response_serializer": INFO.SerializeToString,
    }
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, **kinds),
        "Stream": grpc.stream_stream_rpc_method_handler(stream, **kinds),
    }
    bad = INFO(reason="a\0", domain="d").SerializeToString()
    async with serve(**handlers) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/test.Echo/Unary")(bad)
        error = from_rpc_error(refused.value)
        assert (error.code, error.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_ARGUMENT",
        )
        assert [violation.field for violation in error.violations] == ["reason"]
        call = channel.stream_stream("/test.Echo/Stream")()
        await call.write(bad)
        assert INFO.FromString(await call.read()) == INFO(reason="a\ufffd", domain="d")
        call.cancel()
