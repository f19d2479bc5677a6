"""Labels: the agent's word counts until a caller says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.errors import Refusal
from control_plane.domain.job import MAX_LABELS
from control_plane.domain.labels import MAX_EDITS, edited, with_agents_labels
from tests.support.domain_values import NOW, SECOND, job

keys = st.sampled_from("abcd")
labels = st.dictionaries(keys, st.sampled_from(["", "1", "2"]))
LATER = NOW + SECOND


@st.composite
def edits(draw: st.DrawFn) -> tuple[dict[str, str], list[str]]:
    put = draw(labels)
    return put, [key for key in draw(st.lists(keys, unique=True)) if key not in put]


@given(labels, st.lists(st.one_of(labels, edits()), max_size=8))
def test_the_last_word_is_the_callers(
    first: dict[str, str], said: list[dict[str, str] | tuple[dict[str, str], list[str]]]
) -> None:
    of = job(labels=first)
    model: dict[str, str] = dict(first)
    callers: dict[str, str | None] = {}
    for each in said:
        if isinstance(each, tuple):
            put, remove = each
            known = set(model) | set(callers)
            callers |= put
            callers |= {key: None for key in remove if key in known}
            of = edited(of, put, remove, LATER)
        else:
            model |= each
            of = replace(of, labels=with_agents_labels(of, each))
        for key, value in callers.items():
            model.pop(key, None)
            if value is not None:
                model[key] = value
        assert of.labels == model
        assert of.label_edits == callers


@given(labels, edits())
def test_an_edit_again_changes_nothing(
    first: dict[str, str], edit: tuple[Mapping[str, str], list[str]]
) -> None:
    once = edited(job(labels=first), *edit, LATER)
    assert edited(once, *edit, LATER + SECOND) is once
    if once.labels != first:
        assert (once.version, once.update_time) == (2, LATER)


@pytest.mark.parametrize(
    ("put", "remove", "field"),
    [
        ({"a b": "c"}, [], "set_labels['a b']"),
        ({"a": "-"}, [], "set_labels['a']"),
        ({"a": "1"}, ["a"], "remove_labels[0]"),
        ({}, ["ok", ""], "remove_labels[1]"),
        ({f"k{i}": "" for i in range(MAX_LABELS)}, [], "set_labels"),
    ],
)
def test_what_is_no_label(put: dict[str, str], remove: list[str], field: str) -> None:
    with pytest.raises(Refusal) as refused:
        edited(job(labels={"there": "1"}), put, remove, LATER)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_what_was_removed_is_remembered_but_not_without_end() -> None:
    of = job()
    for number in range(MAX_EDITS):
        of = edited(of, {f"k{number}": ""}, [], LATER)
        of = edited(of, {}, [f"k{number}"], LATER)
    assert len(of.label_edits) == MAX_EDITS
    assert not of.labels
    with pytest.raises(Refusal, match=f"at most {MAX_EDITS}"):
        edited(of, {"one-more": ""}, [], LATER)
    assert edited(of, {"k0": "again"}, [], LATER).labels == {"k0": "again"}


def test_too_many_labels_of_an_agent_are_refused() -> None:
    of = edited(job(), {"mine": "1"}, [], LATER)
    with pytest.raises(Refusal, match="65 labels"):
        with_agents_labels(of, {f"k{i}": "" for i in range(MAX_LABELS)})
