"""Where a service is, from argument, environment or default."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from grpc_runtime.client.target import Target, addresses_of, channel_options, channel_target

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


def test_several_addresses_are_replicas_of_one_service() -> None:
    several = TARGET.resolve(" 127.0.0.1:1, echo.example:7 ,")
    assert several == "127.0.0.1:1,echo.example:7"
    assert addresses_of(several) == ("127.0.0.1:1", "echo.example:7")
    assert addresses_of("ipv4:127.0.0.1:1,127.0.0.1:2") == ("ipv4:127.0.0.1:1,127.0.0.1:2",)
    with pytest.raises(ValueError, match="no port"):
        TARGET.resolve("127.0.0.1:1,localhost")
    assert ("grpc.enable_http_proxy", 0) in channel_options("127.0.0.1:1,localhost:2")
    assert ("grpc.enable_http_proxy", 0) not in channel_options(several)


def test_a_channel_of_several_addresses_begins_with_any() -> None:
    made = {channel_target("127.0.0.1:1,localhost:2", secure=False) for _ in range(100)}
    assert made == {"ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:2,127.0.0.1:1"}
    assert channel_target("[::1]:1,[::1]:1", secure=False) == "ipv6:[::1]:1"
    assert channel_target("echo.example:7", secure=True) == "echo.example:7"


@pytest.fixture
def _unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for the name, as there are resolvers that answer everything."""
    look_up = socket.getaddrinfo

    def looked_up(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "unknown.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


@pytest.mark.usefixtures("_unknown_host")
def test_a_replica_whose_name_is_unknown_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    made = channel_target("127.0.0.1:1,unknown.example:2", secure=False)
    assert made == "ipv4:127.0.0.1:1"
    assert "left out, unknown.example:2: Name or service not known" in caplog.text


def test_addresses_of_both_families() -> None:
    made = {channel_target("127.0.0.1:1,[::1]:2", secure=False) for _ in range(100)}
    assert made == {"ipv6:[::ffff:127.0.0.1]:1,[::1]:2", "ipv6:[::1]:2,[::ffff:127.0.0.1]:1"}


@pytest.mark.parametrize(
    ("address", "secure", "words"),
    [
        ("127.0.0.1:1,127.0.0.1:2", True, "dns:///name:port"),
        ("unknown.example:1,unknown.example:2", False, "unknown.example:2"),
    ],
)
@pytest.mark.usefixtures("_unknown_host")
def test_several_addresses_that_no_channel_can_use(address: str, secure: bool, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        channel_target(address, secure=secure)
