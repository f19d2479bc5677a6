"""What an agent connects with, and what its trainer hears where it can not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from grpc_runtime.client.credentials import Credentials
from trainer_agent.agent.connector import CREDENTIALS_UNUSABLE, Connector
from trainer_agent.agent.options import parse_options
from trainer_agent.agent.refusals import Refusal
from trainer_agent.link.spawn import agent_environment


def test_the_command_line_comes_before_the_environment() -> None:
    environ = {
        "JOB_ID": "j",
        "MIDCOURSE_TOKEN": "mc_secret",
        "MIDCOURSE_TLS_CA": "/ca.pem",
        "MIDCOURSE_CLIENT_CERT": "/c",
        "MIDCOURSE_CLIENT_KEY": "/k",
    }
    options = parse_options([], environ)
    assert options.credentials == Credentials("mc_secret", None, "/ca.pem", Path("/c"), Path("/k"))
    assert "mc_secret" not in repr(options)
    options = parse_options(
        [
            *("--token-file", "/t", "--tls-ca", "system"),
            *("--client-cert", "/c2", "--client-key", "/k2"),
        ],
        environ,
    )
    assert options.credentials == Credentials("", Path("/t"), "system", Path("/c2"), Path("/k2"))


class Trainer:
    """Hears why it is not served."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Refusal] = asyncio.Queue()

    def refused(self, why: Refusal) -> None:
        self.heard.put_nowait(why)

    def trainer_connected(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("target", "credentials", "says"),
    [
        ("127.0.0.1:1", Credentials(token_file=Path("/nowhere/token")), "/nowhere/token"),
        ("127.0.0.1:1", Credentials(ca="/nowhere/ca.pem"), "/nowhere/ca.pem"),
        ("plane.example:1", Credentials(token="mc_secret"), "without TLS"),
    ],
)
async def test_credentials_that_can_not_be_used_are_told_to_the_trainer(
    target: str, credentials: Credentials, says: str
) -> None:
    trainer = Trainer()
    session: Any = object()
    connector = Connector(
        target, new_session=lambda: session, events=trainer, credentials=credentials
    )
    running = asyncio.create_task(connector.run())
    try:
        async with asyncio.timeout(10):
            why = await trainer.heard.get()
    finally:
        running.cancel()
    assert why.reason == CREDENTIALS_UNUSABLE
    assert says in why.message
    assert "mc_secret" not in why.message


def test_an_agent_finds_the_files_from_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIDCOURSE_TOKEN_FILE", "secrets/token")
    monkeypatch.setenv("MIDCOURSE_TLS_CA", "system")
    monkeypatch.setenv("MIDCOURSE_CLIENT_CERT", "/a/cert")
    monkeypatch.delenv("MIDCOURSE_CLIENT_KEY", raising=False)
    environment = agent_environment()
    assert environment["MIDCOURSE_TOKEN_FILE"] == str(tmp_path / "secrets" / "token")
    assert environment["MIDCOURSE_TLS_CA"] == "system"
    assert environment["MIDCOURSE_CLIENT_CERT"] == "/a/cert"
    assert "MIDCOURSE_CLIENT_KEY" not in environment
