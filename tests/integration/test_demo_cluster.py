"""The demo of several replicas: every update through another one, and the death of one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_demo_survives_the_death_of_a_replica(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo_cluster", "--jobs", "4"],
        cwd=ROOT,
        env={**os.environ, "MIDCOURSE_CONTROL_PLANE": "nowhere:1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"in force from step \d+, known after \d+ ms", done.stdout)) == 3
    assert re.search(r"served elsewhere after [\d.]+ s, within the 5 seconds", done.stdout)
    assert "the job's history is whole: revisions [1" in done.stdout
    assert done.stdout.rstrip().endswith("nothing is left running")
