"""The command as a process: exit codes, no tracebacks, pipes, signals, colours, what it loads."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from control_plane.cli.exits import ExitCode
from midcourse.control.v1 import control_pb2, update_pb2
from tests.support.certificates import Authority
from tests.support.fake_control_plane import FakeControlPlane, make_job, make_series

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "control_plane.cli"]


def environment(server: FakeControlPlane | None = None, **extra: str) -> dict[str, str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "MIDCOURSE_CONTROL_PLANE"):
        env.pop(name, None)
    if server is not None:
        env["MIDCOURSE_CONTROL_PLANE"] = server.address
    return env | extra


def run(
    *args: str, server: FakeControlPlane | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *args],
        env=environment(server, **extra),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["jobs"], ExitCode.OK),
        (["jobs", "--nope"], ExitCode.USAGE),
        (["job", "nobody"], ExitCode.NOT_FOUND),
        (["set", "my-run", "learning_rate=-1"], ExitCode.REFUSED),
        (["-s", "127.0.0.1:1", "jobs"], ExitCode.UNREACHABLE),
        (["set", "my-run", "learning_rate=1e-5", "--wait"], ExitCode.NOT_APPLIED),
    ],
)
def test_exit_codes(server: FakeControlPlane, args: list[str], code: ExitCode) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_EXPIRED
    done = run(*args, server=server)
    assert done.returncode == code
    assert done.stderr.count("\n") == (0 if code is ExitCode.OK else 1), done.stderr
    assert done.stderr.startswith("midcourse: " if code else "")


def test_a_server_that_is_not_believed_is_told_in_one_line(tmp_path: Path) -> None:
    files = Authority(tmp_path / "ca").server()
    stranger = Authority(tmp_path / "stranger")
    server = grpc.server(futures.ThreadPoolExecutor(1))
    chain = (files.key.read_bytes(), files.certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([chain]))
    server.start()
    try:
        done = run("-s", f"127.0.0.1:{port}", "jobs", MIDCOURSE_TLS_CA=str(stranger.file))
    finally:
        server.stop(None).wait()
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr == (
        f"midcourse: no connection to the control plane at 127.0.0.1:{port}: the server's"
        " certificate is of an authority that is not believed here: MIDCOURSE_TLS_CA has to name a"
        " PEM file with that authority\n"
    )


def test_a_reader_that_goes_away_is_no_matter(server: FakeControlPlane) -> None:
    """What `midcourse watch | head -1` does."""
    with subprocess.Popen(
        [*COMMAND, "watch"],
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"my-run" in process.stdout.readline()
        process.stdout.close()
        server.publish(control_pb2.JOB_EVENT_TYPE_PROGRESS, server.jobs["jobs/my-run"])
        assert process.wait(60) == ExitCode.BROKEN_PIPE
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["watch"], ""),
        (
            ["set", "my-run", "learning_rate=1e-5", "--wait"],
            "it stays accepted as revision 1; `midcourse cancel my-run 1` takes it back\n",
        ),
    ],
)
def test_ctrl_c_says_no_more_than_what_stays(
    server: FakeControlPlane, args: list[str], says: str
) -> None:
    server.settle_as = update_pb2.UPDATE_STATE_PENDING
    with subprocess.Popen(
        [*COMMAND, *args], env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 30
        while not {"WatchJobs", "WaitUpdate"} & {name for name, _ in server.calls}:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two looks
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == ExitCode.INTERRUPTED
        assert stderr.decode() == says


def test_a_narrow_encoding_gets_question_marks(server: FakeControlPlane) -> None:
    done = run("jobs", server=server, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "my-run" in done.stdout
    assert "?" in done.stdout  # for the dash of what is unknown


def on_terminal(
    server: FakeControlPlane, *args: str, until: str = "", columns: int = 80, **extra: str
) -> tuple[str, int]:
    """Runs the command on a terminal; interrupts it once a text has been shown."""
    parent, child = pty.openpty()
    env = environment(server, TERM="xterm", COLUMNS=str(columns), **extra)
    with subprocess.Popen(
        [*COMMAND, *args], env=env, stdin=child, stdout=child, stderr=child, close_fds=True
    ) as process:
        os.close(child)
        shown, deadline, interrupted = b"", time.monotonic() + 30, False
        while time.monotonic() < deadline:
            if select.select([parent], [], [], 0.1)[0]:
                try:
                    data = os.read(parent, 65536)
                except OSError:  # Linux: the other side is closed
                    break
                if not data:
                    break
                shown += data
            if until and until.encode() in shown and not interrupted:
                process.send_signal(signal.SIGINT)
                interrupted = True
        os.close(parent)
        return shown.decode(), process.wait(10)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_tables_on_a_terminal_have_colours_unless_told_otherwise(server: FakeControlPlane) -> None:
    coloured, code = on_terminal(server, "jobs")
    assert code == 0
    assert "\x1b[32mRUNNING" in coloured
    uncoloured, _ = on_terminal(server, "jobs", NO_COLOR="1")
    assert "\x1b[3" not in uncoloured
    assert "RUNNING" in uncoloured


def test_tables_fit_a_narrow_terminal(server: FakeControlPlane) -> None:
    server.add(make_job("a-job-with-a-rather-long-name-of-the-kind-that-scripts-generate"))
    run("set", "my-run", "learning_rate=1e-5", "--reason", "long " * 30, server=server)
    for args in (["jobs"], ["job", "my-run"], ["history", "my-run"]):
        shown, code = on_terminal(server, *args)
        assert code == 0
        lines = plain(shown).splitlines()
        assert lines
        assert max(len(line) for line in lines) <= 80
    history = plain(on_terminal(server, "history", "my-run")[0])
    for words in ("APPLIED", "121", "ops"):
        assert words in history


def test_watch_is_a_live_table_on_a_terminal(server: FakeControlPlane) -> None:
    shown, code = on_terminal(server, "watch", until="120/1000")
    assert code == ExitCode.INTERRUPTED
    assert "STEPS/S" in shown
    assert "Traceback" not in shown
    assert "\x1b[?25h" in shown  # the cursor is back


ONLY_THE_BASE_INSTALL = """
import sys

