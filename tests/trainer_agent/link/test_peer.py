"""Only processes of our own user are talked to."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys

import pytest

from trainer_agent.link.peer import (
    PeerRefusedError,
    open_peer_pidfd,
    peer_credentials,
    require_own_user,
)


def test_the_kernel_says_who_is_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = require_own_user(ours)
        assert (peer.uid, peer.pid) == (os.getuid(), os.getpid())


def test_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        with pytest.raises(PeerRefusedError, match="only user"):
            require_own_user(ours)


CONNECT_AS_ANOTHER_USER = """
import os, socket
connection = socket.socket(socket.AF_UNIX)
os.setuid(12345)
connection.connect(ADDRESS)
connection.recv(1)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_process_of_another_user_is_seen_as_such() -> None:
    listener = socket.socket(socket.AF_UNIX)
    # An address without a file, so that no permission stands in the way.
    name = f"\0midcourse-test-{os.getpid()}"
    with listener:
        listener.bind(name)
        listener.listen()
        child = subprocess.Popen(
            [sys.executable, "-c", CONNECT_AS_ANOTHER_USER.replace("ADDRESS", repr(name))]
        )
        listener.settimeout(20)
        connection, _ = listener.accept()
        with child, connection:
            assert peer_credentials(connection).uid == 12345
            with pytest.raises(PeerRefusedError, match="belongs to user 12345"):
                require_own_user(connection)


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors of processes are Linux's")
def test_a_descriptor_names_the_process_that_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pidfd = open_peer_pidfd(ours, peer_credentials(ours))
        assert pidfd is not None
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            assert poller.poll(0) == []  # this process lives
            assert not os.get_inheritable(pidfd)
        finally:
            os.close(pidfd)
