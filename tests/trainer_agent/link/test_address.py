"""Where the socket lies, and which directories are refused."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_agent.link.address import LinkAddressError, locate, prepare_directory

UID = os.getuid()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


def test_the_most_specific_place_wins() -> None:
    environ = {"MIDCOURSE_SOCKET_DIR": "/named", "XDG_RUNTIME_DIR": "/run/user/7"}

    def directory(socket_dir: str | None, *leave_out: str) -> str:
        left = {key: value for key, value in environ.items() if key not in leave_out}
        return str(
            locate("job", socket_dir, environ=left, temporary_directory="/temporary").directory
        )

    assert directory("/given") == "/given"
    assert directory(None) == "/named"
    assert directory("") == "/named"
    assert directory(None, "MIDCOURSE_SOCKET_DIR") == "/run/user/7/midcourse"
    assert directory(None, *environ) == f"/temporary/midcourse-{UID}"


@given(job_id=st.text(max_size=500))
def test_any_job_id_makes_a_short_file_name(job_id: str) -> None:
    address = locate(job_id, "/d")
    assert address == locate(job_id, "/d")
    assert len(address.socket.name) <= 24
    assert "/" not in address.name
    assert len({address.socket, address.lock, address.log}) == 3


def test_jobs_do_not_share_a_socket() -> None:
    assert locate("a", "/d").socket != locate("b", "/d").socket


def test_a_long_automatic_place_gives_way_to_a_short_one() -> None:
    long = "/" + "x" * 100
    address = locate("job", environ={"XDG_RUNTIME_DIR": long}, temporary_directory="/temporary")
    assert str(address.directory) == f"/temporary/midcourse-{UID}"
    address = locate("job", environ={"XDG_RUNTIME_DIR": long}, temporary_directory=long)
    assert str(address.directory) == f"/tmp/midcourse-{UID}"


def test_a_long_place_that_was_asked_for_is_refused() -> None:
    with pytest.raises(LinkAddressError, match=r"would have 1\d\d bytes, at most 10\d"):
        locate("job", "/" + "x" * 100)
    with pytest.raises(LinkAddressError, match="MIDCOURSE_SOCKET_DIR"):
        locate("job", environ={"MIDCOURSE_SOCKET_DIR": "/" + "x" * 100})


def test_the_directory_is_made_private(short_dir: Path) -> None:
    directory = short_dir / "a" / "b"
    prepare_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    prepare_directory(directory)


@pytest.mark.parametrize("mode", [0o750, 0o707, 0o777, 0o710, 0o701])
def test_a_directory_that_others_may_enter_is_refused(short_dir: Path, mode: int) -> None:
    short_dir.chmod(mode)
    with pytest.raises(LinkAddressError, match=f"has mode {mode:04o}.*chmod 700"):
        prepare_directory(short_dir)


def test_a_symbolic_link_is_refused(short_dir: Path) -> None:
    (short_dir / "real").mkdir(mode=0o700)
    (short_dir / "link").symlink_to(short_dir / "real")
    (short_dir / "dangling").symlink_to(short_dir / "nothing")
    for name in ("link", "dangling"):
        with pytest.raises(LinkAddressError, match="is a symbolic link"):
            prepare_directory(short_dir / name)


def test_what_is_no_directory_is_refused(short_dir: Path) -> None:
    (short_dir / "file").touch()
    with pytest.raises(LinkAddressError, match=r"can not be used: .*MIDCOURSE_SOCKET_DIR"):
        prepare_directory(short_dir / "file")
    with pytest.raises(LinkAddressError, match="can not be used"):
        prepare_directory(short_dir / "file" / "below")


@pytest.mark.skipif(UID != 0, reason="only root may give a directory away")
def test_another_users_directory_is_refused(short_dir: Path) -> None:
    (short_dir / "theirs").mkdir(mode=0o700)
    os.chown(short_dir / "theirs", 12345, 12345)
    with pytest.raises(LinkAddressError, match=f"belongs to user 12345, not to user {UID}"):
        prepare_directory(short_dir / "theirs")
