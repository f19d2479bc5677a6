"""The conversation, on a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from control_plane.cli.exits import ExitCode
from grpc_runtime.errors import StatusError
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.control.v1 import update_pb2
from tests.control_plane.cli.analytics.conftest import Service
from tests.support import analytics_answers as made
from tests.support.fake_control_plane import FakeControlPlane
from tests.support.processes import ROOT
from tests.support.scripted_analytics import ScriptedAnalytics, delta

PROMPT = "> "

# A process of its own session takes the terminal, so that Ctrl-C is a signal as for people.
IN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from control_plane.cli.main import main
main()
"""


class Terminal:
    """The command on a terminal, and a person who waits for what is shown."""

    def __init__(self, state: Path, *args: str, **env: str) -> None:
        self._parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
        inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        path = f"{ROOT}{os.pathsep}{ROOT / 'protos'}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *args],
            env={
                **inherited,
                "PYTHONPATH": path,
                "TERM": "xterm",
                "XDG_STATE_HOME": str(state),
                "INPUTRC": os.devnull,
                **env,
            },
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
        )
        os.close(child)
        self._new = ""
        self.raw = ""

    def read(self, wanted: str = "", seconds: float = 30) -> str:
        """Returns what is shown until a text shows, without a text until the end."""
        deadline = time.monotonic() + seconds
        while not wanted or wanted not in self._new:
            assert time.monotonic() < deadline, f"waited for {wanted!r}: {self._new}"
            if not select.select([self._parent], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._parent, 65536).decode(errors="replace")
            except OSError:  # Linux: the other side is closed
                data = ""
            if not data:
                assert not wanted, f"it ended before {wanted!r}: {self._new}"
                break
            self.raw += data
            self._new += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", data)
        end = self._new.index(wanted) + len(wanted) if wanted else len(self._new)
        shown, self._new = self._new[:end], self._new[end:]
        return shown

    def type(self, text: str) -> None:
        os.write(self._parent, text.encode(errors="surrogateescape"))

    def ask(self, text: str, until: str = f"\n{PROMPT}") -> str:
        """Types a line and returns what is shown up to the next prompt."""
        self.type(f"{text}\r")
        return self.read(until)

    def interrupt(self, wanted: str) -> str:
        """Presses Ctrl-C until a text shows, as people do.

        Python misses the signal for a while where it comes just before it waits for a key.
        """
        for _ in range(10):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.read(wanted, seconds=2)
        raise AssertionError(f"Ctrl-C does nothing: {self._new}")

    def leave(self) -> int:
        self.type("\x04")
        self.read()
        return self._process.wait(30)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)
        os.close(self._parent)


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(service: Service, plane: FakeControlPlane, tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_(*args: str, **env: str) -> Terminal:
        addresses = {
            "MIDCOURSE_ANALYTICS": service.address,
            "MIDCOURSE_CONTROL_PLANE": plane.address,
        }
        opened.append(Terminal(tmp_path, *(args or ("chat",)), **(addresses | env)))
        return opened[-1]

    service.scripted.responses |= {
        "ListModels": [pb.ListModelsResponse(models=made.models())],
        "GetSession": [pb.GetSessionResponse(session=made.session())],
        "ListMessages": [pb.ListMessagesResponse(messages=[made.answer("It spiked.")])],
        "GetUsage": [pb.GetUsageResponse(summaries=[made.summary("m")], total=made.summary())],
        "UpdateSession": [pb.UpdateSessionResponse(session=made.session(model_id="gpt-4o-mini"))],
    }
    yield open_
    for each in opened:
        each.close()


def test_a_conversation(
    terminal: Open, scripted: ScriptedAnalytics, plane: FakeControlPlane, tmp_path: Path
) -> None:
    scripted.chats = [made.with_tools()]
    screen = terminal("chat", "--model", "luna")
    screen.read(PROMPT)
    assert "nothing is proposed" in screen.ask("/apply")
    answer = screen.ask("why did it spike?")
    for needed in (
        "gpt-6-luna, the session's · session s1",
        "I look at the loss.",
        "⚙ metric_series my-run loss 1–200 → loss 200 samples, spike at 120 (12 ms)",
        "The loss spiked at step 120:",  # Markdown, rendered
        " • before: 1.2",
        "proposed: my-run: learning_rate → 1e-05",
        "sources: my-run loss, steps 1–200 · my-run updates",
        "$0.0132 · 3.2 s",
        "/apply submits",
    ):
        assert needed in answer
    assert "\x1b[1mspiked" in screen.raw
    assert "did you mean /apply?" in screen.ask("/aply")
    assert "/cost" in screen.ask("/help")
    assert "total" in screen.ask("/cost")

    screen.ask("/apply", until="[y/N] ")
    assert "nothing was changed" in screen.ask("")
    assert not plane.updates["jobs/my-run"]
    assert "a number from 1 to 1" in screen.ask("/apply 2")
    screen.ask("/apply 1", until="[y/N] ")
    applied = screen.ask("y")
    assert "accepted as revision 1" in applied
    assert "APPLIED at step 121, learning_rate 2e-05 → 1e-05" in applied
    (sent,) = [request for name, request in plane.calls if name == "UpdateParameters"]
    assert sent == made.proposal().request

    screen.ask("and now?")
    assert screen.leave() == ExitCode.OK
    first, second = scripted.requests("Chat")
    assert (first.session, first.model_id) == ("", "luna")
    assert (second.session, second.model_id) == ("sessions/s1", "")
    assert first.request_id != second.request_id
    history = tmp_path / "midcourse" / "chat_history"
    assert "why did it spike?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_nothing_else(
    terminal: Open, service: Service, scripted: ScriptedAnalytics
) -> None:
    scripted.chats = [(made.started(), delta("It goes on"), asyncio.Event()), made.with_tools()]
    screen = terminal()
    screen.read(PROMPT)
    screen.ask("why?", until="It goes on")
    screen.type("\x03")
    assert "stopped; what there is of the answer is kept" in screen.read(f"\n{PROMPT}")

    async def ended() -> None:
        async with asyncio.timeout(20):
            await scripted.chat_ended.wait()

    service.do(ended)  # the service was told
    screen.type("half a line")
    screen.read("half a line")
    assert "/quit leaves" in screen.interrupt("leaves\n" + PROMPT)
    assert "spiked" in screen.ask("once more")
    screen.type("/quit\r")
    screen.read()
    assert scripted.requests("Chat")[1].content == "once more"
    assert "Traceback" not in screen.raw


