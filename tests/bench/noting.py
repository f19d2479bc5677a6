"""Runs a part of Midcourse and writes down when it came by which failpoint.

    python -m tests.bench.noting serve|agent|train NOTES ARGUMENTS ...

Imports as little as it can, as what a process takes is measured too.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpc_runtime import failpoints

MODULES = {
    "serve": "control_plane.cli",
    "agent": "trainer_agent",
    "train": "tests.bench.light_trainer",
}


def note_everything(path: str) -> None:
    """Has every failpoint written down that is come by, instead of failing."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def reached(name: str) -> None:
        os.write(notes, f"{time.time_ns()} {name}\n".encode())

    failpoints._reached = reached


def note_calls() -> None:
    """Has the beginning of a call for an update written down as well."""
    from control_plane.rpc.control_servicer import ControlPlaneServicer

    servicer: Any = ControlPlaneServicer
    method: Callable[..., Any] = servicer.UpdateParameters

    async def noted(*arguments: Any) -> Any:
        failpoints.reached("server.called")
        return await method(*arguments)

    servicer.UpdateParameters = noted


def read(*paths: Path) -> list[tuple[int, str]]:
    """What was written down, in the order of its times, in nanoseconds."""
    lines = [line.split() for path in paths for line in path.read_text().splitlines()]
    return sorted((int(at), name) for at, name in lines)


def main() -> None:
    role, path, *arguments = sys.argv[1:]
    note_everything(path)
    if role == "serve":
        note_calls()
    sys.argv = [MODULES[role], *arguments]
    runpy.run_module(MODULES[role], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
