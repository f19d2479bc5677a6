"""The terms of a question: what training counts and what the score at run time looks up.

Training and run time share this module, so that both see the same terms in the same text.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

HEAD_CHARACTERS = 1_000
TAIL_CHARACTERS = 1_000
"""Of a longer text only its beginning and its end are read. Where a log is pasted, the question
stands there, and the work is bounded whatever is pasted."""

START = "^"
END = "$"
"""Stand before the first and after the last word: "^ why" is a question that opens with why. No
word contains them."""

# Underscores and hyphens part words: grad_norm is grad and norm, sft-7b is sft and 7b.
_WORD = re.compile(r"[^\W_]+")
_DIGITS = re.compile(r"\d+")


def is_shortened(text: str) -> bool:
    """Whether a text is too long to be read whole."""
    return len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS


def words(text: str) -> list[str]:
    """The words of a text in lower case, in order.

    Every number becomes 0: which step or which job is asked about says nothing of how hard the
    question is.
    """
    if is_shortened(text):
        text = f"{text[:HEAD_CHARACTERS]} {text[-TAIL_CHARACTERS:]}"
    composed = unicodedata.normalize("NFC", text).lower()
    return _WORD.findall(_DIGITS.sub("0", composed))


def terms(text: str) -> list[str]:
    """The terms of a text with repeats: its words and its pairs of neighbouring words.

    The ends of the text count as neighbours; a text without words has no terms.
    """
    found = words(text)
    if not found:
        return []
    row = [START, *found, END]
    return [*found, *(f"{left} {right}" for left, right in pairwise(row))]


def shown(term: str) -> str:
    """A term as people would quote it: without the marks of the ends, N for any number."""
    inner = " ".join(word for word in term.split(" ") if word not in (START, END))
    return inner.replace("0", "N")
