"""Label selectors: Kubernetes' grammar and Kubernetes' meaning."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.selector import MAX_LENGTH, Requirement, Selector, parse
from tests.support.domain_values import refused

KEYS = ("team", "method", "in", "notin", "midcourse.dev/owner", "a")
VALUES = ("", "nlp", "dpo", "in", "0", "A_b.c-D")

keys = st.sampled_from(KEYS)
values = st.sampled_from(VALUES)
requirements = st.one_of(
    st.builds(Requirement, keys, st.sampled_from(["exists", "absent"])),
    st.builds(
        Requirement, keys, st.sampled_from(["in", "notin"]), st.frozensets(values, min_size=1)
    ),
)
selectors = st.builds(Selector, st.lists(requirements, max_size=4).map(tuple))
labels = st.dictionaries(keys, values, max_size=4)


@given(selectors)
def test_a_selector_reads_back_as_it_was_written(selector: Selector) -> None:
    assert parse(str(selector)) == selector


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[tuple[str, str, set[str]]]]:
    """A selector as people write it, and what it says, in the simplest of terms."""
    blank = st.sampled_from(["", " ", "  ", "\t"])
    texts, meanings = [], []
    for _ in range(draw(st.integers(1, 4))):
        key, value = draw(keys), draw(values)
        several = draw(st.lists(values, min_size=1, max_size=3))
        b = [draw(blank) for _ in range(6)]
        joined = f"{b[3]},{b[4]}".join(several)
        form = draw(st.integers(0, 6))
        if form < 3:
            symbol = ("=", "==", "!=")[form]
            texts.append(f"{b[0]}{key}{b[1]}{symbol}{b[2]}{value}")
            meanings.append((key, "notin" if symbol == "!=" else "in", {value}))
        elif form < 5:
            word = ("in", "notin")[form - 3]
            texts.append(f"{b[0]}{key} {word}{b[1]}({b[2]}{joined}{b[5]}){b[1]}")
            meanings.append((key, word, set(several)))
        else:
            texts.append(f"{b[0]}{'!' if form == 6 else ''}{key}{b[1]}")
            meanings.append((key, "absent" if form == 6 else "exists", set()))
    return ",".join(texts), meanings


def _holds(meaning: tuple[str, str, set[str]], given_labels: Mapping[str, str]) -> bool:
    key, operator, wanted = meaning
    if operator == "exists":
        return key in given_labels
    if operator == "absent":
        return key not in given_labels
    if operator == "in":
        return key in given_labels and given_labels[key] in wanted
    return key not in given_labels or given_labels[key] not in wanted


@given(written(), labels)
@settings(max_examples=300)
def test_what_people_write_means_what_kubernetes_takes_it_for(
    selector: tuple[str, list[tuple[str, str, set[str]]]], given_labels: dict[str, str]
) -> None:
    text, meanings = selector
    assert parse(text).matches(given_labels) == all(_holds(m, given_labels) for m in meanings)


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("team=nlp", {"team": "nlp"}, {}),
        ("team==nlp", {"team": "nlp"}, {"team": "cv"}),
        ("team=", {"team": ""}, {"team": "nlp"}),
        ("team!=nlp", {}, {"team": "nlp"}),
        ("team!=", {}, {"team": ""}),
        ("method in (dpo,orpo)", {"method": "orpo"}, {"method": "sft"}),
        ("method in ()", {"method": ""}, {}),
        ("method notin (sft)", {}, {"method": "sft"}),
        ("frozen", {"frozen": ""}, {}),
        ("!frozen", {}, {"frozen": "no"}),
        ("! frozen", {}, {"frozen": "no"}),
        ("in in (in)", {"in": "in"}, {"in": "out"}),
        ("team=nlp,method in (dpo,orpo),!frozen", {"team": "nlp", "method": "dpo"}, {"team": "x"}),
    ],
)
def test_examples(text: str, matching: dict[str, str], other: dict[str, str]) -> None:
    assert parse(text).matches(matching)
    assert not parse(text).matches(other)


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_nothing_selects_everything(text: str) -> None:
    assert parse(text) == Selector()
    assert parse(text).matches({})


@pytest.mark.parametrize(
    ("text", "character", "expected"),
    [
        (",", 1, "a label key"),
        ("a,", 3, "a label key"),
        ("a,,b", 3, "a label key"),
        ("=x", 1, "a label key"),
        ("!", 2, "a label key"),
        ("!!a", 2, "a label key"),
        ("a b", 3, "',' or the end"),
        ("a=b c", 5, "',' or the end"),
        ("a in", 5, "'('"),
        ("a in b", 6, "'('"),
        ("a in (b", 8, "',' or ')'"),
        ("a in (b c)", 9, "',' or ')'"),
        ("a in (b))", 9, "',' or the end"),
        ("a=(b)", 3, "a label value"),
        ("a=-b", 3, "a label value"),
        ("ä=b", 1, "a label key"),
        ("a===b", 4, "a label value"),
        ("a in (ä)", 7, "a label value"),
        (f"{'k' * 64}=v", 1, "a label key"),
        (f"k={'v' * 64}", 3, "a label value"),
    ],
)
def test_a_fault_is_told_with_its_place(text: str, character: int, expected: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(text, "the_field")
    assert caught.value.reason is Reason.SELECTOR_INVALID
    assert [v.field for v in caught.value.violations] == ["the_field"]
    assert f"at character {character}: " in caught.value.message
    assert f"expected {expected}; grammar" in caught.value.message


def test_a_selector_has_a_bounded_length() -> None:
    parse(",".join(["a"] * (MAX_LENGTH // 2)))
    with pytest.raises(Refusal) as caught:
        parse("a" * (MAX_LENGTH + 1))
    assert caught.value.reason is Reason.SELECTOR_INVALID
    assert len(caught.value.message) < 200


@given(st.text(max_size=40) | st.text(alphabet="ab=!(), innotin\t\n-./ä\x00\u2003", max_size=40))
@example("\x00")
@example("a in (")
@example("\u2003a\u2003")
@settings(max_examples=500)
def test_no_text_does_anything_but_select_or_be_refused(text: str) -> None:
    refusal = refused(lambda: parse(text))
    if refusal is None:
        assert parse(str(parse(text))) == parse(text)
    else:
        assert refusal.reason is Reason.SELECTOR_INVALID
