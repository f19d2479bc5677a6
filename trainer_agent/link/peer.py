"""Who is at the other end of a unix socket: only our own user is let in."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final

# <sys/un.h> on macOS, which Python's socket module does not know.
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_LOCAL_PEERPID: Final = 2
_XUCRED_VERSION: Final = 0
_XUCRED_BYTES: Final = 76

# <asm-generic/socket.h>, since Linux 6.5.
_SO_PEERPIDFD: Final = 77


class PeerRefusedError(ConnectionError):
    """The other end of a connection is not one of ours."""


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """The process that connected, or that listens, as the kernel knows it.

    Attributes:
        uid: Its user.
        pid: Its process id, as seen from here; None: unknown (it may live in another container).
    """

    uid: int
    pid: int | None


def peer_credentials(connection: socket.socket) -> PeerCredentials:
    """Asks the kernel who is at the other end.

    Raises:
        OSError: The kernel did not say.
    """
    if sys.platform == "darwin":
        packed = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
        version, uid = struct.unpack_from("=II", packed)
        if version != _XUCRED_VERSION:
            raise OSError(f"peer credentials of version {version}, {_XUCRED_VERSION} is known")
        pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
    else:
        credentials = struct.Struct("=iII")
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
        pid, uid, _gid = credentials.unpack(packed)
    return PeerCredentials(uid=uid, pid=pid or None)


def require_own_user(connection: socket.socket) -> PeerCredentials:
    """Returns who is at the other end if it is a process of our own user.

    Raises:
        PeerRefusedError: It is another user's.
        OSError: The kernel did not say.
    """
    peer = peer_credentials(connection)
    if peer.uid != os.getuid():
        raise PeerRefusedError(
            f"the process at the other end of the socket belongs to user {peer.uid}; only user "
            f"{os.getuid()}, who runs this process, is allowed"
        )
    return peer


def open_peer_pidfd(connection: socket.socket, peer: PeerCredentials) -> int | None:
    """Returns a descriptor of the process that connected; None where there is no such thing.

    It names that very process, however soon its process id is used again.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        pass  # a kernel before 6.5
    try:
        return None if peer.pid is None else os.pidfd_open(peer.pid)
    except OSError:
        return None  # gone already, or a kernel before 5.3
