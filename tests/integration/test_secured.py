"""Server, agent and command over TLS with tokens, at debug level; no secret is left anywhere."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from control_plane.cli.main import app
from tests.support.certificates import Authority
from tests.support.processes import Process, free_port, until
from tests.support.scripted_trainer import TrainerProcess

NOBODY: Mapping[str, str | None] = {"MIDCOURSE_TOKEN": None, "MIDCOURSE_TOKEN_FILE": None}


class Town:
    """A control plane that asks for tokens over TLS, and commands that have some.

    Attributes:
        folder: The server's.
        sockets: The agents'.
        output: All that commands have printed, but for the secrets that they were to show.
    """

    def __init__(self, folder: Path, sockets: Path) -> None:
        self.folder = folder
        self.sockets = sockets
        self.port = free_port()
        self.ca = Authority(folder / "ca")
        self.output = ""
        files = self.ca.server()
        self.server = [
            *("-m", "control_plane.cli", "serve", f"--listen=127.0.0.1:{self.port}"),
            *(f"--database={folder / 'control.db'}", "--log-format=json", "--log-level=debug"),
            *("--auth=token", f"--tls-cert={files.certificate}", f"--tls-key={files.key}"),
        ]

    @property
    def relative_ca(self) -> str:
        return os.path.relpath(self.ca.file)

    async def run(self, line: str, who: Mapping[str, str | None] = NOBODY, code: int = 0) -> str:
        """Runs the command; returns what it printed, or complained."""
        env = {
            **NOBODY,
            "MIDCOURSE_CONTROL_PLANE": f"127.0.0.1:{self.port}",
            "MIDCOURSE_TLS_CA": str(self.ca.file),
            "NO_COLOR": "1",
            "COLUMNS": "120",
            **who,
        }
        done = await asyncio.to_thread(CliRunner().invoke, app, line.split(), env=env)
        assert done.exit_code == code, done.output
        self.output += done.stderr
        if " create " not in line:
            self.output += done.stdout
        return done.stderr if code else done.stdout

    async def json(self, line: str, who: Mapping[str, str | None]) -> Any:
        return json.loads(await self.run(f"-o json {line}", who))

    def logs(self) -> str:
        files = [*self.folder.glob("*.log"), *self.sockets.glob("*.log")]
        return "".join(path.read_text() for path in files)

    def everything(self) -> bytes:
        """What was logged, printed and stored."""
        stored = b"".join(path.read_bytes() for path in self.folder.glob("control.db*"))
        return stored + (self.logs() + self.output).encode()


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Town(tmp_path, Path(path) / "sockets")


@pytest.fixture
def server(town: Town) -> Iterator[Process]:
    """The control plane, whose database has the token of an administrator in it."""

    async def bootstrap() -> None:
        database, file = town.folder / "control.db", town.folder / "admin.token"
        await town.run(f"token create root --role admin --database {database} --save {file}")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    asyncio.run(bootstrap())
    process = Process("control-plane", town.server, town.folder)
    try:
        until(lambda: '"serving"' in process.tail(), "it serves")
        yield process
    finally:
        process.end()


async def test_from_the_first_token_to_a_steered_job(town: Town, server: Process) -> None:
    file = town.folder / "admin.token"
    admin = {"MIDCOURSE_TOKEN_FILE": str(file)}
    secrets = [file.read_text().strip()]
    # The database belongs to the server now.
    database = town.folder / "control.db"
    assert "uses it" in await town.run(f"token list --database {database}", code=1)
    (root,) = (await town.json("token list", admin))["tokens"]
    who = await town.run("whoami", admin)
    assert who == f"root: admin, all jobs, by {root['name']}\n"
    agents = await town.json("token create agents --role agent --job run-*", admin)
    viewer = await town.run("token create eve --role viewer -l team=cv --lifetime 12h", admin)
    secrets += [agents["secret"], viewer.splitlines()[-1]]
    eve = {"MIDCOURSE_TOKEN": secrets[-1]}

    # An agent with its own token serves a job of its own.
    trainer = await TrainerProcess.start(
        environ={
            "MIDCOURSE_TOKEN": agents["secret"],
            # Relative to where the trainer runs, which is not where its agent does.
            "MIDCOURSE_TLS_CA": town.relative_ca,
        },
        job_id="run-1",
        socket_dir=str(town.sockets),
        control_plane=f"127.0.0.1:{town.port}",
        agent_arguments=["--log-level", "debug"],
    )
    try:
        await trainer.ready()
        async with asyncio.timeout(30):
            while not (jobs := (await town.json("jobs", admin)).get("jobs")):
                pass
        assert [job["name"] for job in jobs] == ["jobs/run-1"]
        assert await town.json("jobs", eve) == {}
        assert "operator" in await town.run("delete run-1", eve, code=4)
        assert "no job 'run-1'" in await town.run("job run-1", eve, code=3)
        await town.run("set run-1 learning_rate=1e-4", admin)
        assert await trainer.poll_until(1) == ["delivery 1"]
        await town.run(f"token revoke {agents['token']['name']}", admin)
        await asyncio.to_thread(until, lambda: "TOKEN_ENDED" in town.logs(), "its stream ends")
    finally:
        await trainer.kill()

    # What is wrong is said, with what to do.
    unknown = "mc_" + "x" * 43
    secrets += [unknown, "two words"]
    assert "MIDCOURSE_TOKEN_FILE" in await town.run("jobs", code=4)
    assert "not one of this" in await town.run("jobs", {"MIDCOURSE_TOKEN": unknown}, code=4)
    assert "holds no token" in await town.run("jobs", {"MIDCOURSE_TOKEN": "two words"}, code=2)
    assert "MIDCOURSE_TLS_CA" in await town.run("jobs", {**eve, "MIDCOURSE_TLS_CA": None}, code=5)
    assert "revoked" in await town.run("token list --all", admin)
    assert server.kill(signal.SIGTERM) == 0
    content = town.everything()
    assert b"run-1" in content
    for secret in secrets:
        assert secret.encode() not in content
