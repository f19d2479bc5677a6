"""Which model is recommended: rules that hold for any candidates, constraints and score."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from analytics_service.catalogue.model import CostBand, Stage, Tier
from analytics_service.recommend.candidates import (
    Candidate,
    Constraints,
    Rule,
    dollars,
    violations,
)
from analytics_service.recommend.difficulty import Difficulty, Thresholds
from analytics_service.recommend.recommend import Recommendation, choose, recommend, tier_for

TIERS = list(Tier)
BANDS = list(CostBand)
THRESHOLDS = Thresholds(medium=0.4, large=0.6)

SMALL = Candidate(
    model_id="mini",
    display_name="Mini",
    provider="acme",
    tier=Tier.SMALL,
    band=CostBand.LOW,
    input_price=Decimal("0.15"),
    output_price=Decimal("0.60"),
    context_window=128_000,
    supports_tools=True,
)
LARGE = replace(
    SMALL,
    model_id="max",
    display_name="Max",
    tier=Tier.LARGE,
    band=CostBand.HIGH,
    input_price=Decimal(3),
    output_price=Decimal(15),
)
ASKED = Constraints(input_tokens=4_000, max_output_tokens=1_000)
EASY = "which jobs are running"
HARD = "why did the reward collapse and what should I do?"

# Most candidates fulfil most constraints, so that there is something to choose; few prices, so that
# there are ties.
prices = st.sampled_from([None, *map(Decimal, ("0", "0.15", "0.60", "1", "3", "3.00", "15"))])
candidates_ = st.builds(
    Candidate,
    model_id=st.uuids().map(str),
    display_name=st.sampled_from(["Alpha", "Beta", "Gamma"]),
    provider=st.just("acme"),
    tier=st.sampled_from(TIERS),
    band=st.none() | st.sampled_from(BANDS),
    input_price=prices,
    output_price=prices,
    context_window=st.sampled_from([None, 1_000, 8_192, 32_768, 1_000_000]),
    supports_tools=st.sampled_from([True, True, True, False]),
    stage=st.sampled_from([Stage.ACTIVE, *Stage]),
    unavailable_reason=st.sampled_from([None, None, None, "set ACME_API_KEY"]),
)
several = st.lists(candidates_, min_size=2, max_size=12, unique_by=lambda c: c.model_id)
constraints_ = st.builds(
    Constraints,
    input_tokens=st.integers(0, 8_000),
    max_output_tokens=st.integers(0, 2_000),
    need_tools=st.booleans(),
    budget_left=st.sampled_from([None, None, *map(Decimal, ("-1", "0.01", "0.05", "1"))]),
    max_band=st.sampled_from([None, None, None, *BANDS]),
)
scores = st.floats(0, 1)


def chosen(score: float, models: list[Candidate], asked: Constraints) -> Recommendation:
    return choose(Difficulty(score, (), 1, shortened=False), models, asked, THRESHOLDS)


def best_of(recommendation: Recommendation) -> Candidate | None:
    return None if recommendation.best is None else recommendation.best.candidate


def price_of(candidate: Candidate) -> tuple[bool, Decimal]:
    price = candidate.blended_price
    return price is None, price or Decimal()


def test_the_candidates_drawn_below_often_have_a_best_and_often_none() -> None:
    seen: Counter[bool] = Counter()

    @settings(max_examples=100, derandomize=True, database=None)
    @given(scores, several, constraints_)
    def draw(score: float, models: list[Candidate], asked: Constraints) -> None:
        seen[chosen(score, models, asked).best is not None] += 1

    draw()
    assert min(seen[True], seen[False]) > 20


@given(scores, several, constraints_)
def test_the_best_fulfils_every_constraint_in_the_simplest_of_terms(
    score: float, models: list[Candidate], asked: Constraints
) -> None:
    best = best_of(chosen(score, models, asked))
    if best is None:
        return
    assert best.available
    assert best.stage is not Stage.RETIRED
    assert best.supports_tools or not asked.need_tools
    if best.context_window is not None:
        assert asked.input_tokens + asked.max_output_tokens <= best.context_window
    if asked.max_band is not None:
        assert best.band is not None
        assert BANDS.index(best.band) <= BANDS.index(asked.max_band)
    if asked.budget_left is not None:
        assert best.input_price is not None
        assert best.output_price is not None
        bill = asked.input_tokens * best.input_price + asked.max_output_tokens * best.output_price
        assert bill / 1_000_000 <= asked.budget_left
    assert TIERS.index(best.tier) >= TIERS.index(tier_for(score, THRESHOLDS))


@given(scores, several, constraints_)
def test_no_model_that_would_do_is_cheaper_than_the_best(
    score: float, models: list[Candidate], asked: Constraints
) -> None:
    recommendation = chosen(score, models, asked)
    needed = TIERS.index(recommendation.tier)
    fitting = [m for m in models if not violations(m, asked) and TIERS.index(m.tier) >= needed]
    best = best_of(recommendation)
    if best is None:
        assert fitting == []
    else:
        assert min(map(price_of, fitting)) == price_of(best)


@given(scores, several, constraints_, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(
    score: float, models: list[Candidate], asked: Constraints, random: Random
) -> None:
    shuffled = list(models)
    random.shuffle(shuffled)
    assert chosen(score, shuffled, asked) == chosen(score, models, asked)


@given(scores, several, candidates_, st.decimals("0.01", 10, places=2), constraints_)
def test_a_dearer_model_does_not_change_the_best(
    score: float, models: list[Candidate], extra: Candidate, more: Decimal, asked: Constraints
) -> None:
    before = best_of(chosen(score, models, asked))
    if before is None or before.input_price is None or before.output_price is None:
        return
    dearer = replace(extra, input_price=before.input_price + more, output_price=before.output_price)
    assert price_of(dearer) > price_of(before)
    assert best_of(chosen(score, [*models, dearer], asked)) == before
    same_tier = replace(dearer, tier=before.tier)
    assert best_of(chosen(score, [*models, same_tier], asked)) == before


@given(scores, several, constraints_, constraints_)
def test_loosening_never_makes_the_best_dearer(
    score: float, models: list[Candidate], asked: Constraints, other: Constraints
) -> None:
    budgets = (asked.budget_left, other.budget_left)
    bands = (asked.max_band, other.max_band)
    looser = Constraints(
        input_tokens=min(asked.input_tokens, other.input_tokens),
        max_output_tokens=min(asked.max_output_tokens, other.max_output_tokens),
        need_tools=asked.need_tools and other.need_tools,
        budget_left=None if None in budgets else max(b for b in budgets if b is not None),
        max_band=None if None in bands else max((b for b in bands if b), key=BANDS.index),
    )
    before, after = (best_of(chosen(score, models, c)) for c in (asked, looser))
    if before is not None:
        assert after is not None
        assert price_of(after) <= price_of(before)


@given(scores, scores, several, constraints_)
def test_a_harder_question_never_gets_a_cheaper_model(
    one: float, other: float, models: list[Candidate], asked: Constraints
) -> None:
    easier, harder = (best_of(chosen(s, models, asked)) for s in sorted((one, other)))
    if harder is not None:
        assert easier is not None
        assert price_of(easier) <= price_of(harder)


@given(scores, several, constraints_)
def test_every_model_is_an_option_once_and_in_order(
    score: float, models: list[Candidate], asked: Constraints
) -> None:
    recommendation = chosen(score, models, asked)
    options = recommendation.options
    assert sorted(o.candidate.model_id for o in options) == sorted(m.model_id for m in models)
    kinds = [2 if o.excluded else 0 if o.good_enough else 1 for o in options]
    assert kinds == sorted(kinds)
    good = [price_of(o.candidate) for o in options if not o.excluded and o.good_enough]
    assert good == sorted(good)
    weak = [
        (-TIERS.index(o.candidate.tier), price_of(o.candidate))
        for o in options
        if not o.excluded and not o.good_enough
    ]
    assert weak == sorted(weak)
    for option in options:
        assert len(option.reasons) >= 2
        excluded = [reason for reason in option.reasons if reason.startswith("Excluded: ")]
        assert len(excluded) == len(option.violations)
        assert (option.estimated_cost is None) == (option.candidate.blended_price is None)


@given(scores, several, constraints_)
def test_where_none_fits_doing_what_is_said_helps(
    score: float, models: list[Candidate], asked: Constraints
) -> None:
    recommendation = chosen(score, models, asked)
    assume(recommendation.best is None)
    if not recommendation.loosen:
        needed = TIERS.index(recommendation.tier)
        enough = [m for m in models if TIERS.index(m.tier) >= needed]
        assert all(m.stage is Stage.RETIRED for m in enough)
        assert any("does not help" in reason for reason in recommendation.reasons)
        return
    loosened, mended = asked, models
    for violation in recommendation.loosen:
        assert violation.remedy is not None
        assert any(violation.remedy in reason for reason in recommendation.reasons)
        match violation.rule:
            case Rule.AVAILABILITY:
                mended = [replace(m, unavailable_reason=None) for m in models]
            case Rule.TOOLS:
                loosened = replace(loosened, need_tools=False)
            case Rule.CONTEXT:
                loosened = replace(loosened, input_tokens=0, max_output_tokens=0)
            case Rule.BUDGET:
                loosened = replace(loosened, budget_left=None)
            case Rule.COST_BAND:
                loosened = replace(loosened, max_band=None)
            case Rule.LIFECYCLE:
                raise AssertionError("nothing brings back what is retired")
    assert chosen(score, mended, loosened).best is not None


def test_an_easy_question_goes_to_the_small_model_and_a_hard_one_to_the_large() -> None:
    for question, expected in ((EASY, SMALL), (HARD, LARGE)):
        recommendation = recommend(question, [LARGE, SMALL], ASKED)
        assert best_of(recommendation) == expected
        assert recommendation.score == recommendation.difficulty.score
    assert any('"why"' in reason for reason in recommend(HARD, [LARGE], ASKED).reasons)


@pytest.mark.parametrize(
    ("score", "tier"),
    [
        (0.0, Tier.SMALL),
        (0.39, Tier.SMALL),
        (0.4, Tier.MEDIUM),
        (0.59, Tier.MEDIUM),
        (0.6, Tier.LARGE),
        (1.0, Tier.LARGE),
    ],
)
def test_the_tier_at_and_around_the_thresholds(score: float, tier: Tier) -> None:
    assert tier_for(score, THRESHOLDS) is tier


def test_the_cost_is_exact_and_unknown_where_a_price_is() -> None:
    assert SMALL.cost(ASKED) == Decimal("0.0012")
    assert SMALL.blended_price == Decimal("0.2625")
    assert replace(SMALL, output_price=None).cost(ASKED) is None
    free = replace(SMALL, input_price=Decimal(0), output_price=Decimal(0), band=CostBand.FREE)
    assert free.cost(ASKED) == 0


def test_ties_go_by_display_name() -> None:
    twin = replace(SMALL, model_id="aaa", display_name="Zed")
    assert best_of(recommend(EASY, [twin, SMALL], ASKED)) == SMALL


@pytest.mark.parametrize(
    ("candidate", "asked", "rule", "reason"),
    [
        (
            replace(SMALL, stage=Stage.RETIRED),
            ASKED,
            Rule.LIFECYCLE,
            "its provider has retired it",
        ),
        (
            replace(SMALL, unavailable_reason="set ACME_API_KEY"),
            ASKED,
            Rule.AVAILABILITY,
            "it is not available: set ACME_API_KEY",
        ),
        (replace(SMALL, supports_tools=False), ASKED, Rule.TOOLS, "it can not call tools"),
        (
            replace(SMALL, context_window=4_999),
            ASKED,
            Rule.CONTEXT,
            "question and answer take 5000 tokens and its context window holds 4999",
        ),
        (
            SMALL,
            replace(ASKED, budget_left=Decimal("0.0011")),
            Rule.BUDGET,
            "it costs up to $0.0012 and the budget leaves $0.0011",
        ),
        (
            replace(SMALL, input_price=None),
            replace(ASKED, budget_left=Decimal(100)),
            Rule.BUDGET,
            "its price is not known, so it may cost more than the $100 left",
        ),
        (
            LARGE,
            replace(ASKED, max_band=CostBand.MEDIUM),
            Rule.COST_BAND,
            "its cost band is $$$ and $$ is the dearest allowed",
        ),
        (
            replace(SMALL, band=None),
            replace(ASKED, max_band=CostBand.VERY_HIGH),
            Rule.COST_BAND,
            "its cost band is not known and $$$$ is the dearest allowed",
        ),
    ],
)
def test_each_constraint_excludes_with_its_reason(
    candidate: Candidate, asked: Constraints, rule: Rule, reason: str
) -> None:
    [violation] = violations(candidate, asked)
    assert (violation.rule, violation.reason) == (rule, reason)
    [option] = recommend(EASY, [candidate], asked).options
    assert option.reasons[0] == f"Excluded: {reason}."


@pytest.mark.parametrize(
    "asked",
    [
        replace(ASKED, budget_left=Decimal("0.0012")),
        replace(ASKED, max_band=CostBand.LOW),
        Constraints(input_tokens=127_000, max_output_tokens=1_000),
    ],
)
def test_what_just_fits_is_not_excluded(asked: Constraints) -> None:
    assert violations(SMALL, asked) == ()


def test_a_deprecated_model_is_recommended_with_a_word_of_warning() -> None:
    best = recommend(EASY, [replace(SMALL, stage=Stage.DEPRECATED)], ASKED).best
    assert best is not None
    assert "Deprecated: its provider is going to shut it down." in best.reasons


def test_what_is_not_known_of_a_model_is_said() -> None:
    unknown = replace(SMALL, input_price=None, context_window=None)
    dear = replace(SMALL, model_id="dear", input_price=Decimal(40))
    options = recommend(EASY, [unknown, dear], ASKED).options
    assert [option.candidate for option in options] == [dear, unknown]
    assert "price is not known" in options[1].reasons[1]
    assert "context window is not known" in options[1].reasons[2]


def test_the_nearest_model_is_named_with_what_to_do() -> None:
    asked = replace(ASKED, budget_left=Decimal("0.001"))
    recommendation = recommend(HARD, [SMALL, LARGE], asked)
    assert recommendation.best is None
    assert [violation.rule for violation in recommendation.loosen] == [Rule.BUDGET]
    assert "Max comes nearest: raise the budget to $0.027." in recommendation.reasons


def test_the_nearest_model_is_the_one_that_the_fewest_constraints_exclude() -> None:
    cheaper = replace(
        LARGE, model_id="far", display_name="Far", input_price=Decimal(2), supports_tools=False
    )
    asked = replace(ASKED, max_band=CostBand.MEDIUM)
    recommendation = recommend(HARD, [cheaper, LARGE], asked)
    assert recommendation.reasons[-1] == "Max comes nearest: allow cost band $$$."
    both = recommend(HARD, [cheaper], asked)
    assert both.reasons[-1] == (
        "Far comes nearest: allow models that can not call tools and allow cost band $$$."
    )


def test_a_weaker_model_that_fits_is_named_but_not_recommended() -> None:
    recommendation = recommend(HARD, [SMALL], ASKED)
    assert recommendation.best is None
    assert recommendation.reasons[-2:] == (
        "Loosening a constraint does not help: list a model of tier large.",
        "Mini (tier small) fulfils every constraint and is likely too weak.",
    )


def test_no_candidates_no_recommendation() -> None:
    recommendation = recommend(EASY, [], ASKED)
    assert recommendation.best is None
    assert recommendation.options == ()


def test_a_question_of_unknown_words_or_great_length_is_said_to_be_one() -> None:
    assert any("mere prior" in r for r in recommend("qqqq", [SMALL], ASKED).reasons)
    assert any("it is long" in r for r in recommend("loss " * 9_999, [SMALL], ASKED).reasons)


def test_an_id_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates: mini is listed twice"):
        recommend(EASY, [SMALL, SMALL], ASKED)


@pytest.mark.parametrize("price", ["-0.01", "NaN", "Infinity"])
def test_a_price_that_is_none_is_refused(price: str) -> None:
    with pytest.raises(ValueError, match=r"output_price of mini: got .*0 or more is allowed"):
        replace(SMALL, output_price=Decimal(price))


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="context_window of mini: got 0"):
        replace(SMALL, context_window=0)
    with pytest.raises(ValueError, match="input_tokens: got -1"):
        replace(ASKED, input_tokens=-1)
    with pytest.raises(ValueError, match="max_output_tokens: got -1"):
        replace(ASKED, max_output_tokens=-1)
    with pytest.raises(ValueError, match="budget_left: got NaN"):
        replace(ASKED, budget_left=Decimal("NaN"))


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0.0120", "$0.012"),
        ("100", "$100"),
        ("1E+3", "$1000"),
        ("0.00", "$0"),
        ("1E-7", "$0.0000001"),
    ],
)
def test_an_amount_has_every_digit_and_no_exponent(amount: str, text: str) -> None:
    assert dollars(Decimal(amount)) == text
