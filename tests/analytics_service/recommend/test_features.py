"""The terms of a question."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from analytics_service.recommend.features import (
    END,
    HEAD_CHARACTERS,
    START,
    TAIL_CHARACTERS,
    is_shortened,
    shown,
    terms,
    words,
)


def test_words_are_lower_case_parted_at_underscores_and_have_no_numbers() -> None:
    assert words("What is grad_norm of SFT-7b at 1,840?") == [
        *("what", "is", "grad", "norm", "of", "sft", "0b", "at", "0", "0"),
    ]


def test_one_way_of_writing_a_letter_is_like_the_other() -> None:
    assert words("erklären") == words("erkla\u0308ren")


def test_terms_are_words_and_neighbours_with_the_ends_of_the_text() -> None:
    assert terms("Why now") == ["why", "now", "^ why", "why now", "now $"]
    assert terms(" ?! ") == []


def test_of_a_long_text_both_ends_are_read() -> None:
    text = "first " + "log " * 100_000 + " last"
    assert is_shortened(text)
    found = words(text)
    assert found[0] == "first"
    assert found[-1] == "last"
    assert len(found) <= (HEAD_CHARACTERS + TAIL_CHARACTERS) // 2


@given(st.text())
def test_a_term_of_any_text_is_quoted_without_marks(text: str) -> None:
    for term in terms(text):
        assert START not in shown(term)
        assert END not in shown(term)
        assert shown(term)


@given(st.text(), st.integers(0, 3_000))
def test_the_terms_of_any_text_are_bounded(text: str, repeats: int) -> None:
    # Composing a character gives at most three.
    assert len(terms(text * repeats)) <= 2 * 3 * (HEAD_CHARACTERS + TAIL_CHARACTERS) + 3
