from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.auth import (
    AnonymousAuthenticator,
    Caller,
    is_local_peer,
)
from grpc_runtime.errors import StatusError
from grpc_runtime.listen import Address, AddressError, ExposedError, check_exposure


@pytest.mark.parametrize(
    ("text", "address", "canonical", "local"),
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051), "127.0.0.1:50051", True),
        ("127.1.2.3:0", Address("127.1.2.3", 0), "127.1.2.3:0", True),
        ("localhost:1", Address("localhost", 1), "localhost:1", True),
        ("[::1]:50051", Address("::1", 50051), "[::1]:50051", True),
        ("[::ffff:127.0.0.1]:1", Address("::ffff:127.0.0.1", 1), "[::ffff:127.0.0.1]:1", True),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535), "0.0.0.0:65535", False),
        ("[::]:1", Address("::", 1), "[::]:1", False),
        ("10.0.0.1:1", Address("10.0.0.1", 1), "10.0.0.1:1", False),
        ("host.example:1", Address("host.example", 1), "host.example:1", False),
        ("unix:/run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock", True),
        ("unix:///run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock", True),
        ("unix:a.sock", Address(path="a.sock"), "unix:a.sock", True),
    ],
)
def test_addresses(text: str, address: Address, canonical: str, local: bool) -> None:
    parsed = Address.parse(text)
    assert parsed == address
    assert str(parsed) == canonical
    assert Address.parse(canonical) == parsed
    assert parsed.is_local is local


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no port"),
        ("localhost", "has no port"),
        (":50051", "has no port"),
        ("50051", "has no port"),
        ("::1:50051", "IPv6 in brackets"),
        ("[]:1", "no host name"),
        ("a b:1", "no host name"),
        ("http://a:1", "IPv6 in brackets"),
        ("a/b:1", "no host name"),
        ("a:", "not a number in 0..65535"),
        ("a:65536", "not a number in 0..65535"),
        ("a:-1", "not a number in 0..65535"),
        ("a:٣", "not a number in 0..65535"),
        ("unix:", "has no path"),
        ("unix:/" + "x" * 103, "a unix socket's may have 103"),
    ],
)
def test_what_is_no_address(text: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        Address.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    with contextlib.suppress(AddressError):
        address = Address.parse(text)
        assert Address.parse(str(address)) == address


def test_with_port() -> None:
    assert str(Address.parse("[::1]:0").with_port(5)) == "[::1]:5"
    assert str(Address.parse("unix:a").with_port(1)) == "unix:a"


@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["0.0.0.0:1", "127.0.0.1:1"]))
def test_exposure(tls: bool, authenticated: bool, insecure: bool, text: str) -> None:
    address = Address.parse(text)
    allowed = address.is_local or insecure or (tls and authenticated)
    if allowed:
        check_exposure(address, tls=tls, authenticated=authenticated, insecure=insecure)
        return
    with pytest.raises(ExposedError) as caught:
        check_exposure(address, tls=tls, authenticated=authenticated, insecure=insecure)
    message = str(caught.value)
    assert ("TLS" in message) is not tls
    assert ("authentication" in message) is not authenticated
    assert "--insecure" in message
    assert text in message


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:1234", True),
        ("ipv6:%5B::1%5D:1234", True),
        ("ipv6:[::1]:1234", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:9", True),
        ("unix:", True),
        ("unix:/run/a.sock", True),
        ("unix-abstract:a", True),
        ("ipv4:10.0.0.1:1234", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:9", False),
        ("ipv6:%5B::ffff:10.0.0.1%5D:9", False),
        ("unknown", False),
        ("", False),
        ("ipv4:unix:1", False),
    ],
)
async def test_who_is_anonymous(peer: str, local: bool) -> None:
    assert is_local_peer(peer) is local
    caller = Caller("/a.B/C", (), peer, {})
    anonymous = AnonymousAuthenticator.PRINCIPAL
    assert await AnonymousAuthenticator(allow_remote=True).authenticate(caller) == anonymous
    if local:
        assert await AnonymousAuthenticator().authenticate(caller) == anonymous
        return
    with pytest.raises(StatusError) as caught:
        await AnonymousAuthenticator().authenticate(caller)
    assert caught.value.reason == "CREDENTIALS_REQUIRED"
