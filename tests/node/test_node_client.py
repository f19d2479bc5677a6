"""The Node example against a control plane."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from midcourse.control.v1 import update_pb2
from tests.support.plane import RunningPlane, running_plane
from tests.support.processes import ROOT, Process, free_port, serve, until

FOLDER = ROOT / "examples" / "node"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not (FOLDER / "node_modules").is_dir(),
        reason="its modules are not installed: `make test-node` installs them",
    ),
]


@contextlib.asynccontextmanager
async def set_rate(
    address: str, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs the example; killed at the end if it still runs."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MIDCOURSE_")}
    process = await asyncio.create_subprocess_exec(
        *("node", "set-rate.js", *arguments),
        cwd=FOLDER,
        env={**ours, "MIDCOURSE_CONTROL_PLANE": address, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process, beginning: str) -> str:
    """Waits for a line of its output."""
    assert process.stdout is not None
    before = []
    async with asyncio.timeout(30):
        while text := (await process.stdout.readline()).decode().strip():
            if text.startswith(beginning):
                return text
            before.append(text)
    assert process.stderr is not None
    raise AssertionError(f"no {beginning!r}: {before}, {(await process.stderr.read()).decode()}")


async def failure(
    address: str, *arguments: str, **environment: str
) -> tuple[int | None, list[str]]:
    async with set_rate(address, *arguments, **environment) as process:
        _, errors = await asyncio.wait_for(process.communicate(), 30)
        return process.returncode, errors.decode().splitlines()


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[RunningPlane]:
    async with running_plane(tmp_path / "control.db") as running:
        yield running


async def test_it_sets_a_rate_and_watches_across_a_restart(tmp_path: Path) -> None:
    database, address = tmp_path / "control.db", f"127.0.0.1:{free_port()}"
    async with (
        set_rate_once_served(database, address) as process,
        running_plane(database, listen=address) as plane,
    ):
        made = await plane.update("my-run")
        assert made.revision == 2
        assert "running" in await line(process, "modified")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 0


@contextlib.asynccontextmanager
async def set_rate_once_served(
    database: Path, address: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs the example up to its watch; then the control plane is gone."""
    async with contextlib.AsyncExitStack() as stack:
        async with running_plane(database, listen=address) as plane:
            agent = await plane.agent("my-run")
            process = await stack.enter_async_context(
                set_rate(address, "my-run", "1e-5", "--reason", "the loss is flat")
            )
            (update,) = await agent.receive()
            assert update.spec.reason == "the loss is flat"
            assert update.spec.changes[0].set.value.number == 1e-5
            accepted = await plane.get_update(1, "my-run")
            assert len(accepted.request_id) == 36
            assert await line(process, "accepted") == "accepted as revision 1"
            await agent.apply(1, step=33)
            applied = await line(process, "applied")
            assert applied == "applied at step 33: learning_rate 0.00002 -> 0.00001"
            assert (await plane.get_update(1, "my-run")).state == update_pb2.UPDATE_STATE_APPLIED
            assert "running  step 20" in await line(process, "snapshot")
        yield process


async def test_it_tells_what_was_wrong(plane: RunningPlane) -> None:
    await plane.agent("my-run")
    code, errors = await failure(plane.address, "my-run", "7")
    assert code == 1
    told = "got 7, allowed: at least 0, at most 1 (hard limit)"
    assert errors[0] == f"spec.changes[0].set.value: {told} (INVALID_ARGUMENT, INVALID_ARGUMENT)"
    assert errors[1] == f"  spec.changes[0].set.value: {told}"
    code, errors = await failure(plane.address, "other-run", "1e-5")
    assert code == 1
    assert "(NOT_FOUND, JOB_NOT_FOUND)" in errors[0]


async def test_nobody_answers() -> None:
    code, errors = await failure(f"127.0.0.1:{free_port()}", "my-run", "1e-5")
    assert code == 1
    assert errors[-1].endswith("(UNAVAILABLE)")


async def test_wrong_arguments() -> None:
    code, errors = await failure("127.0.0.1:1", "my-run", "fast")
    assert code == 2
    assert errors == ["usage: node set-rate.js JOB RATE [--reason TEXT] [--for SECONDS]"]


async def test_a_token_is_not_sent_in_the_open() -> None:
    code, errors = await failure("plane.example:1", "my-run", "1e-5", MIDCOURSE_TOKEN="mc_secret")
    assert code == 2
    assert len(errors) == 1
    assert "not sent to plane.example:1 without TLS" in errors[0]
    assert "mc_secret" not in errors[0]


@pytest.fixture
def secrets(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of a certificate and the file of a token, made as docs/deploy.md says."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    page = (ROOT / "docs" / "deploy.md").read_text()
    steps = re.findall(r"```sh\n(mkdir [^`]*openssl [^`]*)```", page)[0]
    home = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(["bash", "-euc", steps], env=home, check=True, capture_output=True)
    token = tmp_path / "token"
    made = Process(
        "token",
        [
            *("-m", "control_plane.cli", "token", "create", "ops", "--role", "admin"),
            *("--database", str(tmp_path / "control.db"), "--save", str(token)),
        ],
        tmp_path,
    )
    assert made.wait(60) == 0, made.tail()
    return tmp_path / ".midcourse" / "tls", token


@pytest.mark.long
async def test_it_connects_over_tls_with_a_token(
    tmp_path: Path, secrets: tuple[Path, Path]
) -> None:
    files, token = secrets
    port = free_port()
    settings = {"tls_cert": files / "tls.crt", "tls_key": files / "tls.key", "auth": "token"}
    server = serve(port, tmp_path, **settings)
    address, ca = f"localhost:{port}", {"MIDCOURSE_TLS_CA": str(files / "ca.crt")}
    try:
        until(lambda: '"serving"' in server.tail(), "it serves")
        known = {**ca, "MIDCOURSE_TOKEN_FILE": str(token)}
        _, errors = await failure(address, "other-run", "1e-5", **known)
        assert "(NOT_FOUND, JOB_NOT_FOUND)" in errors[0]
        _, errors = await failure(address, "other-run", "1e-5", **ca)
        assert "(UNAUTHENTICATED, CREDENTIALS_REQUIRED)" in errors[0]
    finally:
        server.end()
