"""Real processes: how they end, what they print, and that none is left behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import until
from trainer_agent.training.processes import Ended, Processes

Lines = list[tuple[str, bool]]


def run(
    script: str, nproc: int = 1, on_line: Callable[[str], None] = lambda _: None
) -> tuple[Ended, Lines, list[tuple[signal.Signals, bool]]]:
    lines: Lines = []
    stops: list[tuple[signal.Signals, bool]] = []

    def take(line: str, error: bool) -> None:
        lines.append((line, error))
        on_line(line)

    processes = Processes(take, lambda number, again: stops.append((number, again)))
    preamble = "import os, signal, sys, time; rank = os.environ.get('RANK', '-')\n"
    ended = processes.run([sys.executable, "-u", "-c", preamble + script], {}, nproc)
    return ended, lines, stops


def test_output_exit_status_and_the_last_lines() -> None:
    script = """
for number in range(100):
    print("line", number)
print("bar 10%\\rbar 20%\\r\\n", end="")
print("to stderr", file=sys.stderr)
os.write(1, b"\\xff not text and no line end")
sys.exit(3)
"""
    ended, lines, _ = run(script)
    assert (ended.code, ended.died_of, ended.asked, ended.killed) == (3, None, None, False)
    out = [line for line, error in lines if not error]
    assert out[:100] == [f"line {number}" for number in range(100)]
    assert out[100:] == ["bar 20%", "\N{REPLACEMENT CHARACTER} not text and no line end"]
    assert [line for line, error in lines if error] == ["to stderr"]
    assert len(ended.tail) == 40
    assert set(ended.tail) <= {line for line, _ in lines}


def test_a_signal_of_its_own() -> None:
    ended, _, _ = run("os.kill(os.getpid(), signal.SIGSEGV)")
    assert (ended.code, ended.died_of) == (139, signal.SIGSEGV)


def test_a_long_line_is_kept_within_bounds() -> None:
    ended, lines, _ = run("print('x' * 1_000_000)")
    assert "".join(line for line, _ in lines) == "x" * 1_000_000
    assert all(len(line) <= 2_000 for line in ended.tail)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks(number: signal.Signals) -> None:
    script = """
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, lambda got, _: sys.exit(128 + got))
print("ready")
while True: time.sleep(60)
"""

    def on_line(line: str) -> None:
        if line == "ready":
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    ended, _, stops = run(script, on_line=on_line)
    asked = signal.SIGTERM if number == signal.SIGHUP else number
    assert (ended.code, ended.asked, ended.killed) == (128 + asked, number, False)
    assert ended.sent == asked
    assert stops == [(number, False)]
    assert signal.getsignal(number) is before


def test_a_stop_is_handed_on_before_it_is_told(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    script = f"""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(open({str(asked)!r}, "w").close()))
os.kill(os.getppid(), signal.SIGTERM)
while True: time.sleep(60)
"""

    def on_stop(number: signal.Signals, again: bool) -> None:
        until(asked.exists, "the process has been asked", 30)

    command = [sys.executable, "-c", f"import os, signal, sys, time{script}"]
    assert Processes(lambda *_: None, on_stop).run(command, {}).code == 0


def test_a_terminal_that_closes_may_hang_up_more_than_once() -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: (print("asked"), sys.exit(143)))
print("ready")
while True: time.sleep(60)
"""
    ended, lines, stops = run(script, on_line=lambda _: os.kill(os.getpid(), signal.SIGHUP))
    assert [line for line, _ in lines] == ["ready", "asked"]
    assert (ended.code, ended.killed) == (143, False)
    assert stops == [(signal.SIGHUP, False)]


def test_the_first_signal_reaches_no_child_of_a_rank() -> None:
    """Else a data loader's worker dies of it, and training cannot end with a checkpoint."""
    script = """
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.read(reader, 1)
    os._exit(0)
def asked(*_):
    os.write(writer, b"x")
    sys.exit(143 if os.waitpid(child, 0)[1] == 0 else "the child was killed")
signal.signal(signal.SIGTERM, asked)
print("ready")
while True: time.sleep(60)
"""
    ended, _, _ = run(script, on_line=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.code == 143


def test_the_second_signal_kills_and_no_child_is_left(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGINT, lambda *_: print("asked"))
if os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("child", os.getpid())
while True: time.sleep(60)
"""
    children: list[int] = []

    def on_line(line: str) -> None:
        if line.startswith("child"):
            children.append(int(line.split()[1]))
        os.kill(os.getpid(), signal.SIGINT)

    ended, _, stops = run(script, on_line=on_line)
    assert (ended.code, ended.died_of, ended.killed) == (137, signal.SIGKILL, True)
    assert [again for _, again in stops][:2] == [False, True]
    until(lambda: not _alive(children[0]), "the child's end", 10)


def test_who_holds_the_output_after_the_end_is_not_waited_for() -> None:
    script = """
if os.fork() == 0:
    os.setsid()
    time.sleep(60)
    os._exit(0)
print("done")
"""
    ended, lines, _ = run(script)
    assert ended.code == 0
    assert lines == [("done", False)]


def test_ranks_know_their_place_and_the_first_failure_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = """
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS".split()
print(*(os.environ[name] for name in names))
sys.exit(0 if rank == "0" else 5)
"""
    ended, lines, _ = run(script, nproc=2)
    assert (ended.code, ended.rank) == (5, 1)
    assert sorted(line for line, _ in lines) == [
        "0 0 2 2 127.0.0.1 1",
        "[rank 1] 1 1 2 2 127.0.0.1 1",
    ]


def test_ranks_that_do_not_end_after_a_failure_are_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainer_agent.training.processes._GRACE_SECONDS", 0.2)
    ended, _, _ = run("if rank == '1': sys.exit(7)\nwhile True: time.sleep(60)", nproc=2)
    assert (ended.code, ended.rank, ended.killed) == (7, 1, False)


def test_what_cannot_be_started_is_said() -> None:
    with pytest.raises(FileNotFoundError):
        Processes(lambda *_: None, lambda *_: None).run(["/gone/python"], {})


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"
