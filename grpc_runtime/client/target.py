"""The service that a client calls: where it is, and the channel options that fit the place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from grpc_runtime.listen import Address
from grpc_runtime.options import ChannelOptions, client_options

# Name syntaxes of gRPC's own that are handed on as they are.
_GRPC_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "xds:", "unix-abstract:")


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

        Raises:
            ValueError: It is no address.
        """
        chosen = address or os.environ.get(self.variable) or self.default_address
        if chosen.startswith(_GRPC_SCHEMES):
            return chosen
        scheme, separator, rest = chosen.partition("://")
        if separator and scheme != "unix":
            raise ValueError(
                f"address {chosen!r}: a gRPC address has no {scheme}://, write {rest.rstrip('/')!r}"
            )
        return str(Address.parse(chosen))


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
    if not address.startswith(_GRPC_SCHEMES) and Address.parse(address).is_local:
        # An http_proxy in the environment is not meant for this host.
        options = (*options, ("grpc.enable_http_proxy", 0))
    return options
