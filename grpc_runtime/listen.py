"""Addresses to listen on, and which of them need TLS and authentication."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from grpc_runtime.auth import is_loopback

# sun_path holds 108 bytes on Linux and 104 on macOS, with a terminating NUL.
_UNIX_PATH_LIMIT_BYTES = 103


class ListenError(Exception):
    """A server cannot listen where it was told to; one line that says why and what to do."""


class AddressError(ListenError, ValueError):
    """A text is no address."""


class AddressInUseError(ListenError):
    """Another server listens there already."""


class ExposedError(ListenError):
    """Listening there would let other hosts in without TLS or without authentication."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a host and port, or the path of a unix socket.

    Attributes:
        host: Host name or IP address without brackets; empty for a unix socket.
        port: TCP port, 0 to let the system choose; None for a unix socket.
        path: Path of the unix socket; empty for TCP.
    """

    host: str = ""
    port: int | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads ``host:port``, ``[::1]:50051`` or ``unix:/path/to/socket``.

        Raises:
            AddressError: The text is none of these.
        """
        if text.startswith("unix:"):
            return cls._parse_unix(text)
        host, colon, port_text = text.rpartition(":")
        if not colon or not host:
            raise AddressError(
                f"address {text!r} has no port: expected host:port, [ipv6]:port or unix:path,"
                " such as 127.0.0.1:50051"
            )
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise AddressError(f"address {text!r}: write IPv6 in brackets, such as [::1]:50051")
        if not host or any(c.isspace() or c in "[]/" for c in host):
            raise AddressError(f"address {text!r}: {host!r} is no host name or IP address")
        if not (port_text.isascii() and port_text.isdigit() and int(port_text) <= 65535):
            raise AddressError(f"address {text!r}: port {port_text!r} is not a number in 0..65535")
        return cls(host=host, port=int(port_text))

    @classmethod
    def _parse_unix(cls, text: str) -> Address:
        # gRPC takes unix:///absolute/path as well.
        path = text.removeprefix("unix:").removeprefix("//")
        if not path:
            raise AddressError(f"address {text!r} has no path: expected unix:/path/to/socket")
        size = len(os.fsencode(path))
        if size > _UNIX_PATH_LIMIT_BYTES:
            raise AddressError(
                f"address {text!r}: the path has {size} bytes, a unix socket's may have"
                f" {_UNIX_PATH_LIMIT_BYTES}; use a shorter one"
            )
        return cls(path=path)

    def __str__(self) -> str:
        """Returns the address as :meth:`parse` and gRPC channels take it."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this host can connect.

        A host name other than ``localhost`` counts as reachable: what it resolves to may change.
        """
        return bool(self.path) or self.host == "localhost" or is_loopback(self.host)

    def with_port(self, port: int) -> Address:
        """Returns this address with the port that was bound; a unix socket stays as it is."""
        return self if self.path else replace(self, port=port)


def check_exposure(
    address: Address, *, tls: bool, authenticated: bool, insecure: bool = False
) -> None:
    """Refuses to let other hosts in unprotected.

    Args:
        address: Where to listen.
        tls: Whether connections are encrypted.
        authenticated: Whether callers have to prove who they are.
        insecure: The operator's explicit word that it is wanted.

    Raises:
        ExposedError: The address is reachable from other hosts, TLS or authentication is missing,
            and ``insecure`` was not said.
    """
    if address.is_local or insecure or (tls and authenticated):
        return
    given = (
        ("TLS", "--tls-cert and --tls-key", tls),
        ("authentication", "--auth token or --auth mtls", authenticated),
    )
    missing = " and ".join(name for name, _, present in given if not present)
    flags = "; ".join(f"{name}: {how}" for name, how, present in given if not present)
    raise ExposedError(
        f"refusing to listen on {address}: other hosts could connect without {missing}."
        f" Configure {missing} ({flags}), listen on 127.0.0.1, or pass --insecure if that is"
        " really meant"
    )


async def check_free(address: Address) -> None:
    """Makes sure that an address can be listened on.

    gRPC reports every failure to bind in the same words, is content if one of several resolved
    addresses works, and takes a unix socket away from a server that is using it. So the address
    is tried first.

    Raises:
        AddressInUseError: A server listens there.
        ListenError: It cannot be bound for another reason.
    """
    if address.path:
        _check_unix_free(address)
        return
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror or error}") from error
    failure: OSError | None = None
    usable = 0
    for family, kind, protocol, _, sockaddr in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(sockaddr)
            usable += 1
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise _bind_error(address, error) from error
            failure = error  # a name may well resolve to a family this host does not have
    if failure is not None and not usable:
        raise _bind_error(address, failure) from failure


def _check_unix_free(address: Address) -> None:
    directory = Path(address.path).parent
    if not directory.is_dir():
        raise ListenError(f"cannot listen on {address}: there is no directory {directory}")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ListenError(f"cannot listen on {address}: directory {directory} is not writable")
    if not os.path.lexists(address.path):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            return  # left behind by a server that is gone
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
        except OSError as error:
            raise _bind_error(address, error) from error
    raise _bind_error(address, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))


def _bind_error(address: Address, error: OSError) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"cannot listen on {address}: the address is in use."
            " Stop the server that uses it or choose another address"
        )
    why = os.strerror(error.errno) if error.errno else str(error)
    return ListenError(f"cannot listen on {address}: {why}")
