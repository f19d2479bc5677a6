"""Supervision of a training process that a small script stands in for."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from trainer_agent.training.display import Display
from trainer_agent.training.exits import CONFIGURATION
from trainer_agent.training.order import Order
from trainer_agent.training.supervisor import Supervisor

PREAMBLE = """
import json, os, pathlib, signal, sys
order = json.load(open(sys.argv[1]))
pipe = os.open(order["progress"], os.O_WRONLY)
def tell(**event):
    os.write(pipe, json.dumps(event).encode() + b"\\n")
def save(step):
    path = pathlib.Path("out", f"checkpoint-{step}")
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_text("x")
    (path / "optimizer.pt").write_text("x")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return str(path.resolve())
def begin():
    tell(kind="began", step=0, max_steps=30, output_dir="out", job="my-run")
    tell(kind="step", step=12, max_steps=30)
def roll_back(checkpoint):
    wish = pathlib.Path(os.environ["MIDCOURSE_ROLL_BACK_FILE"])
    assert not wish.exists()
    wish.write_text(json.dumps({"checkpoint": checkpoint, "update": {}}))
    sys.exit(75)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def supervise(script: str, max_restarts: int = 3, resume: str = "never") -> tuple[int, str]:
    Path("script.py").write_text(PREAMBLE + script)
    error = io.StringIO()
    supervisor = Supervisor(
        Order(source="run.yaml", text="", resume=resume),
        Display(io.StringIO(), error),
        max_restarts=max_restarts,
        command=["--config", "run.yaml", "--resume", "never", "--job", "my run"],
        worker=lambda path: [sys.executable, "-u", "script.py", path],
    )
    return supervisor.run(), error.getvalue()


def test_a_run_to_the_end() -> None:
    code, said = supervise("begin(); tell(kind='step', step=30, max_steps=30); print('hello')")
    assert code == 0
    assert said == "midcourse: done: what was trained is in out\n"


def test_a_run_that_was_stopped_is_not_called_done() -> None:
    code, said = supervise("begin(); save(12)")
    assert code == 0
    assert said.splitlines() == [
        "midcourse: stopped at step 12 of 30; what was trained until there is in out",
        "midcourse: go on from out/checkpoint-12 with:",
        "    midcourse train --config run.yaml --job 'my run' --resume auto",
    ]


def test_a_crash_is_reported_with_its_last_lines_and_a_way_on() -> None:
    code, said = supervise("begin(); save(10); print('last words'); sys.exit(9)")
    assert code == 9
    assert said.splitlines() == [
        "midcourse: the training process ended with exit status 9 at step 12 of 30",
        "midcourse: the last lines that it printed:",
        "    last words",
        "midcourse: go on from out/checkpoint-10 with:",
        "    midcourse train --config run.yaml --job 'my run' --resume auto",
    ]


def test_a_kill_is_reported_with_what_to_do() -> None:
    code, said = supervise("begin(); os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 137
    assert "died of SIGKILL (exit status 137) at step 12 of 30" in said
    assert "memory runs out (dmesg tells)" in said
    assert "there is no whole checkpoint in out: the next run begins anew" in said


def test_why_a_checkpoint_cannot_be_gone_on_from_is_said() -> None:
    code, said = supervise("""
begin()
for step in (5, 10):
    pathlib.Path(save(step), "optimizer.pt").unlink()
sys.exit(1)
""")
    assert code == 1
    assert "the newest is out/checkpoint-10: it has no optimizer state" in said
    assert "save_steps" not in said
    code, said = supervise("begin(); save(10); pathlib.Path(save(12), 'optimizer.pt').unlink()")
    assert "midcourse: skipping out/checkpoint-12: it has no optimizer state" in said
    assert "go on from out/checkpoint-10 with:" in said


def test_a_hang_up_stops() -> None:
    code, said = supervise("""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
begin(); save(12)
os.kill(os.getppid(), signal.SIGHUP)
while True: signal.pause()
""")
    assert code == 129
    assert said.splitlines()[:3] == [
        "midcourse: SIGHUP: stopping after this step, with a checkpoint; SIGTERM kills at once",
        "midcourse: stopped at step 12",
        "midcourse: go on from out/checkpoint-12 with:",
    ]


def test_memory_of_an_accelerator_is_recognised() -> None:
    code, said = supervise("print('torch.OutOfMemoryError: CUDA out of memory.'); sys.exit(1)")
    assert code == 1
    assert "ended with exit status 1 before training began" in said
    assert "memory ran out: give it less at once" in said


def test_a_fault_in_compiled_code_is_named() -> None:
    code, said = supervise("os.kill(os.getpid(), signal.SIGSEGV)")
    assert code == 139
    assert "died of SIGSEGV" in said
    assert "compiled code" in said


def test_a_wrong_configuration_is_no_crash() -> None:
    code, said = supervise(f"print('told', file=sys.stderr); sys.exit({CONFIGURATION})")
    assert (code, said) == (2, "told\n")


def test_a_roll_back_starts_again_from_the_checkpoint() -> None:
    script = """
begin()
if "MIDCOURSE_ROLLED_BACK_FILE" not in os.environ:
    assert order["resume"] == "never"
    checkpoint = save(5)
    save(10)
    roll_back(checkpoint)
handed = json.load(open(os.environ["MIDCOURSE_ROLLED_BACK_FILE"]))
print(json.dumps([handed["checkpoint"], order["resume"], order["job"]]), file=sys.stderr)
"""
    code, said = supervise(script)
    assert code == 0
    lines = said.splitlines()
    checkpoint = str(Path("out/checkpoint-5").resolve())
    moved = Path("out/rolled-back-1/checkpoint-10").resolve()
    assert lines[0] == f"midcourse: what came after it was moved to {moved}"
    assert lines[1] == f"midcourse: rolling back to {checkpoint}; restart 1 of at most 3"
    assert json.loads(lines[2]) == [checkpoint, checkpoint, "my-run"]
    assert (moved / "trainer_state.json").exists()


def test_the_next_process_has_not_begun_to_train() -> None:
    code, said = supervise("""
if "MIDCOURSE_ROLLED_BACK_FILE" in os.environ:
    sys.exit(9)
begin()
roll_back(save(5))
""")
    assert code == 9
    assert "ended with exit status 9 before training began" in said
    assert "go on from out/checkpoint-5 with:" in said


def test_roll_backs_are_bounded() -> None:
    """The last process is told why it cannot be rolled back, and so refuses it."""
    code, said = supervise(
        """
begin()
assert os.environ["MIDCOURSE_LAUNCHER_PID"] == str(os.getppid())
if "MIDCOURSE_ROLL_BACK_FILE" in os.environ:
    roll_back(save(5))
print(os.environ["MIDCOURSE_NO_ROLL_BACK"], file=sys.stderr)
""",
        max_restarts=2,
    )
    assert code == 0
    assert said.count("rolling back to") == 2
    assert "\nit was rolled back 2 times already, which --max-restarts allows\n" in said


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sys.exit(75)", "it did not say where to"),
        ("roll_back('/gone')", "/gone: there is no such directory"),
        ("roll_back(None)", "what it left says no checkpoint"),
    ],
)
def test_a_roll_back_to_nowhere_is_told(script: str, reason: str) -> None:
    code, said = supervise(f"begin(); {script}")
    assert code == 75
    assert f"the run asked to be rolled back, and cannot be: {reason}" in said
