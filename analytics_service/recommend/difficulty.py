"""How much a question about training runs seems to need a strong model: a score with its reasons.

A logistic regression over TF-IDF of words and pairs of words, trained by
`tools/train_recommender.py` on the questions in `data/`. This module does the same sums as
scikit-learn, in plain Python, so that a server needs neither numpy nor scikit-learn.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from analytics_service.recommend.features import is_shortened, shown, terms

DATA = files(__package__) / "data"
"""The questions, and what training made of them."""

QUOTED_TERMS = 3
"""Terms that are quoted for each side."""


@dataclass(frozen=True, slots=True)
class Term:
    """A word, or two neighbouring words, of a question, and what it says of the question.

    Attributes:
        text: The words.
        weight: What it adds to the log-odds: above zero it speaks for a strong model, below zero
            for a small one.
    """

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How much a question seems to need a strong model.

    Attributes:
        score: From 0, a small model surely will do, to 1, it surely needs a strong one.
        terms: The terms that spoke most, at most three for each side, the weightiest first.
        recognised: Terms of the question that were seen in training; 0: the score says nothing
            about this question, only about questions in general.
        shortened: Only the beginning and the end of the question were read, as it is long.
    """

    score: float
    terms: tuple[Term, ...]
    recognised: int
    shortened: bool


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Scores at which the next stronger tier of models is needed.

    Attributes:
        medium: From this score on a small model is not enough.
        large: From this score on a medium model is not enough either.
    """

    medium: float
    large: float


@dataclass(frozen=True, slots=True)
class Weights:
    """What training found.

    Attributes:
        terms: For each term the inverse document frequency and the coefficient.
        intercept: Log-odds of a question without any known term.
        thresholds: See there.
    """

    terms: Mapping[str, tuple[float, float]]
    intercept: float
    thresholds: Thresholds

    @classmethod
    def from_json(cls, text: str) -> Weights:
        """Reads the file that training wrote; it holds counts, so that it has few digits."""
        content = json.loads(text)
        documents = content["documents"]
        return cls(
            terms=MappingProxyType(
                {
                    term: (math.log((1 + documents) / (1 + containing)) + 1, coefficient)
                    for term, (containing, coefficient) in content["terms"].items()
                }
            ),
            intercept=content["intercept"],
            thresholds=Thresholds(**content["thresholds"]),
        )


@cache
def shipped_weights() -> Weights:
    """The weights that come with the package; read once."""
    return Weights.from_json((DATA / "weights.json").read_text("utf-8"))


def difficulty(text: str, weights: Weights | None = None) -> Difficulty:
    """Estimates how much a question needs a strong model.

    Takes time that grows with the text up to a cap, beyond which only its beginning and its end
    are read (see `features`).

    Args:
        text: The question, in any language; it was trained on English, and a little German and
            Spanish.
        weights: What training found; None: what comes with the package.
    """
    weights = weights or shipped_weights()
    known = weights.terms
    counts = Counter(term for term in terms(text) if term in known)
    # Sublinear term frequency, smooth inverse document frequency, a vector of length one.
    vector = {term: (1 + math.log(count)) * known[term][0] for term, count in counts.items()}
    length = math.sqrt(math.fsum(value * value for value in vector.values()))
    parts = {term: value / length * known[term][1] for term, value in vector.items()}
    return Difficulty(
        score=_logistic(math.fsum([weights.intercept, *parts.values()])),
        terms=_weightiest(parts),
        recognised=counts.total(),
        shortened=is_shortened(text),
    )


def _logistic(log_odds: float) -> float:
    """The probability with these log-odds; neither sign overflows."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    return math.exp(log_odds) / (1 + math.exp(log_odds))


def _weightiest(parts: Mapping[str, float]) -> tuple[Term, ...]:
    """The terms that say most, for either side, in one order."""
    weights: dict[str, float] = {}
    for term, weight in parts.items():
        # "why", "^ why" and "why $" are one word to whoever reads the reasons.
        weights[shown(term)] = weights.get(shown(term), 0.0) + weight
    found = [Term(text, weight) for text, weight in weights.items() if weight]
    quoted = [
        *_first(term for term in found if term.weight > 0),
        *_first(term for term in found if term.weight < 0),
    ]
    return tuple(sorted(quoted, key=_by_weight))


def _first(side: Iterable[Term]) -> list[Term]:
    return sorted(side, key=_by_weight)[:QUOTED_TERMS]


def _by_weight(term: Term) -> tuple[float, str]:
    return -abs(term.weight), term.text