def test_models_are_switched(terminal: Open, scripted: ScriptedAnalytics) -> None:
    screen = terminal()
    screen.read(PROMPT)
    assert "claude-3-5-sonnet can not be chosen: it was" in screen.ask("/model claude-3-5-sonnet")
    assert "did you mean gpt-6-luna?" in screen.ask("/model gpt-6-lunar")
    assert "gpt-6-luna answers from now on" in screen.ask("/model LUNA")
    assert "in use" in screen.ask("/model")
    screen.ask("why?")
    assert scripted.requests("Chat")[0].model_id == "gpt-6-luna"
    assert "gpt-4o-mini answers from now on" in screen.ask("/model gpt-4o-mini")
    refusal = StatusError(grpc.StatusCode.INVALID_ARGUMENT, "no such model", reason="MODEL_UNKNOWN")
    scripted.failures["UpdateSession"] = [refusal]
    assert "midcourse: no such model" in screen.ask("/model nope")
    assert scripted.requests("UpdateSession")[0].session.model_id == "gpt-4o-mini"
    assert screen.leave() == ExitCode.OK


def test_a_session_goes_on_with_its_drafts(
    terminal: Open, scripted: ScriptedAnalytics, plane: FakeControlPlane
) -> None:
    drafted = made.answer("Lower it.")
    drafted.parts.add(proposed_update=made.proposal())
    scripted.responses["ListMessages"] = [pb.ListMessagesResponse(messages=[drafted])]
    plane.settle_as = update_pb2.UPDATE_STATE_REJECTED
    screen = terminal("chat", "--session", "s1")
    assert "session s1: Why did the loss spike?, 2 messages" in screen.read(PROMPT)
    screen.ask("/apply", until="[y/N] ")
    assert "was not applied: REJECTED" in screen.ask("y")
    assert screen.leave() == ExitCode.OK


def test_failures_do_not_end_the_conversation(terminal: Open, scripted: ScriptedAnalytics) -> None:
    broke = StatusError(grpc.StatusCode.UNAVAILABLE, "it broke off", reason="PROVIDER_TIMEOUT")
    scripted.chats = [(made.started(), delta("It"), broke)]
    screen = terminal()
    screen.read(PROMPT)
    assert "midcourse: it broke off" in screen.ask("why?")
    assert screen.leave() == ExitCode.OK


