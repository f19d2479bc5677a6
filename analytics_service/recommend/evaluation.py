"""What the score was evaluated on, and how well it does, in a sentence for whoever gets advice."""

from __future__ import annotations

import json
from functools import cache

from analytics_service.recommend.difficulty import DATA


@cache
def evaluation_summary() -> str:
    """The figures of `data/evaluation.json` that a reader of a recommendation should know."""
    figures = json.loads((DATA / "evaluation.json").read_text("utf-8"))
    questions, auc = figures["questions"], figures["by_template"]["auc"]["model"]
    length = figures["by_template"]["auc"]["characters"]
    return (
        f"Trained on {questions['count']} questions about training runs that the authors wrote and "
        "labelled by judgement, not by outcomes of models. On unseen templates: "
        f"AUC {auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f}), "
        f"the question's length alone {length['value']:.2f}, chance 0.50."
    )
