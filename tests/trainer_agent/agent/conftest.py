"""Real agent processes between a scripted trainer process and a scripted control plane."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripted_agent_service import ScriptedAgentService
from tests.support.scripted_trainer import TrainerProcess


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path) / "sockets"


@pytest.fixture
async def service() -> AsyncIterator[ScriptedAgentService]:
    made = ScriptedAgentService()
    await made.start()
    yield made
    await made.stop()


class World:
    """Starts trainers, and knows the agents that they started."""

    def __init__(self, service: ScriptedAgentService, socket_dir: Path) -> None:
        self.service = service
        self.socket_dir = socket_dir
        self.trainers: list[TrainerProcess] = []

    async def trainer(self, **options: Any) -> TrainerProcess:
        """Starts a trainer, which starts its agent."""
        options = {
            "job_id": "job",
            "socket_dir": str(self.socket_dir),
            "control_plane": self.service.target,
            **options,
        }
        trainer = await TrainerProcess.start(**options)
        self.trainers.append(trainer)
        return trainer

    async def served_trainer(self, **options: Any) -> TrainerProcess:
        """Starts a trainer and waits until the control plane has heard of it."""
        known = len(self.service.streams)
        trainer = await self.trainer(**options)
        await trainer.ready()
        await self.service.until(lambda: len(self.service.streams) > known)
        return trainer

    def log(self) -> list[dict[str, Any]]:
        """What all agents have logged."""
        return [
            json.loads(line)
            for path in sorted(self.socket_dir.glob("*.log"))
            for line in path.read_text("utf-8").splitlines()
            if line.startswith("{")
        ]

    def agents(self) -> list[int]:
        """Process ids of all agents that began to listen."""
        return [event["pid"] for event in self.log() if event["event"] == "listening"]

    def agent_megabytes(self) -> float:
        """Resident memory of the first agent."""
        return rss_in_megabytes(self.agents()[0])

    def agent_maps(self) -> str:
        """What the first agent has mapped."""
        return mapped_files(self.agents()[0])

    def tracebacks(self) -> str:
        text = "".join(path.read_text("utf-8") for path in self.socket_dir.glob("*.log"))
        return text if "Traceback" in text else ""

    async def until_gone(self, pid: int, timeout: float = 30.0) -> None:
        await self.service.until(lambda: not lives(pid), timeout)

    async def end(self) -> None:
        """Ends every process of this world; an agent left would look for other tests' servers."""
        for trainer in self.trainers:
            await trainer.kill()
        for pid in agents_of(self.socket_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def agents_of(socket_dir: Path) -> list[int]:
    """Process ids of the agents that use a directory, whether they listen yet or not."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if (
                entry.name.isdigit()
                and (entry / "cmdline")
                .read_bytes()
                .find(b"\0--socket-dir\0" + os.fsencode(socket_dir) + b"\0")
                >= 0
            ):
                found.append(int(entry.name))
    return found


def lives(pid: int) -> bool:
    """Tells whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def rss_in_megabytes(pid: int) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def mapped_files(pid: int) -> str:
    """What a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text("ascii", errors="replace")


@pytest.fixture
async def world(service: ScriptedAgentService, socket_dir: Path) -> AsyncIterator[World]:
    made = World(service, socket_dir)
    yield made
    print(*made.log(), sep="\n")  # shown where a test fails
    await made.end()
    assert made.tracebacks() == ""
