"""`midcourse train` hands everything over to the launcher."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import pytest

from tests.support.midcourse_command import Midcourse
from tests.support.processes import Process


class ReplacedError(Exception):
    """Stands for the end of this process."""


def test_the_launcher_takes_its_place(
    midcourse: Midcourse, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def execv(path: str, command: list[str]) -> None:
        assert path == sys.executable
        started.append(command)
        raise ReplacedError

    monkeypatch.setattr(os, "execv", execv)
    options = ["--help", "-c", "run.yaml", "--set", "a=-1", "-x"]
    with pytest.raises(AssertionError):  # as nothing takes the process's place here
        midcourse("--server", "there:1", "train", *options)
    (command,) = started
    program = [sys.executable, "-P", "-m", "trainer_agent.training"]
    assert command == [*program, "--control-plane", "there:1", *options]


def test_what_to_install_is_said(midcourse: Midcourse, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == "yaml" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    result = midcourse("train", "-c", "run.yaml", code=1)
    assert "pip install 'midcourse[trainer]'" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--help"], 0, "Usage: midcourse train [OPTIONS]"),
        (["-c", "gone.yaml"], 2, "midcourse: invalid value: 'gone.yaml' cannot be read"),
        (["--methd", "sft"], 2, "midcourse: no such option: --methd"),
    ],
)
def test_the_command_itself(tmp_path: Any, options: list[str], code: int, said: str) -> None:
    process = Process("train", ["-m", "control_plane.cli", "train", *options], tmp_path)
    assert process.wait(30) == code
    assert process.tail().startswith(said)
