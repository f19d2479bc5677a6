"""The cheapest model that is likely good enough for a question. Advice: it changes no choice.

Hard constraints first (see `candidates`), then the score of the question says which tier of models
it needs, then the cheapest model of this tier or a stronger one is best.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from analytics_service.catalogue.model import Stage, Tier
from analytics_service.recommend.candidates import (
    Candidate,
    Constraints,
    Violation,
    dollars,
    violations,
)
from analytics_service.recommend.difficulty import (
    Difficulty,
    Thresholds,
    difficulty,
    shipped_weights,
)

_TIERS = tuple(Tier)


@dataclass(frozen=True, slots=True)
class Option:
    """A model in its place.

    Attributes:
        candidate: The model.
        good_enough: Its tier is likely enough for the question. Said of excluded models too.
        violations: The hard constraints that it does not fulfil; any: it is excluded.
        estimated_cost: Most US dollars that one call costs; None: not known. See `Candidate.cost`.
        reasons: Why it is in its place; sentences for people.
    """

    candidate: Candidate
    good_enough: bool
    violations: tuple[Violation, ...]
    estimated_cost: Decimal | None
    reasons: tuple[str, ...]

    @property
    def excluded(self) -> bool:
        """Whether a hard constraint rules it out."""
        return bool(self.violations)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which model to take for a question, and why.

    Attributes:
        difficulty: How much the question seems to need a strong model.
        tier: The weakest tier that is likely good enough.
        best: The cheapest model that is likely good enough; None: none fits, `reasons` tells why
            and what to loosen.
        options: Every model in order: those good enough, the cheapest first; those too weak, the
            strongest first; those that a hard constraint excludes, by name.
        loosen: Where none fits, what stands in the way of the model that comes nearest. Empty
            where one fits, and where loosening does not help.
        reasons: Why; sentences for people.
    """

    difficulty: Difficulty
    tier: Tier
    best: Option | None
    options: tuple[Option, ...]
    loosen: tuple[Violation, ...]
    reasons: tuple[str, ...]

    @property
    def score(self) -> float:
        """How much the question seems to need a strong model, from 0 to 1."""
        return self.difficulty.score


def recommend(
    question: str, candidates: Iterable[Candidate], constraints: Constraints
) -> Recommendation:
    """Recommends a model for a question about training runs.

    Raises:
        ValueError: Two candidates have the same id.
    """
    return choose(difficulty(question), candidates, constraints, shipped_weights().thresholds)


def tier_for(score: float, thresholds: Thresholds) -> Tier:
    """The weakest tier that is likely good enough for a question with this score."""
    if score >= thresholds.large:
        return Tier.LARGE
    if score >= thresholds.medium:
        return Tier.MEDIUM
    return Tier.SMALL


def choose(
    question: Difficulty,
    candidates: Iterable[Candidate],
    constraints: Constraints,
    thresholds: Thresholds,
) -> Recommendation:
    """Recommends a model for a question of known difficulty.

    Raises:
        ValueError: Two candidates have the same id.
    """
    tier = tier_for(question.score, thresholds)
    options = sorted(
        (_option(candidate, constraints, tier) for candidate in _unique(candidates)), key=_place
    )
    asked = _about_the_question(question, tier, thresholds)
    best = next((o for o in options if o.good_enough and not o.excluded), None)
    loosen: tuple[Violation, ...] = ()
    if best is not None:
        why = _why_best(best, tier)
    else:
        loosen, why = _why_none(options, tier)
    return Recommendation(question, tier, best, tuple(options), loosen, (*asked, *why))


def _unique(candidates: Iterable[Candidate]) -> Iterable[Candidate]:
    """The candidates, each id once."""
    seen: set[str] = set()
    for candidate in candidates:
        if candidate.model_id in seen:
            raise ValueError(f"candidates: {candidate.model_id} is listed twice; once is allowed")
        seen.add(candidate.model_id)
        yield candidate


