"""Where a service is, from argument, environment or default."""

from __future__ import annotations

import pytest

from grpc_runtime.client.target import Target, channel_options

TARGET = Target("echo service", "ECHO_ADDRESS", "127.0.0.1:7")


def test_argument_then_environment_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_ADDRESS", "echo.example:7000")
    assert TARGET.resolve("127.0.0.1:1") == "127.0.0.1:1"
    assert TARGET.resolve(None) == TARGET.resolve("") == "echo.example:7000"
    monkeypatch.delenv("ECHO_ADDRESS")
    assert TARGET.resolve(None) == "127.0.0.1:7"


@pytest.mark.parametrize("address", ["dns:///echo.example:7", "ipv6:[::1]:7", "unix:/tmp/s"])
def test_names_of_grpc_stay_as_they_are(address: str) -> None:
    assert TARGET.resolve(address) == address


@pytest.mark.parametrize(
    ("address", "words"),
    [("localhost", "no port"), ("http://localhost:7/", "write 'localhost:7'")],
)
def test_an_address_that_is_none(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TARGET.resolve(address)


def test_a_proxy_is_not_asked_about_this_host() -> None:
    assert ("grpc.enable_http_proxy", 0) in channel_options("127.0.0.1:7")
    assert ("grpc.enable_http_proxy", 0) not in channel_options("echo.example:7")
