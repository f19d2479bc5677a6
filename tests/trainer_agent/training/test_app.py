"""The command line of `midcourse train`, as far as nothing is trained."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from trainer_agent.training.app import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.jsonl").write_text('{"text": "x"}\n')
    Path("run.yaml").write_text("method: sft\nmodel: {path: m}\ndata: {path: d.jsonl}\n")


def test_nothing_heavy_is_loaded_by_the_launcher() -> None:
    script = """
import sys
from trainer_agent.training.app import main
assert main(["--config", "run.yaml", "--set", "data.pth=x"]) == 2
heavy = {"torch", "transformers", "trl", "datasets", "numpy", "grpc"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has it")
def test_what_cannot_be_printed_changes_nothing() -> None:
    Path("run.yaml").write_text("method: sft\n")
    command = [sys.executable, "-m", "trainer_agent.training", "-c", "run.yaml"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, check=False, stdout=full, stderr=full)
    assert ended.returncode == 2


def test_help_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: midcourse train [OPTIONS]")
    assert "kto     single answers, each marked good or bad" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "missing option '--config' / '-c'"),
        (["--method", "ppo"], "--method must be one of sft, dpo, orpo, kto, reward, rloo, grpo"),
        (["--job", "My Run"], "--job must be 1 to 63 of a-z"),
        (["--label", "team"], "--label must be KEY=VALUE, such as team=nlp; got 'team'"),
        (["--label", "team=my team"], "--label: a label's value has at most 63 of a-z"),
        (["--control-plane", "nonsense"], "--control-plane must be host:port, such as 127.0.0.1:"),
        (["--resume", "gone"], "--resume must be auto, never or the path of a checkpoint; 'gone'"),
        (["--replay", "gone"], "--replay: there is no file 'gone'"),
        (["--nproc", "0"], "invalid value for '--nproc': "),
        (["--nproc", "2", "--no-supervise"], "start them with torchrun"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*(["-c", "run.yaml"] if options else []), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("midcourse: ")
    assert said in error
    assert error.endswith("see 'midcourse train --help'\n")
    assert error.count("\n") == 1


def test_ranks_that_somebody_else_has_started_are_not_supervised(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["-c", "run.yaml"]) == 2
    assert "this is one of 2 ranks that somebody else has started" in capsys.readouterr().err


def test_a_wrong_configuration_is_told_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text("method: sft\nmodel: {pth: m}\ndata: {path: gone.jsonl}\n")
    assert main(["-c", "run.yaml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "midcourse: run.yaml cannot be trained with: 2 problems",
        "  run.yaml:2:9: model.pth: there is no such key; did you mean path?",
        "  run.yaml:2:8: model.path: this key is missing",
    ]


def test_what_to_install_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "trl" or None)
    assert main(["-c", "run.yaml"]) == 1
    assert "(trl): pip install 'midcourse[trainer]'" in capsys.readouterr().err