def _option(candidate: Candidate, constraints: Constraints, tier: Tier) -> Option:
    good_enough = _TIERS.index(candidate.tier) >= _TIERS.index(tier)
    found = violations(candidate, constraints)
    price = candidate.blended_price
    reasons = [f"Excluded: {violation.reason}." for violation in found]
    if good_enough:
        reasons.append(f"Of tier {candidate.tier}; the question seems to need {tier}.")
    else:
        reasons.append(f"Likely too weak: of tier {candidate.tier}, {tier} seems needed.")
    if price is None:
        reasons.append("Its price is not known, so it ranks behind those with a known price.")
    else:
        reasons.append(f"Costs {dollars(price)} for a typical million tokens.")
    if candidate.stage is Stage.DEPRECATED:
        reasons.append("Deprecated: its provider is going to shut it down.")
    if candidate.context_window is None:
        reasons.append("Its context window is not known, so whether all of it fits is not checked.")
    return Option(candidate, good_enough, found, candidate.cost(constraints), tuple(reasons))


def _place(option: Option) -> tuple[bool, bool, int, tuple[bool, Decimal, str, str]]:
    """Sorts the options as `Recommendation.options` says."""
    candidate = option.candidate
    if option.excluded:
        return True, False, 0, (False, Decimal(), candidate.display_name, candidate.model_id)
    strength = 0 if option.good_enough else -_TIERS.index(candidate.tier)
    return False, not option.good_enough, strength, _by_price(candidate)


def _by_price(candidate: Candidate) -> tuple[bool, Decimal, str, str]:
    """The cheapest first, unknown prices last, ties by name."""
    price = candidate.blended_price
    return price is None, price or Decimal(), candidate.display_name, candidate.model_id


def _about_the_question(
    question: Difficulty, tier: Tier, thresholds: Thresholds
) -> tuple[str, ...]:
    placed = (
        f"The question scores {question.score:.2f} on a scale from 0 (a look-up) to 1 (needs a "
        f"strong model): below {thresholds.medium:.2f} a small model is likely enough, "
        f"from {thresholds.large:.2f} on a large one is needed; so {tier}."
    )
    reasons = [placed]
    strong = [f'"{term.text}"' for term in question.terms if term.weight > 0]
    small = [f'"{term.text}"' for term in question.terms if term.weight < 0]
    if strong:
        reasons.append(f"For a strong model speaks: {', '.join(strong)}.")
    if small:
        reasons.append(f"For a small model speaks: {', '.join(small)}.")
    if not question.recognised:
        reasons.append("No word of it was seen in training, so the score is a mere prior.")
    if question.shortened:
        reasons.append("Only its beginning and its end were read, as it is long.")
    return tuple(reasons)


def _why_best(best: Option, tier: Tier) -> tuple[str, ...]:
    cheapest = (
        f"{best.candidate.display_name} is the cheapest model that fulfils every constraint and is "
        f"of tier {tier} or stronger."
    )
    return (cheapest, *best.reasons[1:])


def _why_none(
    options: Sequence[Option], tier: Tier
) -> tuple[tuple[Violation, ...], tuple[str, ...]]:
    """What to loosen, and sentences about it."""
    reasons = [f"No model fits that is of tier {tier} or stronger."]
    mendable = [
        option
        for option in options
        if option.good_enough and all(violation.remedy for violation in option.violations)
    ]
    loosen: tuple[Violation, ...] = ()
    if mendable:
        nearest = min(mendable, key=lambda o: (len(o.violations), _by_price(o.candidate)))
        loosen = nearest.violations
        remedies = " and ".join(str(violation.remedy) for violation in loosen)
        reasons.append(f"{nearest.candidate.display_name} comes nearest: {remedies}.")
    else:
        reasons.append(f"Loosening a constraint does not help: list a model of tier {tier}.")
    weaker = next((option for option in options if not option.excluded), None)
    if weaker is not None:
        reasons.append(
            f"{weaker.candidate.display_name} (tier {weaker.candidate.tier}) fulfils every "
            "constraint and is likely too weak."
        )
    return loosen, tuple(reasons)
