"""docs/recommendation.md quotes the figures of evaluation.json, all of them as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analytics_service.recommend.difficulty import DATA
from analytics_service.recommend.evaluation import evaluation_summary

FIGURES = json.loads((DATA / "evaluation.json").read_text("utf-8"))
TEMPLATES, PROBE = FIGURES["by_template"], FIGURES["probe"]
QUESTIONS, CALIBRATION = FIGURES["questions"], TEMPLATES["calibration"]
NAMES = {
    "model": "the score",
    "random": "random",
    "characters": "length in characters",
    "words": "length in words",
    "keywords": "keywords",
}
LABELS = {"needs_small": "small", "needs_strong": "strong"}


def table(head: str, rows: list[list[str]]) -> str:
    rule = "|".join("---" for _ in head.split(" | "))
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def spread(figure: dict[str, float]) -> list[str]:
    return [f"{figure['value']:.3f}", f"{figure['low']:.3f} – {figure['high']:.3f}"]


def areas(part: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *spread(part["auc"][key]),
            *(spread(part["lead_over"][key]) if key != "model" else ["", ""]),
        ]
        for key, name in NAMES.items()
    ]
    return table("scored by | AUC | interval | lead of the score | interval", rows)


def routes(part: dict[str, Any]) -> str:
    rows = [
        [
            name,
            *(f"{100 * part['routing'][key][tier]:.1f} %" for tier in ("small", "medium", "large")),
        ]
        for key, name in LABELS.items()
    ]
    return table("label | to small | to medium | to large", rows)


def errors(*sides: list[dict[str, Any]]) -> str:
    return "\n".join(f"- {wrong['score']:.3f}: {wrong['text']}" for side in sides for wrong in side)


PASSAGES = {
    "thresholds": (
        f"below {FIGURES['thresholds']['medium']:.2f} a small model is likely enough, "
        f"from {FIGURES['thresholds']['large']:.2f} on a large one is needed, in between a medium "
        "one"
    ),
    "questions": (
        f"holds {QUESTIONS['count']} questions: {QUESTIONS['templates']} templates with six to "
        f"eight instances each, about {QUESTIONS['families']} subjects; {QUESTIONS['strong']} are "
        "labelled *strong*"
    ),
    "folds": f"{TEMPLATES['folds']}-fold cross-validation",
    "auc": areas(TEMPLATES),
    "halves": (
        f"the AUC is {TEMPLATES['auc_of_shorter_half']:.3f}, "
        f"among the longer half {TEMPLATES['auc_of_longer_half']:.3f}:"
    ),
    "families": f"instead of templates, the AUC is {FIGURES['by_family']['auc']:.3f}.",
    "probe": f"{PROBE['count']} further questions ({PROBE['strong']} *strong*)",
    "probe auc": areas(PROBE),
    "brier": (
        f"Brier score {CALIBRATION['brier']:.3f}, against "
        f"{CALIBRATION['brier_of_base_rate']:.3f} for always saying the share of *strong* "
        f"questions; on the probe {PROBE['brier']:.3f}."
    ),
    "bins": table(
        "scores from | questions | mean score | share *strong*",
        [
            [
                f"{found['from']:.1f}",
                str(found["questions"]),
                f"{found['mean_score']:.3f}",
                f"{found['share_strong']:.3f}",
            ]
            for found in CALIBRATION["bins"]
        ],
    ),
    "routing": routes(TEMPLATES),
    "probe routing": routes(PROBE),
    "too low": errors(TEMPLATES["wrong"]["scored_too_low"]),
    "too high": errors(TEMPLATES["wrong"]["scored_too_high"]),
    "probe wrong": errors(*PROBE["wrong"].values()),
}


@pytest.mark.parametrize("name", PASSAGES)
def test_the_documentation_says_what_was_measured(name: str) -> None:
    # Not shipped with the package, so found from here.
    text = (Path(__file__).parents[3] / "docs" / "recommendation.md").read_text("utf-8")
    assert PASSAGES[name] in text, f"docs/recommendation.md should say:\n{PASSAGES[name]}"


def test_the_summary_for_callers_says_it_too_and_whose_judgement_the_labels_are() -> None:
    summary = evaluation_summary()
    area = TEMPLATES["auc"]["model"]
    assert f"AUC {area['value']:.2f} ({area['low']:.2f} to {area['high']:.2f})" in summary
    assert f"{QUESTIONS['count']} questions" in summary
    assert "by judgement, not by outcomes of models" in summary
