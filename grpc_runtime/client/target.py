"""The service that a client calls: where it is, and the channel options that fit the place."""

from __future__ import annotations

import logging
import os
import random
import socket
from dataclasses import dataclass
from typing import Final

from grpc_runtime.listen import Address
from grpc_runtime.options import ChannelOptions, client_options

# Name syntaxes of gRPC's own that are handed on as they are.
_GRPC_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "xds:", "unix-abstract:")


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of service that clients call.

    Attributes:
        name: What people call it, such as "control plane"; messages say "no {name} answers".
        variable: Environment variable with its address.
        default_address: Where it is if nobody says otherwise.
    """

    name: str
    variable: str
    default_address: str

    def resolve(self, address: str | None) -> str:
        """Returns the address to use: the argument, the environment's or the default.

        Several replicas of a service are written one after the other: ``a:50051,b:50051``.

        Raises:
            ValueError: It is no address.
        """
        chosen = address or os.environ.get(self.variable) or self.default_address
        return ",".join(_checked(one) for one in addresses_of(chosen))


def addresses_of(text: str) -> tuple[str, ...]:
    """Returns the addresses that a text names, ``a:50051,b:50051``: replicas of one service."""
    if text.startswith(_GRPC_SCHEMES):
        return (text,)  # gRPC's own lists are gRPC's to read
    return tuple(one.strip() for one in text.split(",") if one.strip()) or (text,)


def channel_target(address: str, *, secure: bool) -> str:
    """Returns what a channel is made of, for an address that :meth:`Target.resolve` gave.

    Of several addresses the channel uses one that answers, each client beginning with another,
    and goes on to the next where that ends. Their names are looked up once, here; one that is
    unknown by then is left out, with a warning.

    Raises:
        ValueError: No name is known, or several addresses are to be used with TLS.
    """
    several = list(addresses_of(address))
    if len(several) == 1:
        return address
    if secure:
        raise ValueError(
            f"address {address!r}: several addresses can not be used with TLS, as the servers' "
            "certificates are for names; write one name that stands for all, dns:///name:port"
        )
    random.shuffle(several)
    found: list[tuple[bool, str, int | None]] = []
    unknown: list[str] = []
    for one in map(Address.parse, several):
        try:
            found.append((*_looked_up(one), one.port))
        except OSError as error:
            unknown.append(f"{one}: {error.strerror}")
    if not found:
        raise ValueError(f"address {address!r}: {'; '.join(unknown)}")
    for each in unknown:
        _log.warning("one of several addresses is left out, %s", each)
    if all(is_ipv4 for is_ipv4, _, _ in found):
        scheme, mapped = "ipv4", ""
    else:  # gRPC takes those of one family only, but IPv4 addresses can be written as IPv6 ones
        scheme, mapped = "ipv6", "::ffff:"
    hosts = [(f"{mapped}{host}" if is_ipv4 else host, port) for is_ipv4, host, port in found]
    return f"{scheme}:{','.join(dict.fromkeys(str(Address(*each)) for each in hosts))}"


def _looked_up(address: Address) -> tuple[bool, str]:
    """Returns whether it is an IPv4 address, which is preferred, and the address.

    Raises:
        OSError: The name is unknown.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    family, _, _, _, where = min(found, key=lambda each: each[0] is not socket.AF_INET)
    return family is socket.AF_INET, str(where[0])


def _checked(address: str) -> str:
    if address.startswith(_GRPC_SCHEMES):
        return address
    scheme, separator, rest = address.partition("://")
    if separator and scheme != "unix":
        raise ValueError(
            f"address {address!r}: a gRPC address has no {scheme}://, write {rest.rstrip('/')!r}"
        )
    return str(Address.parse(address))


def channel_options(address: str) -> ChannelOptions:
    """Returns the channel options for an address that :meth:`Target.resolve` gave."""
    options: ChannelOptions = (
        *client_options(),
        # Tries of a call are far apart enough already: gRPC must not sit out a second of its own
        # between them, nor spend 20 s on a host that swallows packets.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.min_reconnect_backoff_ms", 5_000),
    )
    return (*options, *proxy_options(address))


def proxy_options(address: str) -> ChannelOptions:
    """Returns the options that keep a channel to this host from going through a proxy.

    An http_proxy in the environment is not meant for this host, and would read what is sent there.
    """
    return (("grpc.enable_http_proxy", 0),) if is_local(address) else ()


def is_local(address: str) -> bool:
    """Tells whether an address means this host, and nobody else can read what is sent there."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    if len(several := addresses_of(address)) > 1:
        return all(is_local(one) for one in several)
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    try:
        return Address.parse(address.removeprefix("///")).is_local
    except ValueError:
        return False
