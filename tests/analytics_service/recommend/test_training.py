"""Training: the same bytes each time, honest splits, figures that are what they are called."""

from __future__ import annotations

import csv
import json
import math
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_service.recommend.difficulty import DATA, difficulty
from tests.analytics_service.recommend.conftest import Trained

TEXTS = [
    row["text"]
    for name in ("questions.tsv", "probe.tsv")
    for row in csv.DictReader(
        (DATA / name).read_text("utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE
    )
]
ODD = ["", "?!", "why", "why why why loss", "ИЗ 丂 ß İ", "loss " * 5_000, "\x00\n\t"]


def test_training_again_gives_the_same_bytes(trained: Trained) -> None:
    assert {path.name for path in trained.files} == {"weights.json", "evaluation.json"}
    for path, text in trained.files.items():
        assert path.read_text("utf-8") == text, f"{path.name}: train again and commit"


def test_equals_scikit_learn(trained: Trained) -> None:
    texts = [*TEXTS, *ODD]
    expected = trained.model.predict_proba(texts)[:, 1]
    for text, probability in zip(texts, expected, strict=True):
        assert difficulty(text).score == pytest.approx(probability, abs=1e-9), text


def test_equals_scikit_learn_on_any_mixture_of_words(trained: Trained) -> None:
    vocabulary = sorted({word for text in TEXTS for word in text.split()})

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(vocabulary), max_size=60).map(" ".join))
    def check(text: str) -> None:
        [probability] = trained.model.predict_proba([text])[:, 1]
        assert math.isclose(difficulty(text).score, probability, abs_tol=1e-9)

    check()


@pytest.mark.parametrize(
    ("split", "group"), [("by_template", "templates"), ("by_family", "families")]
)
def test_no_group_is_on_both_sides_and_every_question_is_tested_once(
    trainer: ModuleType, split: str, group: str
) -> None:
    questions = trainer.read_questions(trainer.DATA / "questions.tsv")
    groups, tested = getattr(questions, group), []
    for train, test in getattr(trainer, split)(questions):
        assert set(groups[train]).isdisjoint(groups[test])
        tested.extend(test.tolist())
    assert sorted(tested) == list(range(len(questions.texts)))


def test_an_unknown_label_is_refused(
    trainer: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("data") / "bad.tsv"
    path.write_text("label\ttext\nsmall\tlist jobs\nhard\twhy\n")
    with pytest.raises(ValueError, match=r"bad\.tsv, line 3, label: got 'hard'; small and strong"):
        trainer.read_questions(path)


def test_the_area_is_that_of_scikit_learn_with_ties(trainer: ModuleType) -> None:
    import numpy as np
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped] # has no stubs

    @given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=2))
    def check(pairs: list[tuple[int, int]]) -> None:
        labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
        if 0 < labels.sum() < len(labels):
            expected = roc_auc_score(labels, scores)
            assert trainer.auc(labels, scores.astype(float)) == pytest.approx(expected)

    check()


def test_the_thresholds_keep_to_what_is_tolerated(trainer: ModuleType) -> None:
    questions = trainer.read_questions(trainer.DATA / "questions.tsv")
    scores = trainer.out_of_fold(questions, trainer.by_template)
    chosen = trainer.thresholds(questions.labels, scores)
    assert 0 < chosen.medium <= chosen.large < 1
    strong, small = scores[questions.labels == 1], scores[questions.labels == 0]
    assert (strong < chosen.medium).mean() <= trainer.TOLERATED
    assert (small >= chosen.large).mean() <= trainer.TOLERATED


def test_the_score_beats_every_baseline_beyond_chance(trained: Trained) -> None:
    [text] = [text for path, text in trained.files.items() if path.name == "evaluation.json"]
    figures = json.loads(text)
    for part in ("by_template", "probe"):
        for name, lead in figures[part]["lead_over"].items():
            assert lead["low"] > 0, (part, name)
