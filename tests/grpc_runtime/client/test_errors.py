"""What a gRPC status becomes."""

from __future__ import annotations

import grpc
import pytest

from grpc_runtime.client import errors
from grpc_runtime.client.errors import MidcourseError, from_call, from_code


def classes() -> list[type[MidcourseError]]:
    return [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, MidcourseError)
    ]


def test_the_tree_is_drawn_in_full() -> None:
    assert len(classes()) > 10
    for found in classes():
        assert found.__name__ in (MidcourseError.__doc__ or "")


def test_every_class_stands_for_one_status() -> None:
    found = {type(from_code(code, "x")): code for code in grpc.StatusCode}
    assert set(found) == set(classes())
    for code in grpc.StatusCode:
        assert from_code(code, "x").code is code


@pytest.mark.parametrize(
    ("code", "details", "words"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect: ipv4:1.2.3.4:5: Connection refused",
            "no echo service answers at 1.2.3.4:5 (Connection refused)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect: UNKNOWN: ipv6:%5B::1%5D:5: connect: Connection refused (111)",
            "no echo service answers at 1.2.3.4:5 ([::1]:5: Connection refused (111))",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "DNS query cancelled [x: Domain name not found]",
            "(Domain name not found)",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "ipv4:1.2.3.4:5: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: unable to get issuer",
            "no connection to the echo service at 1.2.3.4:5: the server's certificate is of an",
        ),
        (grpc.StatusCode.UNAVAILABLE, "", "(no reason given)"),
        (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "Deadline Exceeded",
            "the echo service at 1.2.3.4:5 did not answer in time",
        ),
        (
            grpc.StatusCode.UNIMPLEMENTED,
            "Method not found!",
            "the server at 1.2.3.4:5 does not know this call: Method not found!",
        ),
        (grpc.StatusCode.INTERNAL, "", "INTERNAL"),
    ],
)
def test_words_of_grpc_are_made_words_for_people(
    code: grpc.StatusCode, details: str, words: str
) -> None:
    no_metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(code, no_metadata, no_metadata, details)
    translated = from_call(error, service="echo service", address="1.2.3.4:5")
    assert words in str(translated)
    assert translated.code is code
