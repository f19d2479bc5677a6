"""What the training process makes of its order, where no model is needed to tell."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from trainer_agent.training import worker
from trainer_agent.training.document import ConfigurationError
from trainer_agent.training.exits import CONFIGURATION
from trainer_agent.training.order import Order
from trainer_agent.training.settings import Settings, settings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Signals and logging stay the test's own.
    monkeypatch.setattr("trainer_agent.training.stop.StopOnSignal.install", lambda _: None)
    monkeypatch.setattr(worker, "_set_up_messages", lambda **_: None)
    Path("d.jsonl").write_text('{"prompt": "x"}\n')


def read(*sets: str, method: str = "orpo") -> Settings:
    text = "model: {path: org/m, revision: v1, trust_remote_code: true}\ndata: {path: d.jsonl}"
    return settings(text, "run.yaml", method=method, assignments=sets)


@pytest.mark.parametrize(
    ("sets", "loaded"),
    [
        ([], ("org/m", "v1", True)),
        (["tokenizer.pad_token=<pad>"], ("org/m", "v1", True)),
        (["tokenizer.revision=v2"], ("org/m", "v2", True)),
        (["tokenizer.trust_remote_code=false"], ("org/m", "v1", False)),
        (["tokenizer.path=org/m"], ("org/m", "v1", True)),
        (["tokenizer.path=org/t"], ("org/t", "main", False)),
        (["tokenizer={path: org/t, revision: v2}"], ("org/t", "v2", False)),
    ],
)
def test_where_the_tokenizer_comes_from(
    sets: list[str], loaded: tuple[str, str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, bool]] = []

    def from_pretrained(path: str, *, revision: str, trust_remote_code: bool) -> Any:
        asked.append((path, revision, trust_remote_code))
        return SimpleNamespace(pad_token="<pad>", get_vocab=lambda: ["<pad>"])

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    worker._tokenizer(read(*sets))
    assert asked == [loaded]


@pytest.mark.parametrize(
    ("error", "key"),
    [
        ("org/m-judge is not a local folder", "reward"),
        ("org/m does not appear to have a file", "model.path"),
        ("We couldn't connect to the hub", ""),
    ],
)
def test_of_several_models_the_one_that_cannot_be_loaded_is_named(error: str, key: str) -> None:
    found = read("reward=[exact_match, org/m-judge]", method="grpo")
    assert worker._not_loaded(found, OSError(error)).key == key


def test_what_fails_in_the_system_is_no_fault_of_the_configuration() -> None:
    assert worker._not_loaded(read(), OSError("We couldn't connect")).key == "model.path"
    with pytest.raises(OSError, match="No space left"):
        worker._not_loaded(read(), OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize(
    ("variable", "value"), [("JOB_ID", "My Run"), ("MIDCOURSE_CONTROL_PLANE", "nonsense")]
)
def test_the_environment_is_told_of_by_name(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    text = "model: {path: org/m}\ndata: {path: d.jsonl}"
    wrong = Order(source="run.yaml", text=text, method="sft", replay="d.jsonl")
    assert worker.run(wrong, worker._nobody) == CONFIGURATION
    said = f"run.yaml:1:1: midcourse: the environment variable {variable} must be "
    assert said in capsys.readouterr().err


def test_every_rank_tells_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(*_: object) -> None:
        raise ConfigurationError([read().problem("data.path", "it is on the other machine alone")])

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(worker, "_prepare", prepare)
    text = "model: {path: org/m}\ndata: {path: d.jsonl}"
    order = Order(source="run.yaml", text=text, method="sft")
    assert worker.run(order, worker._nobody) == CONFIGURATION
    assert "data.path: it is on the other machine alone" in capsys.readouterr().err
