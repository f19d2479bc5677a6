"""Train and evaluate the score behind model recommendations, and write both beside the questions.

    python -m tools.train_recommender           write weights.json and evaluation.json
    python -m tools.train_recommender --check   fail if they differ from what is there

The same questions give the same bytes. Needs scikit-learn; what runs in the service does not.
``docs/recommendation.md`` tells what the figures mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# scikit-learn has neither stubs nor py.typed.
from sklearn.feature_extraction.text import TfidfVectorizer  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold  # type: ignore[import-untyped]
from sklearn.pipeline import Pipeline, make_pipeline  # type: ignore[import-untyped]

from analytics_service.recommend.difficulty import Thresholds
from analytics_service.recommend.features import terms, words

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "analytics_service" / "recommend" / "data"

FOLDS = 10
# Within nine tenths of the questions, where only thresholds are chosen.
INNER_FOLDS = 5
SEED = 20_261_123
RESAMPLES = 2_000

# A term of a single question says more of that question than of its difficulty.
MIN_QUESTIONS = 2
INVERSE_PENALTY = 10.0
# Few digits, and well above what another machine's rounding changes.
DECIMALS = 4

# Of the questions that need a strong model, at most this share may be sent to a small one, and of
# those that need none, at most this share to a large one.
TOLERATED = 0.10

# What one would look for in a hard question, written down without looking at what training finds.
KEYWORDS = frozenset(
    words(
        "why explain cause caused reason diagnose compare analyse analyze best better should would "
        "recommend suggest propose plan predict problem how effect trade warum porque"
    )
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Questions:
    """Labelled questions.

    Attributes:
        texts: The questions.
        labels: 1 where a strong model is needed, 0 where a small one is enough.
        templates: What each is an instance of; questions of one template never part.
        families: What each is about.
    """

    texts: NDArray[np.object_]
    labels: Labels
    templates: NDArray[np.str_]
    families: NDArray[np.str_]

    def part(self, rows: NDArray[np.int64]) -> Questions:
        """The questions in these rows."""
        return Questions(
            self.texts[rows], self.labels[rows], self.templates[rows], self.families[rows]
        )


def read_questions(path: Path) -> Questions:
    """Read labelled questions; without template and family each is one of its own.

    Raises:
        ValueError: A label is neither "small" nor "strong".
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, start=2):
        if row["label"] not in ("small", "strong"):
            raise ValueError(
                f"{path.name}, line {number}, label: got {row['label']!r}; "
                "small and strong are allowed"
            )
    return Questions(
        texts=np.array([row["text"] for row in rows], dtype=object),
        labels=np.array([int(row["label"] == "strong") for row in rows]),
        templates=np.array([row.get("template", str(n)) for n, row in enumerate(rows)]),
        families=np.array([row.get("family", "") for row in rows]),
    )


def fit(questions: Questions) -> Pipeline:
    """Train the score; all settings were fixed for every part of the questions alike."""
    model = make_pipeline(
        TfidfVectorizer(analyzer=terms, min_df=MIN_QUESTIONS, sublinear_tf=True),
        # Newton's method converges to the last digits, so that rounding leaves nothing to chance.
        LogisticRegression(C=INVERSE_PENALTY, solver="newton-cg", tol=1e-12),
    )
    return model.fit(questions.texts, questions.labels)


def shipped(model: Pipeline) -> Pipeline:
    """Round a trained model's coefficients to what the weights file holds."""
    regression = model[-1]
    regression.coef_ = regression.coef_.round(DECIMALS)
    regression.intercept_ = regression.intercept_.round(DECIMALS)
    return model


def score(model: Pipeline, texts: NDArray[np.object_]) -> Floats:
    """Probability that each question needs a strong model."""
    return np.asarray(model.predict_proba(texts)[:, 1])


def by_template(questions: Questions, count: int = FOLDS) -> Iterator[tuple[Any, Any]]:
    """Split the questions so that no template is on both sides."""
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=SEED)
    yield from folds.split(questions.texts, questions.labels, questions.templates)


def by_family(questions: Questions) -> Iterator[tuple[Any, Any]]:
    """Leave out one subject at a time."""
    yield from LeaveOneGroupOut().split(questions.texts, questions.labels, questions.families)


def out_of_fold(
    questions: Questions, split: Callable[[Questions], Iterator[tuple[Any, Any]]]
) -> Floats:
    """Score each question by a model that has not seen its group."""
    scores = np.full(len(questions.texts), np.nan)
    for train, test in split(questions):
        scores[test] = score(fit(questions.part(train)), questions.texts[test])
    return scores


