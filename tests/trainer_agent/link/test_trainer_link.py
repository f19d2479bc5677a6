"""The trainer's end, against an agent's end that the test plays."""

from __future__ import annotations

import gc
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from tests.support.scripted_trainer import applied, step_message
from trainer_agent.link import LinkState, TrainerLink, locate
from trainer_agent.link.framing import FrameDecoder, frame
from trainer_agent.link.spawn import LOG_LIMIT_BYTES, AgentSpawner, cut_log


class PlayedAgent:
    """Listens where an agent would, and does what the test says."""

    def __init__(self, directory: Path) -> None:
        self.address = locate("job", directory)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.settimeout(10)
        self.listener.bind(str(self.address.socket))
        self.listener.listen()
        self.connection: socket.socket | None = None
        self.decoder = FrameDecoder()
        self.received: list[link_pb2.TrainerMessage] = []

    def accept(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(10)
        self.decoder = FrameDecoder()

    def send(self, **message: object) -> None:
        packed = link_pb2.AgentMessage(**message)  # type: ignore[arg-type]  # one of its fields
        self.send_bytes(frame(packed.SerializeToString()))

    def send_bytes(self, data: bytes) -> None:
        assert self.connection is not None
        self.connection.sendall(data)

    def welcome(self, version: int = 1) -> None:
        self.send(welcome=link_pb2.AgentWelcome(protocol_version=version, pid=77))

    def take(self, count: int) -> list[link_pb2.TrainerMessage]:
        """Returns the next messages."""
        assert self.connection is not None
        while len(self.received) < count:
            data = self.connection.recv(1 << 20)
            assert data, "the trainer closed the connection"
            self.received += map(link_pb2.TrainerMessage.FromString, self.decoder.feed(data))
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def close(self) -> None:
        self.listener.close()
        if self.connection is not None:
            self.connection.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def agent(directory: Path) -> Iterator[PlayedAgent]:
    played = PlayedAgent(directory)
    yield played
    played.close()


hellos = 0


def hello() -> link_pb2.TrainerHello:
    global hellos  # noqa: PLW0603 - counts calls
    hellos += 1
    return link_pb2.TrainerHello(instance_id="i", start_step=hellos)


@pytest.fixture
def link(directory: Path) -> Iterator[TrainerLink]:
    made = TrainerLink(
        job_id="job", hello=hello, control_plane="here:1", socket_dir=directory, spawn=False
    )
    yield made
    made.close(timeout=0)


def poll_until(link: TrainerLink, condition: Callable[[], bool]) -> list[link_pb2.AgentMessage]:
    messages: list[link_pb2.AgentMessage] = []
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        messages += link.poll()
        time.sleep(0.001)
    return messages + list(link.poll())


def connected(link: TrainerLink) -> Callable[[], bool]:
    return lambda: link.status.state is LinkState.CONNECTED


def begin(link: TrainerLink, agent: PlayedAgent) -> link_pb2.TrainerHello:
    link.start()
    link.poll()
    agent.accept()
    agent.welcome()
    poll_until(link, connected(link))
    return agent.take(1)[0].hello


def kinds(messages: list[link_pb2.TrainerMessage]) -> list[str | None]:
    return [message.WhichOneof("message") for message in messages]


def test_the_hello_comes_first_and_is_filled_in(link: TrainerLink, agent: PlayedAgent) -> None:
    link.send(step_message(1, {}))
    said = begin(link, agent)
    assert (said.protocol_version, said.job_id, said.pid) == (1, "job", os.getpid())
    assert (said.control_plane, said.instance_id) == ("here:1", "i")
    assert agent.take(1)[0].step.step == 1
    status = link.status
    assert (status.state, status.agent_pid, status.connections) == (LinkState.CONNECTED, 77, 1)


def test_messages_pass_both_ways_in_order(link: TrainerLink, agent: PlayedAgent) -> None:
    begin(link, agent)
    for step in range(1, 101):
        link.send(step_message(step, {"loss": 1.0}))
    assert [message.step.step for message in agent.take(100)] == list(range(1, 101))
    for revision in range(1, 51):
        agent.send(withdrawal=session_pb2.Withdrawal(revision=revision))
    got: list[link_pb2.AgentMessage] = []
    while len(got) < 50:
        got += link.poll()
    assert [message.withdrawal.revision for message in got] == list(range(1, 51))
    assert link.poll() == ()


def test_a_message_larger_than_the_sockets_buffer_arrives_whole(
    link: TrainerLink, agent: PlayedAgent
) -> None:
    begin(link, agent)
    big = link_pb2.TrainerMessage(fault=session_pb2.Fault(component="x", message="y" * 1_000_000))
    link.send(big)
    link.send(step_message(1, {}))
    received: list[link_pb2.TrainerMessage] = []
    assert agent.connection is not None
    while len(received) < 2:
        link.poll()
        data = agent.connection.recv(1 << 20)
        received += map(link_pb2.TrainerMessage.FromString, agent.decoder.feed(data))
    assert received[0] == big
    assert received[1].step.step == 1


def test_with_an_agent_that_does_not_read_steps_thin_out_and_outcomes_stay(
    link: TrainerLink, agent: PlayedAgent
) -> None:
    begin(link, agent)
    slowest = 0.0
    for step in range(1, 60_001):
        if step % 1000 == 0:
            link.send(link_pb2.TrainerMessage(outcome=applied(step // 1000, step)))
        begun = time.perf_counter()
        link.send(step_message(step, {"loss": 1.0, "learning_rate": 1e-4}))
        link.poll()
        slowest = max(slowest, time.perf_counter() - begun)
    assert link.status.buffered_bytes <= 1024 * 1024
    assert link.status.dropped_steps > 0
    assert slowest < 0.5
    dropped = link.status.dropped_steps
    assert agent.connection is not None
    agent.connection.settimeout(0.01)
    received: list[link_pb2.TrainerMessage] = []
    while link.status.buffered_bytes or len(received) < 60_060 - dropped:
        link.poll()
        try:
            data = agent.connection.recv(1 << 20)
        except TimeoutError:
            continue
        received += map(link_pb2.TrainerMessage.FromString, agent.decoder.feed(data))
    steps = [each.step.step for each in received if each.HasField("step")]
    outcomes = [each.outcome.revision for each in received if each.HasField("outcome")]
    assert outcomes == list(range(1, 61))
    assert steps == sorted(steps)
    assert len(steps) + dropped == 60_000
    assert (steps[0], steps[-1]) == (1, 60_000)


def test_after_the_agents_death_a_new_hello_goes_first_and_covers_outcomes(
    link: TrainerLink, agent: PlayedAgent
) -> None:
    first = begin(link, agent)
    assert agent.connection is not None
    agent.connection.close()
    poll_until(link, lambda: link.status.state is LinkState.CONNECTING)
    link.send(link_pb2.TrainerMessage(outcome=applied(1, 5)))
    link.send(link_pb2.TrainerMessage(state=session_pb2.FullState()))
    link.send(step_message(6, {}))
    link.send(link_pb2.TrainerMessage(fault=session_pb2.Fault(component="x")))
    agent.connection = None
    while link.status.buffered_bytes:
        link.poll()
    agent.accept()
    messages = agent.take(3)
    assert kinds(messages) == ["hello", "step", "fault"]
    assert messages[0].hello.start_step > first.start_step  # the callable was asked again


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\xff\xff\xff\xff", id="length beyond the limit"),
        pytest.param(frame(b"\xff\xff\xff"), id="no protobuf"),
    ],
)
def test_malformed_input_closes_the_connection_and_another_is_made(
    link: TrainerLink, agent: PlayedAgent, garbage: bytes
) -> None:
    begin(link, agent)
    agent.send_bytes(garbage)
    poll_until(link, lambda: link.status.state is LinkState.CONNECTING)
    assert "can not be read" in link.status.message
    deadline = time.monotonic() + 10
    agent.listener.settimeout(0.01)
    while True:
        assert time.monotonic() < deadline
        link.poll()
        try:
            agent.accept()
        except TimeoutError:
            continue
        break
    agent.welcome()
    poll_until(link, connected(link))
    assert link.status.message == ""


def test_messages_of_a_newer_agent_are_passed_over(link: TrainerLink, agent: PlayedAgent) -> None:
    begin(link, agent)
    agent.send_bytes(frame(b"\xf2\x06\x00"))  # field 110, which is not known
    agent.send(withdrawal=session_pb2.Withdrawal(revision=3))
    got: list[link_pb2.AgentMessage] = []
    while not got:
        got += link.poll()
    assert [message.withdrawal.revision for message in got] == [3]
    assert link.status.state is LinkState.CONNECTED


def test_detached_for_good_is_told_once_and_ends_all_attempts(
    link: TrainerLink, agent: PlayedAgent
) -> None:
    begin(link, agent)
    agent.send(detached=link_pb2.Detached(reason="INSTANCE_SUPERSEDED", message="moved"))
    got = poll_until(link, lambda: link.status.state is LinkState.DETACHED)
    assert [message.detached.message for message in got] == ["moved"]
    assert (link.status.reason, link.status.message) == ("INSTANCE_SUPERSEDED", "moved")
    link.send(step_message(1, {}))
    assert link.poll() == ()
    assert link.status.buffered_bytes == 0
    assert not link.wait_ready(1.0)


def test_detached_for_a_while_ends_with_a_welcome(link: TrainerLink, agent: PlayedAgent) -> None:
    begin(link, agent)
    agent.send(detached=link_pb2.Detached(reason="PERMISSION_DENIED", message="no"))
    poll_until(link, lambda: link.status.state is LinkState.DETACHED)
    agent.welcome()
    poll_until(link, connected(link))
    assert link.status.reason == ""


def test_an_agent_of_another_wire_version_is_left(link: TrainerLink, agent: PlayedAgent) -> None:
    link.start()
    link.poll()
    agent.accept()
    agent.welcome(version=9)
    got = poll_until(link, lambda: link.status.state is LinkState.DETACHED)
    assert [message.detached.reason for message in got] == ["LINK_VERSION_UNSUPPORTED"]
    assert "version 9" in link.status.message


def test_a_hello_that_fails_is_a_trouble_and_no_exception(
    directory: Path, agent: PlayedAgent
) -> None:
    def broken() -> link_pb2.TrainerHello:
        raise RuntimeError("no state")

    link = TrainerLink(job_id="job", hello=broken, socket_dir=directory, spawn=False)
    link.start()
    link.poll()
    assert "RuntimeError: no state" in link.status.message
    assert link.status.state is LinkState.CONNECTING
    link.close(timeout=0)


def test_troubles_that_alternate_are_logged_once_each_until_the_agent_answers(
    link: TrainerLink, agent: PlayedAgent, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        link._note("no agent")
        link._note("no connection")
    assert [record.getMessage() for record in caplog.records] == [
        "job job: no agent; training goes on",
        "job job: no connection; training goes on",
    ]
    begin(link, agent)
    link._note("no agent")
    assert len(caplog.records) == 3
    for number in range(1000):
        link._note(f"a message of {number} bytes is too large")
    assert len(caplog.records) < 50
    assert "999 bytes" in link.status.message


def test_where_the_agent_writes_its_log_is_said_as_it_is_started(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(AgentSpawner, "spawn_if_due", lambda _: None)
    link = TrainerLink(job_id="job", hello=hello, socket_dir=directory)
    with caplog.at_level(logging.INFO, "trainer_agent"):
        link.start()
    assert str(locate("job", directory).log) in caplog.text
    link.close(timeout=0)


def test_the_log_of_an_agent_is_emptied_where_it_has_grown_large(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab", buffering=0) as log:
        log.write(b"little\n")
        cut_log(log.fileno())
        assert log.tell() == 7
        log.truncate(LOG_LIMIT_BYTES + 1)
        cut_log(log.fileno())
        log.write(b"goes on\n")
    assert (tmp_path / "log").read_bytes() == b"goes on\n"


def test_an_unsafe_directory_detaches_and_raises_nothing(directory: Path) -> None:
    directory.chmod(0o777)
    link = TrainerLink(job_id="job", hello=hello, socket_dir=directory)
    link.start()
    assert link.status.reason == "SOCKET_DIRECTORY_UNUSABLE"
    assert "chmod 700" in link.status.message
    link.send(step_message(1, {}))
    (told,) = link.poll()
    assert told.detached.reason == "SOCKET_DIRECTORY_UNUSABLE", "the session has to know"
    assert link.poll() == ()
    assert not link.close()


def test_close_says_goodbye_and_returns_when_it_is_taken(
    link: TrainerLink, agent: PlayedAgent
) -> None:
    begin(link, agent)
    link.send(step_message(1, {}))
    assert link.close(error="ValueError: x")
    messages = agent.take(2)
    assert kinds(messages) == ["step", "goodbye"]
    assert messages[1].goodbye.error == "ValueError: x"
    assert link.status.state is LinkState.CLOSED
    assert not link.close()
    link.send(step_message(2, {}))
    assert link.poll() == ()


def test_close_without_an_agent_is_bounded(link: TrainerLink) -> None:
    link.start()
    link.send(step_message(1, {}))
    begun = time.monotonic()
    assert not link.close(timeout=0.2)
    assert 0.15 < time.monotonic() - begun < 5


def test_a_forked_child_neither_uses_nor_breaks_the_connection(
    link: TrainerLink, agent: PlayedAgent
) -> None:
    begin(link, agent)
    child = os.fork()
    if child == 0:
        link.send(step_message(999, {}))
        silent = link.poll() == () and link.status.state is LinkState.CLOSED
        os._exit(0 if silent else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    link.send(step_message(1, {}))
    assert agent.take(1)[0].step.step == 1
    assert connected(link)()


def test_a_link_that_is_dropped_leaves_nothing_behind(directory: Path) -> None:
    link = TrainerLink(job_id="job", hello=hello, socket_dir=directory, spawn=False)
    link.start()
    del link
    gc.collect()


IMPORTS = """
import sys
import trainer_agent.link
loaded = [name for name in ("grpc", "torch", "transformers", "asyncio", "structlog")
          if name in sys.modules]
import threading
assert loaded == [], loaded
assert threading.active_count() == 1
"""


def test_importing_the_link_loads_neither_grpc_nor_torch() -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=60, env=_environment())


def _environment() -> dict[str, str]:
    root = Path(__file__).parents[3]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "protos")])}


def test_a_paused_run_waits_for_what_comes(link: TrainerLink, agent: PlayedAgent) -> None:
    begin(link, agent)
    begun = time.monotonic()
    link.wait(0.05)
    assert time.monotonic() - begun >= 0.04
    agent.send(withdrawal=session_pb2.Withdrawal(revision=7))
    begun = time.monotonic()
    received: list[link_pb2.AgentMessage] = []
    waits = 0
    while not received:
        link.wait(30)
        waits += 1
        received += link.poll()
    assert received[0].withdrawal.revision == 7
    assert waits <= 8, "it may look for the message a few times, but must not spin"
    assert time.monotonic() - begun < 10


def test_a_paused_run_without_an_agent_sleeps(link: TrainerLink, agent: PlayedAgent) -> None:
    link.start()
    link.poll()
    agent.close()
    begun, waits = time.monotonic(), 0
    while time.monotonic() - begun < 0.3:
        link.wait(0.1)
        link.poll()
        waits += 1
    assert waits < 30
