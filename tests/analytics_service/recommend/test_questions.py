"""The questions: enough, varied, labelled by template, and not to be told apart by length alone."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict

import pytest

from analytics_service.recommend.difficulty import DATA


def rows(name: str) -> list[dict[str, str]]:
    lines = (DATA / name).read_text("utf-8").splitlines()
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


QUESTIONS = rows("questions.tsv")
PROBE = rows("probe.tsv")


def test_there_are_enough_questions_templates_and_instances() -> None:
    instances = Counter(row["template"] for row in QUESTIONS)
    assert len(QUESTIONS) >= 400
    assert len(instances) >= 60
    assert set(instances.values()) == {6, 7, 8}


@pytest.mark.parametrize("name", ["questions.tsv", "probe.tsv"])
def test_every_row_is_whole(name: str) -> None:
    found = rows(name)
    for row in found:
        assert row["label"] in ("small", "strong"), row
        assert len(row) == len(found[0])
        # csv gives None for what is missing in a row, and a list for what is too much.
        assert all(str(value).strip() not in ("", "None") for value in row.values()), row


def test_a_template_has_one_label_and_one_family() -> None:
    meanings = defaultdict(set)
    for row in QUESTIONS:
        meanings[row["template"]].add((row["label"], row["family"]))
    assert {template for template, found in meanings.items() if len(found) > 1} == set()


def test_no_question_is_there_twice_nor_in_the_probe() -> None:
    texts = Counter(row["text"].casefold() for row in [*QUESTIONS, *PROBE])
    assert [text for text, count in texts.items() if count > 1] == []


def test_neither_label_owns_the_short_or_the_long_questions() -> None:
    by_length = sorted(QUESTIONS, key=lambda row: len(row["text"]))
    quarter = len(by_length) // 4
    for part in (by_length[:quarter], by_length[-quarter:]):
        strong = sum(row["label"] == "strong" for row in part) / quarter
        assert 0.2 < strong < 0.8


def test_most_subjects_have_questions_of_both_labels() -> None:
    labels = defaultdict(set)
    for row in QUESTIONS:
        labels[row["family"]].add(row["label"])
    both = [family for family, found in labels.items() if len(found) == 2]
    assert len(both) >= 0.75 * len(labels)