def thresholds(labels: Labels, scores: Floats) -> Thresholds:
    """Choose the scores from which a medium and a large model is needed; see `TOLERATED`."""
    strong, small = scores[labels == 1], scores[labels == 0]
    hundredths = [step / 100 for step in range(101)]
    medium = max(limit for limit in hundredths if (strong < limit).mean() <= TOLERATED)
    large = min(limit for limit in hundredths if (small >= limit).mean() <= TOLERATED)
    return Thresholds(medium=medium, large=max(medium, large))


def auc(labels: Labels, scores: Floats) -> float:
    """Probability that a question that needs a strong model scores above one that does not."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Equal scores share the mean of their places.
    places = (np.cumsum(counts) - (counts - 1) / 2)[ranks]
    strong = int(labels.sum())
    wins = places[labels == 1].sum() - strong * (strong + 1) / 2
    return float(wins / (strong * (len(labels) - strong)))


def resamples(groups: NDArray[np.str_]) -> list[NDArray[np.int64]]:
    """Draw the rows of as many groups as there are, with replacement, many times."""
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    generator = np.random.default_rng(SEED)
    draws = generator.integers(len(rows), size=(RESAMPLES, len(rows)))
    return [np.concatenate([rows[i] for i in draw]) for draw in draws]


def figure(value: float) -> float:
    """Round a figure to the digits that are reported; no negative zero."""
    return round(float(value), 3) + 0.0


def interval(values: Sequence[float]) -> dict[str, float]:
    """Give the middle 95 % of resampled values."""
    low, high = np.quantile(np.array(values), (0.025, 0.975))
    return {"low": figure(low), "high": figure(high)}


def baselines(texts: NDArray[np.object_]) -> dict[str, Floats]:
    """Score the questions by other means."""
    return {
        "random": np.random.default_rng(SEED).random(len(texts)),
        "characters": np.array([float(len(text)) for text in texts]),
        "words": np.array([float(len(text.split())) for text in texts]),
        "keywords": np.array([float(len(KEYWORDS & set(words(text)))) for text in texts]),
    }


def discrimination(questions: Questions, scores: Floats) -> dict[str, Any]:
    """Give the AUC of the model and of the baselines, with intervals over resampled templates."""
    labels = questions.labels
    drawn = resamples(questions.templates)
    every = {"model": scores, **baselines(questions.texts)}
    resampled = {
        name: [auc(labels[rows], values[rows]) for rows in drawn] for name, values in every.items()
    }
    areas = {
        name: {"value": figure(auc(labels, values)), **interval(resampled[name])}
        for name, values in every.items()
    }
    lead = {
        name: {
            "value": figure(auc(labels, scores) - auc(labels, values)),
            **interval(np.subtract(resampled["model"], resampled[name]).tolist()),
        }
        for name, values in every.items()
        if name != "model"
    }
    return {"auc": areas, "lead_over": lead}


def calibration(labels: Labels, scores: Floats) -> dict[str, Any]:
    """Tell how far scores can be read as probabilities."""
    bins = []
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (scores >= low) & (scores < low + 0.2 if low < 0.8 else scores <= 1)
        bins.append(
            {
                "from": low,
                "questions": int(inside.sum()),
                "mean_score": figure(scores[inside].mean()),
                "share_strong": figure(labels[inside].mean()),
            }
        )
    return {
        "brier": figure(((scores - labels) ** 2).mean()),
        "brier_of_base_rate": figure(((labels.mean() - labels) ** 2).mean()),
        "bins": bins,
    }


def routing(labels: Labels, medium: Floats, large: Floats, scores: Floats) -> dict[str, Any]:
    """Tell which tier the questions of either label are sent to, given each one's thresholds."""
    tiers = np.where(scores >= large, 2, np.where(scores >= medium, 1, 0))
    return {
        name: {
            tier: figure((tiers[labels == label] == n).mean())
            for n, tier in enumerate(("small", "medium", "large"))
        }
        for name, label in (("needs_small", 0), ("needs_strong", 1))
    }


def nested_routing(questions: Questions) -> dict[str, Any]:
    """Route with thresholds that were chosen without the questions they are tried on."""
    scores, medium, large = (np.full(len(questions.texts), np.nan) for _ in range(3))
    for train, test in by_template(questions):
        seen = questions.part(train)
        chosen = thresholds(seen.labels, out_of_fold(seen, partial(by_template, count=INNER_FOLDS)))
        medium[test], large[test] = chosen.medium, chosen.large
        scores[test] = score(fit(seen), questions.texts[test])
    return routing(questions.labels, medium, large, scores)


