"""A minute of the soak: it runs, measures, judges and draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_a_minute_of_it(tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "tests.soak", "--minutes=1", "--jobs=10", "--rate=0.5"),
            *("--every=2", f"--output={tmp_path}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    # What so short a run says of growth is not what this is about.
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["done"]["jobs started"] >= 10
    assert found["done"]["update"] > 10
    assert {"ask", "watch", "read", "visit"} <= found["done"].keys()
    assert not found["errors"]
    assert len(found["seconds"]) > 10
    for name in ("control plane: memory", "analytics: tasks", "control plane: table samples"):
        assert len(found["courses"][name]) == len(found["seconds"])
        assert max(found["courses"][name]) > 0
    assert "<svg" in (tmp_path / "soak.svg").read_text()
