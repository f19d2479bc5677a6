"""What is read of data, and how what cannot be read is told of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from transformers.trainer_utils import IntervalStrategy

from trainer_agent.training import data
from trainer_agent.training.document import ConfigurationError
from trainer_agent.training.settings import settings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    Path("one.jsonl").write_text('{"text": "a"}\n')
    Path("empty.jsonl").touch()
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": \n')


def load(*sets: str, eval_strategy: str = "no") -> tuple[Any, Any]:
    text = "model: {path: some/model}\ndata: {path: one.jsonl}"
    found = settings(text, "run.yaml", method="sft", assignments=sets)
    strategy = IntervalStrategy(eval_strategy)
    args = SimpleNamespace(seed=0, dataset_text_field="text", eval_strategy=strategy)
    return data.load(found, args)


def said(*sets: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(*sets)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.fixture
def saved() -> Dataset:
    rows = Dataset.from_dict({"text": [str(row) for row in range(10)]})
    rows.save_to_disk("saved")
    return rows


@pytest.mark.usefixtures("saved")
def test_what_was_saved_to_disk_has_parts() -> None:
    train, evaluation = load(
        "data.path=saved",
        "data.split=train[:80%]",
        "data.eval={path: saved, split: 'train[80%:]+train[:1]'}",
    )
    assert train["text"] == [str(row) for row in range(8)]
    assert evaluation["text"] == ["8", "9", "0"]
    assert len(load("data.path=saved")[0]) == 10
    assert 'Unknown split "nonsense"' in said("data.path=saved", "data.split=nonsense")


def test_of_several_that_were_saved_together_the_split_is_read(saved: Dataset) -> None:
    DatasetDict(train=saved, test=saved.select(range(4))).save_to_disk("both")
    assert len(load("data.path=both", "data.split=test[:2]")[0]) == 2


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["data.path=broken.jsonl"],
            "data.path: broken.jsonl cannot be loaded: ArrowInvalid: JSON parse error",
        ),
        (
            ["data.path=empty.jsonl"],
            "data.path: empty.jsonl holds no examples",
        ),
        (
            ["data.eval.path=empty.jsonl"],
            "data.eval.path: empty.jsonl holds no examples",
        ),
        (
            ["data.eval.share=0.5"],
            "data.eval.share: 1 examples cannot be shared out: With n_samples=1, ",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(sets: list[str], message: str) -> None:
    assert said(*sets).startswith(f"--set {sets[0]}: {message}")


def test_data_that_are_never_evaluated_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    load("data.eval.path=one.jsonl", eval_strategy="steps")
    assert not caplog.records
    load("data.eval.path=one.jsonl")
    assert "nothing is evaluated unless" in caplog.text