MISSING = {
    "accelerate", "alembic", "anthropic", "grpc_health", "grpc_reflection", "openai",
    "pydantic_settings", "sqlalchemy", "torch", "transformers", "trl", "uvloop",
}
SERVER = {
    "control_plane.domain", "control_plane.rpc", "control_plane.server", "control_plane.services",
    "control_plane.store", "trainer_agent",
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
print("loaded:", SERVER & set(sys.modules) or "nothing of the server's")
"""


def test_ops_verbs_need_only_the_base_install(server: FakeControlPlane) -> None:
    server.series["jobs/my-run"] = [make_series("loss", [1.0, 2.0])]
    verbs = [
        "--help",
        "jobs",
        "jobs -o json",
        "job my-run",
        "set my-run learning_rate=1e-5 --wait",
        "history my-run",
        "metrics my-run",
        "metrics my-run --plot",
        "version",
    ]
    done = subprocess.run(
        [sys.executable, "-c", ONLY_THE_BASE_INSTALL, "\n".join([*verbs, "serve"])],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for verb in verbs:
        assert f"{verb}: exit code 0\n" in done.stdout, done.stdout + done.stderr
    assert "loaded: nothing of the server's" in done.stdout
    assert "serve: exit code 1\n" in done.stdout
    assert "pip install 'midcourse[server]'" in done.stderr
    assert done.stderr.count("\n") == 1


WHAT_HELP_LOADS = """
import sys
from control_plane.cli.main import app
try:
    app(["--help"])
except SystemExit:
    print(*sys.modules)
"""


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            WHAT_HELP_LOADS,
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "control_plane.cli.main" in loaded
    heavy = {"grpc", "google.protobuf", "rich.table", "plotext", "pydantic_settings", "asyncio"}
    assert not loaded & heavy


# Completion


def complete(server: FakeControlPlane | str, *words: str) -> list[str]:
    address = server if isinstance(server, str) else server.address
    done = subprocess.run(
        COMMAND,
        env=environment(
            MIDCOURSE_CONTROL_PLANE=address,
            _MIDCOURSE_COMPLETE="complete_bash",
            COMP_WORDS=" ".join(words),
            COMP_CWORD=str(len(words) - 1),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(server: FakeControlPlane, tmp_path: Path) -> None:
    server.add(make_job("my-other-run"))
    server.add(make_job("third"))
    assert complete(server, "midcourse", "job", "my") == ["my-other-run", "my-run"]
    assert complete(server, "midcourse", "set", "my-run", "lea") == ["learning_rate="]
    assert complete(server, "midcourse", "metrics", "my-run", "lo") == ["loss"]
    assert "--database" in complete(server, "midcourse", "serve", "--d")
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("mc_mine")
    other = ["midcourse", "-s", server.address, "--token-file", str(token), "job", "th"]
    assert complete("127.0.0.1:1", *other) == ["third"]
    assert server.authorization["ListJobs"] == "Bearer mc_mine"


def test_completion_fails_in_silence() -> None:
    begun = time.monotonic()
    assert complete("127.0.0.1:1", "midcourse", "job", "my") == []
    assert complete("no address", "midcourse", "job", "my") == []
    assert time.monotonic() - begun < 20
