"""The whole of it: the command, its training process, and what becomes of both."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.train.prepare import main as prepare
from tests.support.processes import ROOT, Process
from tests.support.processes import until as wait

Start = Callable[..., Process]

# A training process takes seconds to begin, and many of them where the machine has much to do.
pytestmark = pytest.mark.timeout(400)
until = functools.partial(wait, seconds=180)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the example of SFT in the tests' own surroundings."""
    prepare(str(tmp_path / "model"))
    started: list[Process] = []

    def start(*options: str, max_steps: int = 100_000, save_steps: int = 5) -> Process:
        sets = [
            f"model.path={tmp_path / 'model'}",
            f"training.output_dir={tmp_path / 'out'}",
            f"training.max_steps={max_steps}",
            f"training.save_steps={save_steps}",
            "training.eval_strategy=no",
        ]
        process = Process(
            f"train-{len(started)}",
            [
                *("-m", "trainer_agent.training", "--job", "real", *options),
                *("-c", str(ROOT / "examples" / "train" / "sft.yaml")),
                *(word for each in sets for word in ("--set", each)),
            ],
            tmp_path,
            HF_DATASETS_CACHE=str(tmp_path / "cache"),
            # Nobody answers there: training does without.
            MIDCOURSE_CONTROL_PLANE="127.0.0.1:1",
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in workers_of(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.end()


def workers_of(launcher: Process) -> list[int]:
    """Training processes of a launcher, those of one that is gone too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            orders = [word for word in words if "midcourse-train-" in word]
            environ = (path.parent / "environ").read_bytes()
            if orders and str(launcher.log.parent).encode() in environ:
                found.append(int(path.parent.name))
    return found


def checkpoint(tmp_path: Path) -> Path | None:
    states = (tmp_path / "out").glob("checkpoint-*/trainer_state.json")
    return next((path.parent for path in states), None)


@pytest.mark.long
def test_a_killed_training_process_is_reported_and_gone_on_from(
    start: Start, tmp_path: Path
) -> None:
    launcher = start()
    until(functools.partial(checkpoint, tmp_path), "a checkpoint")
    (worker,) = workers_of(launcher)
    os.kill(worker, signal.SIGKILL)
    assert launcher.wait(60) == 137
    said = launcher.tail()
    assert "midcourse: the training process died of SIGKILL (exit status 137) at step " in said
    assert "--resume auto" in said

    again = start("--resume", "auto", max_steps=1)  # what was trained is past that already
    assert again.wait(180) == 0
    assert "going on from" in again.tail()


@pytest.mark.long
def test_ctrl_c_stops_every_rank_after_the_same_step(start: Start, tmp_path: Path) -> None:
    launcher = start("--nproc", "2", save_steps=100_000)
    until(lambda: "\nstep 1/" in f"\n{launcher.tail()}", "the first step")
    os.kill(launcher.pid, signal.SIGINT)
    assert launcher.wait(180) == 130
    said = launcher.tail()
    assert "midcourse: SIGINT: stopping after this step" in said
    assert "midcourse: stopped at step" in said
    saved = checkpoint(tmp_path)
    assert saved is not None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in saved.iterdir()}
    assert f"go on from {saved} with:" in said


@pytest.mark.long
def test_training_outlives_a_killed_launcher(start: Start, tmp_path: Path) -> None:
    launcher = start(max_steps=100, save_steps=100_000)
    until(lambda: "step 1/" in launcher.tail(), "the first step")
    launcher.kill(signal.SIGKILL)
    assert workers_of(launcher)
    until((tmp_path / "out" / "model.safetensors").exists, "the trained model")
    until(lambda: not workers_of(launcher), "the end of the training process")