def test_bytes_that_are_no_text_do_not_end_the_conversation(terminal: Open) -> None:
    screen = terminal()
    screen.read(PROMPT)
    assert "that is no UTF-8 text; nothing was asked" in screen.ask("why \udcff?")
    assert "/cost" in screen.ask("/help")


def test_nobody_answers_at_the_start(terminal: Open) -> None:
    screen = terminal(MIDCOURSE_ANALYTICS="127.0.0.1:1")
    assert "is `midcourse analytics serve` running there?" in screen.read()


def test_no_colours_and_a_narrow_terminal(terminal: Open, scripted: ScriptedAnalytics) -> None:
    scripted.chats = [made.with_tools()]
    screen = terminal("chat", "why?", NO_COLOR="1", COLUMNS="40")
    shown = screen.read()
    assert "spiked" in shown
    assert "\x1b[3" not in screen.raw
    assert not re.search(r"\x1b\]8", screen.raw)  # no hidden links


# As a process in a pipe


def command(service: Service, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "control_plane.cli", *args],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}",
            "MIDCOURSE_ANALYTICS": service.address,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_goes_away_stops_the_answer(
    service: Service, scripted: ScriptedAnalytics
) -> None:
    """What `midcourse chat … | head -1` does."""
    gone = asyncio.Event()
    scripted.chats = [(made.started(), delta("one\n"), gone, *(delta("more\n") for _ in range(99)))]
    with command(service, "chat", "-q", "why?") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()

        async def go_on() -> None:
            gone.set()

        service.do(go_on)
        assert process.wait(60) == ExitCode.BROKEN_PIPE
        assert process.stderr.read() == b""


def test_ctrl_c_in_a_pipe_is_quiet(service: Service, scripted: ScriptedAnalytics) -> None:
    import signal

    scripted.chats = [(made.started(), delta("one\n"), asyncio.Event())]
    with command(service, "chat", "-q", "why?") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == ExitCode.INTERRUPTED
        assert stderr == b""


ONLY_THE_BASE_INSTALL = """
import sys

MISSING = {
    "anthropic", "genai_prices", "openai", "pydantic_settings", "sqlalchemy", "torch", "uvloop"
}

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from control_plane.cli.main import app

for line in sys.argv.pop().splitlines():
    try:
        app(line.split())
    except SystemExit as ended:
        print(f"{line}: exit code {ended.code}")
    if line == "--help":
        print("at once:", not {"grpc", "google.protobuf", "analytics_service"} & set(sys.modules))
"""


def test_all_but_the_server_need_only_the_base_install(
    service: Service, scripted: ScriptedAnalytics
) -> None:
    scripted.responses["ListModels"] = [pb.ListModelsResponse(models=made.models())]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ONLY_THE_BASE_INSTALL,
            "--help\nmodels\nchat -q hi\nanalytics serve",
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}",
            "MIDCOURSE_ANALYTICS": service.address,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for line in ("--help: exit code 0", "models: exit code 0", "chat -q hi: exit code 0"):
        assert line in done.stdout
    assert "at once: True" in done.stdout
    assert "analytics serve: exit code 1" in done.stdout
    assert "pip install 'midcourse[analytics]'" in done.stderr
    assert done.stderr.count("\n") == 1


def complete(service: Service, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "control_plane.cli"],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}",
            "MIDCOURSE_ANALYTICS": service.address,
            "_MIDCOURSE_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(service: Service, scripted: ScriptedAnalytics) -> None:
    scripted.responses |= {
        "ListModels": [pb.ListModelsResponse(models=made.models()[:4])],
        "ListSessions": [pb.ListSessionsResponse(sessions=[made.session()])],
    }
    models = complete(service, "midcourse", "chat", "--model", "gpt-6")
    assert models == ["gpt-6-luna", "gpt-6.1-sol"]
    assert complete(service, "midcourse", "sessions", "show", "s") == ["s1"]
    assert "--database" in complete(service, "midcourse", "analytics", "serve", "--data")
    nobody = ("midcourse", "--analytics", "127.0.0.1:1", "chat", "--model", "g")
    assert complete(service, *nobody) == []
