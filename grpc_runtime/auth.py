"""Who is calling: principals, and what tells them from a call's credentials."""

from __future__ import annotations

import functools
import ipaddress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

import grpc

from grpc_runtime.errors import StatusError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        name: Unique name, as it appears in logs and audit records.
        roles: What the caller may do, in the words of the service that asks.
    """

    name: str
    roles: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Caller:
    """What a call shows of its sender before it is believed.

    Attributes:
        method: Full method name, such as ``/package.Service/Method``.
        metadata: Invocation metadata in order; keys are lower case, ``-bin`` values are bytes.
        peer: gRPC's name of the other end, such as ``ipv4:127.0.0.1:51234`` or ``unix:``.
        auth_context: Properties of the TLS peer; empty on a plain connection.
    """

    method: str
    metadata: Sequence[tuple[str, str | bytes]]
    peer: str
    auth_context: Mapping[str, Iterable[bytes]]


class Authenticator(Protocol):
    """Decides who a caller is."""

    @property
    def verifies(self) -> bool:
        """Whether callers have to prove who they are.

        A server whose authenticator does not verify refuses to listen beyond loopback.
        """

    async def authenticate(self, caller: Caller) -> Principal:
        """Returns the caller's principal.

        Raises:
            StatusError: UNAUTHENTICATED, saying which credentials are missing or wrong, without
                repeating them.
        """


class AnonymousAuthenticator:
    """Takes every caller on this host as ``anonymous`` and refuses all others.

    Credentials are not looked at.
    """

    verifies = False
    PRINCIPAL = Principal("anonymous")

    def __init__(self, *, allow_remote: bool = False) -> None:
        """Makes an authenticator.

        Args:
            allow_remote: Take callers from other hosts as ``anonymous`` too.
        """
        self._allow_remote = allow_remote

    async def authenticate(self, caller: Caller) -> Principal:
        """Returns the anonymous principal.

        Raises:
            StatusError: UNAUTHENTICATED, the caller is on another host.
        """
        if self._allow_remote or is_local_peer(caller.peer):
            return self.PRINCIPAL
        raise StatusError(
            grpc.StatusCode.UNAUTHENTICATED,
            "this server takes calls without credentials from its own host only",
            reason="CREDENTIALS_REQUIRED",
        )


def is_local_peer(peer: str) -> bool:
    """Tells whether gRPC's name of a peer means this host (loopback or a unix socket).

    Anything that cannot be read as an address counts as remote.
    """
    scheme, _, rest = peer.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme not in ("ipv4", "ipv6"):
        return False
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    return is_loopback(host)


@functools.lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Tells whether an IP address is a loopback address; False for what is no IP address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


_current_principal: ContextVar[Principal] = ContextVar("grpc_runtime_principal")


def current_principal() -> Principal:
    """Returns who sent the call that is being served.

    Raises:
        LookupError: No call is being served here.
    """
    try:
        return _current_principal.get()
    except LookupError:
        raise LookupError("no RPC is being served: current_principal() needs one") from None


def bind_principal(principal: Principal) -> None:
    """Makes a principal the current one for the running task and the tasks it starts."""
    _current_principal.set(principal)
