"""An agent that somebody else starts, over a directory that both sides mount."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from midcourse.link.v1 import link_pb2
from tests.support.dockerfile import stages
from tests.support.manifests import containers, documents, of_cluster
from tests.support.processes import Process, until
from trainer_agent.link import LinkState, TrainerLink
from trainer_agent.steering.links import default_link


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """What an emptyDir is to a user that does not own it: open to all, with the group handed on."""
    made = tmp_path / "v"
    made.mkdir()
    made.chmod(0o2777)
    return made


@pytest.fixture
def link(volume: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainerLink]:
    """The link of a trainer that has the environment of the manifest's training container."""
    (training,) = [
        each.environment()
        for each in containers(of_cluster(documents()))
        if "MIDCOURSE_START_AGENT" in each.environment()
    ]
    monkeypatch.setenv("MIDCOURSE_START_AGENT", training["MIDCOURSE_START_AGENT"])
    monkeypatch.setenv("MIDCOURSE_SOCKET_DIR", str(volume / "socket"))
    made = default_link(
        job_id=training["JOB_ID"],
        hello=lambda: link_pb2.TrainerHello(instance_id="i"),
        control_plane="127.0.0.1:1",
    )
    assert isinstance(made, TrainerLink)
    made.start()
    yield made
    made.close(timeout=0)


def test_no_agent_is_started_where_a_sidecar_is_to_be(link: TrainerLink, volume: Path) -> None:
    for _ in range(3):
        link.poll()
    assert link.status.state is LinkState.CONNECTING
    assert list((volume / "socket").iterdir()) == []  # one that is started has its log there


def test_a_trainer_meets_its_sidecar(link: TrainerLink, volume: Path, tmp_path: Path) -> None:
    agent = Process(
        "agent",
        [*stages()["agent"].command("ENTRYPOINT")[1:], "--job", "my-run", "--linger", "0"],
        tmp_path,
        MIDCOURSE_SOCKET_DIR=str(volume / "socket"),
    )
    try:

        def connected() -> bool:
            link.poll()
            return link.status.state is LinkState.CONNECTED

        until(connected, f"they meet: {link.status}")
        assert link.status.agent_pid == agent.pid
        assert (volume / "socket").stat().st_mode & 0o077 == 0
        assert agent.kill(signal.SIGTERM) in (0, 1)  # 1: nobody took what it had to say
    finally:
        agent.end()
