"""Who is calling: principals, and what tells them from a call's credentials."""

from __future__ import annotations

import functools
import ipaddress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from urllib.parse import unquote

import grpc

from grpc_runtime.errors import StatusError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        name: Unique name, as it appears in logs and audit records.
        roles: What the caller may do, in the words of the service that asks.
        selector: Label selector of what it may do that with; empty: everything.
        only: Ids of what it may do that with, or beginnings of ids followed by ``*``; empty:
            everything.
        credential: Id of the credentials that it used, for those that can be taken back while a
            call goes on; empty: none of these.
    """

    name: str
    roles: frozenset[str] = frozenset()
    selector: str = ""
    only: tuple[str, ...] = ()
    credential: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a call shows of its sender before it is believed.

    Attributes:
        method: Full method name, such as ``/package.Service/Method``.
        metadata: Invocation metadata in order; keys are lower case, ``-bin`` values are bytes.
        peer: gRPC's name of the other end, such as ``ipv4:127.0.0.1:51234`` or ``unix:``.
        auth_context: Properties of the TLS peer; empty on a plain connection.
        strangers: What it is to be refused with if finding out whether its credentials are good
            would take more than to look at what is remembered; None: it may take that.
    """

    method: str
    metadata: Sequence[tuple[str, str | bytes]]
    peer: str
    auth_context: Mapping[str, Iterable[bytes]]
    strangers: StatusError | None = None


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


@runtime_checkable
class Revocable(Protocol):
    """An authenticator whose credentials can become worthless while a call goes on."""

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        """Returns which of these credentials, by their ids, have become worthless."""


ADMIN = "admin"
"""The role that may do everything."""


class MissingCredentialsError(StatusError):
    """A call shows no credentials of the kind that is asked for."""

    def __init__(self, wanted: str) -> None:
        """Describes what is missing.

        Args:
            wanted: What to send and where it comes from.
        """
        super().__init__(
            grpc.StatusCode.UNAUTHENTICATED,
            f"this server has to know who calls: {wanted}",
            reason="CREDENTIALS_REQUIRED",
        )


class AnonymousAuthenticator:
    """Takes every caller on this host as ``anonymous``, who may do everything; refuses all others.

    Credentials are not looked at.
    """

    verifies = False
    PRINCIPAL = Principal("anonymous", frozenset({ADMIN}))

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


class CertificateAuthenticator:
    """Knows callers by the names in the certificates that they proved to have."""

    verifies = True

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        """Makes an authenticator.

        Args:
            principals: Who is meant by a name of a certificate: a DNS name, mail address, URI or
                IP address among its alternative names, or else its common name.
        """
        self._principals = dict(principals)

    async def authenticate(self, caller: Caller) -> Principal:
        """Returns the principal of the first of the certificate's names that means one.

        Raises:
            MissingCredentialsError: No certificate was shown.
            StatusError: UNAUTHENTICATED, none of its names is known here.
        """
        names = [
            name.decode(errors="replace")
            for key in ("x509_subject_alternative_name", "x509_common_name")
            for name in caller.auth_context.get(key, ())
        ]
        if not names:
            raise MissingCredentialsError("connect with a client certificate")
        for name in names:
            if (principal := self._principals.get(name)) is not None:
                return principal
        raise StatusError(
            grpc.StatusCode.UNAUTHENTICATED,
            f"the client certificate is good, but nobody here goes by its names"
            f" ({', '.join(names)[:300]}): the server's setting cert_principals has to name one",
            reason="CERTIFICATE_UNKNOWN",
        )


class FirstAuthenticator:
    """Asks several authenticators; the first whose kind of credentials a call shows decides."""

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        """Takes the authenticators, in the order in which they are asked; at least one."""
        if not authenticators:
            raise ValueError("at least one authenticator is needed")
        self._authenticators = tuple(authenticators)

    @property
    def verifies(self) -> bool:
        """Whether callers have to prove who they are to all of them."""
        return all(each.verifies for each in self._authenticators)

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        """Returns which of these credentials, by their ids, have become worthless."""
        revocable = [each for each in self._authenticators if isinstance(each, Revocable)]
        return {each for one in revocable for each in await one.ended(credentials)}

    async def authenticate(self, caller: Caller) -> Principal:
        """Returns the caller's principal.

        Raises:
            StatusError: UNAUTHENTICATED, by the authenticator that knows this kind of credentials;
                where none does, by the first.
        """
        missing: MissingCredentialsError | None = None
        for authenticator in self._authenticators:
            try:
                return await authenticator.authenticate(caller)
            except MissingCredentialsError as error:
                missing = missing or error
        assert missing is not None
        raise missing


def is_local_peer(peer: str) -> bool:
    """Tells whether gRPC's name of a peer means this host (loopback or a unix socket).

    Anything that cannot be read as an address counts as remote.
    """
    scheme, _, rest = peer.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme not in ("ipv4", "ipv6"):
        return False
    return is_loopback(_host(rest))


def host_of(peer: str) -> str:
    """Returns where gRPC's name of a peer comes from, without what it can choose freely.

    That is an IPv4 address, or the 64 bits of an IPv6 address that mean a network; whoever has one
    of its addresses has all of them. What is no address is returned as it is.
    """
    scheme, _, rest = peer.partition(":")
    if scheme not in ("ipv4", "ipv6"):
        return scheme if scheme in ("unix", "unix-abstract") else peer
    return _network(_host(rest)) or peer


@functools.lru_cache(maxsize=1024)
def _network(host: str) -> str:
    """What counts as one host with an IP address; empty for what is none."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    address = getattr(address, "ipv4_mapped", None) or address
    if address.version == 4 or address.is_loopback:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _host(rest: str) -> str:
    return unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]


@functools.lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Tells whether an IP address is a loopback address; False for what is no IP address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@dataclass(slots=True)
class Kept:
    """What is kept of a call while it is served; the only part of it that changes.

    Attributes:
        request: The request message, once it has been read; of a stream of requests the one that
            its handler says to stand for all (see :func:`note_request`). None: there is none yet.
        others: What the service keeps, under keys of its own.
    """

    request: Any = None
    others: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What is known of the call that is being served.

    Attributes:
        method: Full method name, such as ``/package.Service/Method``.
        principal: Who sent it.
        peer: gRPC's name of the other end.
        request_id: Id of the call, as in the log.
        trace_parent: The caller's trace, as a W3C ``traceparent``; empty: it is not traced.
        kept: What is kept of it while it is served.
    """

    method: str
    principal: Principal
    peer: str
    request_id: str
    trace_parent: str = ""
    kept: Kept = field(default_factory=Kept)


_current_call: ContextVar[CallInfo | None] = ContextVar("grpc_runtime_call", default=None)


def current_call() -> CallInfo | None:
    """Returns the call that is being served; None: none is, as in the service's own chores."""
    return _current_call.get()


def current_principal() -> Principal:
    """Returns who sent the call that is being served.

    Raises:
        LookupError: No call is being served here.
    """
    call = _current_call.get()
    if call is None:
        raise LookupError("no RPC is being served: current_principal() needs one")
    return call.principal


def current_trace_parent() -> str:
    """Returns the trace of whoever sent the call that is being served; empty: it is not traced."""
    call = _current_call.get()
    return "" if call is None else call.trace_parent


def note_request(request: Any) -> None:
    """Says which message stands for the stream of requests that is being served."""
    call = _current_call.get()
    if call is not None:
        call.kept.request = request


def bind_call(call: CallInfo) -> None:
    """Makes a call the current one for the running task and the tasks it starts."""
    _current_call.set(call)
