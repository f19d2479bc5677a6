"""How a process ended that is not a child of this one. What can not be learnt stays unknown."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from pathlib import Path
from typing import Final

from midcourse.control.v1 import job_pb2

# <linux/pidfd.h>, since Linux 6.15: struct pidfd_info as first published, and the ioctl for it.
_PIDFD_INFO: Final = struct.Struct("=QQ 11I i")
_PIDFD_INFO_EXIT: Final = 1 << 3
_READ_WRITE: Final = 3
_PIDFD_GET_INFO: Final = (_READ_WRITE << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11


def wait_status_of_reaped(pidfd: int) -> int | None:
    """Returns the wait status of a process that its parent has collected; None: not known.

    It has not been collected yet, or the kernel is older than Linux 6.15.
    """
    request = bytearray(_PIDFD_INFO.size)
    struct.pack_into("=Q", request, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(request)
    return status if mask & _PIDFD_INFO_EXIT else None


def wait_status_of_zombie(pidfd: int) -> int | None:
    """Returns the wait status of a process that its parent has not collected yet; None: not known.

    It has been collected, or /proc does not show it.
    """
    try:
        pid = _pid_of(pidfd)
        if pid is None:
            return None
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The name, in parentheses, may hold anything; the state follows it.
        state, *rest = fields.rpartition(")")[2].split()
        # The number may be another process's by now: only while ours is there is it ours.
        return int(rest[-1]) if state == "Z" and _pid_of(pidfd) == pid else None
    except (OSError, ValueError):
        return None


def _pid_of(pidfd: int) -> int | None:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "Pid":
            pid = int(value)
            return pid if pid > 0 else None
    return None


def describe_exit(wait_status: int | None) -> job_pb2.TrainerExit:
    """Returns how a process ended, in numbers and words.

    Args:
        wait_status: As waitpid() gives it; None: unknown.
    """
    if wait_status is None:
        return job_pb2.TrainerExit(message="the training process ended; its exit code is unknown")
    if os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        hint = (
            ": by a person, a scheduler, or the kernel when memory ran out"
            if number == signal.SIGKILL
            else ""
        )
        return job_pb2.TrainerExit(
            signal=number, message=f"the training process was killed by {name}{hint}"
        )
    code = os.WEXITSTATUS(wait_status)
    return job_pb2.TrainerExit(
        exit_code=code, message=f"the training process exited with code {code}"
    )