def worst(questions: Questions, scores: Floats, count: int = 6) -> dict[str, Any]:
    """List the questions whose score is furthest from their label, at most one of a template."""
    found: dict[str, list[dict[str, Any]]] = {"scored_too_low": [], "scored_too_high": []}
    used: set[str] = set()
    for row in np.argsort(-np.abs(scores - questions.labels), kind="stable"):
        side = found["scored_too_low" if questions.labels[row] else "scored_too_high"]
        template = str(questions.templates[row])
        if template not in used and len(side) < count:
            used.add(template)
            side.append({"text": str(questions.texts[row]), "score": figure(scores[row])})
    return found


def evaluate(
    questions: Questions, scores: Floats, probe: Questions, model: Pipeline, chosen: Thresholds
) -> dict[str, Any]:
    """Collect every figure that the documentation quotes."""
    labels = questions.labels
    lengths = baselines(questions.texts)["characters"]
    short = lengths <= np.median(lengths)
    families = out_of_fold(questions, by_family)
    tried = score(model, probe.texts)
    medium, large = (np.full(len(tried), limit) for limit in (chosen.medium, chosen.large))
    return {
        "questions": {
            "count": len(labels),
            "strong": int(labels.sum()),
            "templates": len(set(questions.templates)),
            "families": len(set(questions.families)),
        },
        "thresholds": {"medium": chosen.medium, "large": chosen.large},
        "by_template": {
            "folds": FOLDS,
            **discrimination(questions, scores),
            "auc_of_shorter_half": figure(auc(labels[short], scores[short])),
            "auc_of_longer_half": figure(auc(labels[~short], scores[~short])),
            "calibration": calibration(labels, scores),
            "routing": nested_routing(questions),
            "wrong": worst(questions, scores),
        },
        "by_family": {"auc": figure(auc(labels, families))},
        "probe": {
            "count": len(tried),
            "strong": int(probe.labels.sum()),
            **discrimination(probe, tried),
            "brier": figure(((tried - probe.labels) ** 2).mean()),
            "routing": routing(probe.labels, medium, large, tried),
            "wrong": worst(probe, tried, count=3),
        },
    }


def weights(model: Pipeline, questions: Questions, chosen: Thresholds) -> dict[str, Any]:
    """Give what the run time needs; document counts, as it works out the frequencies itself."""
    vectorizer, regression = model[0], model[-1]
    containing = np.bincount(
        [
            vectorizer.vocabulary_[term]
            for text in questions.texts
            for term in set(terms(text))
            if term in vectorizer.vocabulary_
        ]
    )
    return {
        "documents": len(questions.texts),
        "intercept": float(regression.intercept_[0]),
        "thresholds": {"medium": chosen.medium, "large": chosen.large},
        "terms": {
            term: [int(containing[column]), float(regression.coef_[0, column])]
            for term, column in sorted(vectorizer.vocabulary_.items())
        },
    }


def weights_json(content: dict[str, Any]) -> str:
    """Write the weights with one term a line, so that changes can be read."""
    *head, _ = json.dumps({**content, "terms": None}, indent=1).rsplit(" null", 1)
    lines = ",\n".join(
        f"  {json.dumps(term, ensure_ascii=False)}: {json.dumps(value)}"
        for term, value in content["terms"].items()
    )
    return f"{head[0]} {{\n{lines}\n }}\n}}\n"


def train() -> tuple[Pipeline, dict[Path, str]]:
    """Train and evaluate; return the model that ships, and the text of each file."""
    questions = read_questions(DATA / "questions.tsv")
    probe = read_questions(DATA / "probe.tsv")
    scores = out_of_fold(questions, by_template)
    chosen = thresholds(questions.labels, scores)
    model = shipped(fit(questions))
    figures = evaluate(questions, scores, probe, model, chosen)
    return model, {
        DATA / "weights.json": weights_json(weights(model, questions, chosen)),
        DATA / "evaluation.json": json.dumps(figures, indent=1, ensure_ascii=False) + "\n",
    }


def main() -> int:
    """Write the files, or compare them; return the exit code."""
    parser = argparse.ArgumentParser(description="Train the score behind model recommendations.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    _, texts = train()
    stale = [
        path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text
    ]
    for path in stale:
        if not check:
            path.write_text(texts[path], "utf-8")
        print(f"{path.relative_to(ROOT)}: {'differs' if check else 'written'}")
    if check and stale:
        print("Run python -m tools.train_recommender and commit what it writes.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
