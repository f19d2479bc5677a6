"""Where the socket of a job lies: a directory that is its owner's alone."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOCKET_DIR_VARIABLE: Final = "MIDCOURSE_SOCKET_DIR"
"""Environment variable that names the directory."""

# sizeof(sockaddr_un.sun_path), which includes a closing zero byte.
_SUN_PATH_BYTES: Final = 108 if sys.platform.startswith("linux") else 104
_SHORT_TEMPORARY_DIRECTORY: Final = "/tmp"  # noqa: S108 - the directory in it is checked below


class LinkAddressError(Exception):
    """The socket directory can not be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where a trainer and its agent meet.

    Attributes:
        directory: The socket directory; see :func:`prepare_directory`.
        name: Common part of the file names, made from the job id.
    """

    directory: Path
    name: str

    @property
    def socket(self) -> Path:
        """The socket that the agent listens on."""
        return self.directory / f"{self.name}.sock"

    @property
    def lock(self) -> Path:
        """Locked by the agent that listens, so that a job has one."""
        return self.directory / f"{self.name}.lock"

    @property
    def log(self) -> Path:
        """Where an agent that a trainer spawned writes its log."""
        return self.directory / f"{self.name}.log"


def locate(
    job_id: str,
    socket_dir: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    temporary_directory: str | None = None,
) -> LinkAddress:
    """Decides where a job's socket lies; touches nothing.

    The first of: ``socket_dir``, ``MIDCOURSE_SOCKET_DIR``, ``$XDG_RUNTIME_DIR/midcourse``,
    ``midcourse-<uid>`` in the temporary directory. A place that was not asked for by name and is
    too long for a socket's address gives way to the next, in the end to ``/tmp``.

    Args:
        job_id: Id of the job.
        socket_dir: Directory asked for; None or empty: none.
        environ: Environment to read; None: this process's.
        temporary_directory: Directory for temporary files; None: this process's.

    Raises:
        LinkAddressError: The directory that was asked for makes the address too long.
    """
    environ = os.environ if environ is None else environ
    # Job ids may be longer than an address allows.
    name = hashlib.sha256(job_id.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    given = os.fspath(socket_dir) if socket_dir else environ.get(SOCKET_DIR_VARIABLE, "")
    if given:
        address = LinkAddress(Path(given).expanduser().absolute(), name)
        if not _fits(address):
            raise LinkAddressError(
                f"the socket directory {str(address.directory)!r} is too long: the socket's "
                f"address would have {len(os.fsencode(address.socket))} bytes, at most "
                f"{_SUN_PATH_BYTES - 1} are allowed here; name a shorter directory in "
                f"{SOCKET_DIR_VARIABLE}"
            )
        return address
    private = f"midcourse-{os.getuid()}"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    candidates = [Path(runtime) / "midcourse"] if runtime.startswith("/") else []
    candidates.append(Path(temporary_directory or tempfile.gettempdir()).absolute() / private)
    candidates.append(Path(_SHORT_TEMPORARY_DIRECTORY) / private)
    return next(
        address
        for directory in candidates
        if _fits(address := LinkAddress(directory, name)) or directory is candidates[-1]
    )


def prepare_directory(directory: Path) -> None:
    """Makes the directory if it is not there, and makes sure that it is ours alone.

    Raises:
        LinkAddressError: It can not be made, is a symbolic link or no directory, belongs to
            another user, or others may enter it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Looked at through a descriptor, so that what was checked is what it was.
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if directory.is_symlink():
            raise LinkAddressError(
                f"the socket directory {str(directory)!r} is a symbolic link, which whoever may "
                f"change it could lead elsewhere; name a real directory in {SOCKET_DIR_VARIABLE}"
            ) from error
        raise LinkAddressError(
            f"the socket directory {str(directory)!r} can not be used: "
            f"{error.strerror or error}; name another one in {SOCKET_DIR_VARIABLE}"
        ) from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if status.st_uid != os.getuid():
        raise LinkAddressError(
            f"the socket directory {str(directory)!r} belongs to user {status.st_uid}, not to "
            f"user {os.getuid()} who runs this process; name one of your own in "
            f"{SOCKET_DIR_VARIABLE}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise LinkAddressError(
            f"the socket directory {str(directory)!r} has mode {mode:04o}: others than its owner "
            f"may reach it; run `chmod 700` on it, or name a directory inside it, which is then "
            f"made with mode 0700, in {SOCKET_DIR_VARIABLE}"
        )


def _fits(address: LinkAddress) -> bool:
    return len(os.fsencode(address.socket)) < _SUN_PATH_BYTES
