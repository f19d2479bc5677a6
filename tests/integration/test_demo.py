"""The demo, with fewer steps than a person gets to see."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.processes import last_lines
from examples.demo.scenarios import SCENARIOS
from examples.demo.stage import perform
from examples.offline import METHODS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path, as that of a socket has to be."""
    with tempfile.TemporaryDirectory(prefix="t") as directory:
        yield Path(directory)


@pytest.mark.timeout(180)
def test_the_demo_steers_a_run_and_leaves_pictures(tmp_path: Path, temporary: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--quick", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    applied = re.search(
        r"APPLIED at step (\d+), learning_rate 0\.0002 → 0\.002, (\d+) ms after the call",
        done.stdout,
    )
    assert applied, done.stdout
    scenario = SCENARIOS["sft"].quick()
    assert scenario.change_after < int(applied[1]) <= scenario.steps
    # From `midcourse history` and `midcourse metrics --plot`.
    assert f"#1 at step {applied[1]}: learning_rate 0.0002 → 0.002" in done.stdout
    assert (out / "demo-sft.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "demo-sft.svg").read_text()
    assert not list(temporary.iterdir()), "database, logs and sockets are gone"


def test_every_scenario_is_of_a_method() -> None:
    assert set(SCENARIOS) <= set(METHODS)


def test_of_a_progress_bar_the_last_state_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes("begun\n 0%|\r 50%|▌\r100%|█\r\nended\n".encode())
    assert last_lines(log, 2) == "100%|█\nended"


def test_settings_of_services_elsewhere_are_for_nobody_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("MIDCOURSE_TLS_CA", "/no/such/file")
    monkeypatch.setenv("MIDCOURSE_TOKEN_FILE", "/no/such/file")
    seen: list[str] = []
    assert perform(lambda *_: seen.extend(os.environ)) == 0
    assert "PATH" in seen
    assert not [each for each in seen if each.startswith("MIDCOURSE_")]
