"""Failpoints: off unless asked for twice, each where it is said to be."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpc_runtime import failpoints
from grpc_runtime.failpoints import NOTES, POINTS, VARIABLE, FailpointError, reached
from tests.support.processes import ROOT


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    failpoints.rearm({})


def arm(spec: str, notes: Path) -> None:
    failpoints.rearm({VARIABLE: spec, NOTES: str(notes)})


def test_nothing_is_armed_unless_it_is_asked_for() -> None:
    assert not failpoints.armed()
    for name in POINTS:
        reached(name)


@pytest.mark.parametrize("notes", ["", "/there/is/no/such/folder"])
def test_one_variable_alone_is_refused(notes: str, capsys: pytest.CaptureFixture[str]) -> None:
    failpoints.rearm({VARIABLE: "commit.before=error", NOTES: notes})
    assert not failpoints.armed()
    reached("commit.before")
    assert f"{VARIABLE} is set and ignored" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spec", ["commit.before", "commit.before=crash@0", "nowhere=crash", "commit.before=pause:1h"]
)
def test_what_there_is_not_is_refused(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{VARIABLE}: got '{re.escape(spec)}'; expected NAME="):
        arm(spec, tmp_path)


def test_errors_come_each_time_or_once(tmp_path: Path) -> None:
    arm("commit.before=error; commit.after=error@2", tmp_path)
    for _ in range(2):
        with pytest.raises(FailpointError, match=r"the failpoint commit\.before fails"):
            reached("commit.before")
    reached("commit.after")
    with pytest.raises(FailpointError):
        reached("commit.after")
    reached("commit.after")
    assert [each.name for each in tmp_path.iterdir()] == ["commit.after"]
    # Whoever comes after that is spared.
    arm("commit.after=error@1", tmp_path)
    reached("commit.after")


def test_a_pause_takes_its_time(tmp_path: Path) -> None:
    arm("commit.before=pause:50ms", tmp_path)
    begun = time.monotonic()
    reached("commit.before")
    assert time.monotonic() - begun >= 0.05


_CRASH = "from grpc_runtime.failpoints import reached; reached('commit.after')"


def test_a_crash_is_that_of_a_killed_process(tmp_path: Path) -> None:
    crashed = subprocess.run(
        [
            sys.executable,
            "-c",
            "from grpc_runtime.failpoints import reached as r\nr('commit.after')",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: "commit.after=crash"}
        | {NOTES: str(tmp_path)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert crashed.returncode == -signal.SIGKILL
    assert crashed.stderr == b"crashes at the failpoint commit.after\n"


def test_there_are_the_points_that_are_said_to_be_there() -> None:
    found: set[str] = set()
    for package in ("analytics_service", "control_plane", "grpc_runtime", "trainer_agent"):
        for path in (ROOT / package).rglob("*.py"):
            found.update(re.findall(r'\breached\(\s*"([a-z_.]+)"', path.read_text()))
    assert found == set(POINTS)
