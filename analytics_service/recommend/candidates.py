"""The models to choose among, what is asked of them, and which hard constraints rule some out."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from analytics_service.catalogue.model import CostBand, Stage, Tier
from analytics_service.usage.prices import blended

_BANDS = tuple(CostBand)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that might answer.

    Attributes:
        model_id: Unique id.
        display_name: Name for people.
        provider: Id of its provider.
        tier: How strong it is.
        band: Its cost band; None: not known.
        input_price: US dollars for a million tokens of input; None: not known.
        output_price: US dollars for a million tokens of output; None: not known.
        context_window: Most tokens of prompt and answer together; None: not known.
        supports_tools: It can call tools.
        stage: How long it will be there, as of now.
        unavailable_reason: Why it can not be used at present, such as a missing key, and what to
            do; None: it can be used.

    Raises:
        ValueError: A price is negative or not a number, or the context window is not positive.
    """

    model_id: str
    display_name: str
    provider: str
    tier: Tier
    band: CostBand | None
    input_price: Decimal | None
    output_price: Decimal | None
    context_window: int | None
    supports_tools: bool
    stage: Stage = Stage.ACTIVE
    unavailable_reason: str | None = None

    def __post_init__(self) -> None:
        """Refuses values that no model has."""
        for field, price in (
            ("input_price", self.input_price),
            ("output_price", self.output_price),
        ):
            if price is not None and not (price.is_finite() and price >= 0):
                raise ValueError(f"{field} of {self.model_id}: got {price}; 0 or more is allowed")
        if self.context_window is not None and self.context_window <= 0:
            raise ValueError(
                f"context_window of {self.model_id}: got {self.context_window}; "
                "1 or more is allowed, None where it is not known"
            )

    @property
    def available(self) -> bool:
        """Whether it can be used at present."""
        return self.unavailable_reason is None

    @property
    def blended_price(self) -> Decimal | None:
        """US dollars for a typical million tokens, which models are ordered by, as bands are."""
        if self.input_price is None or self.output_price is None:
            return None
        return blended(self.input_price, self.output_price)

    def cost(self, constraints: Constraints) -> Decimal | None:
        """Most US dollars that one call costs at list prices; None: the price is not known.

        That the answer is as long as it may be is assumed, and that nothing comes from a cache. A
        turn that calls tools makes several calls.
        """
        if self.input_price is None or self.output_price is None:
            return None
        return (
            constraints.input_tokens * self.input_price
            + constraints.max_output_tokens * self.output_price
        ).scaleb(-6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a model must fulfil to be recommended at all.

    Attributes:
        input_tokens: Tokens that the model would read, the session so far included; an estimate.
        max_output_tokens: Most tokens of the answer.
        need_tools: It must be able to call tools. Without them it can not look at the runs, so it
            is asked for unless the caller says otherwise.
        budget_left: US dollars that the call may cost; None: no limit.
        max_band: The dearest cost band to recommend; None: any.

    Raises:
        ValueError: A number of tokens is negative, or the budget is not a number.
    """

    input_tokens: int
    max_output_tokens: int
    need_tools: bool = True
    budget_left: Decimal | None = None
    max_band: CostBand | None = None

    def __post_init__(self) -> None:
        """Refuses values that nothing can fulfil by mistake."""
        for field, tokens in (
            ("input_tokens", self.input_tokens),
            ("max_output_tokens", self.max_output_tokens),
        ):
            if tokens < 0:
                raise ValueError(f"{field}: got {tokens}; 0 or more is allowed")
        if self.budget_left is not None and not self.budget_left.is_finite():
            raise ValueError(
                f"budget_left: got {self.budget_left}; a finite number of US dollars is allowed, "
                "None where there is no limit"
            )


class Rule(StrEnum):
    """A hard constraint."""

    AVAILABILITY = "availability"
    LIFECYCLE = "lifecycle"
    TOOLS = "tools"
    CONTEXT = "context"
    BUDGET = "budget"
    COST_BAND = "cost_band"


@dataclass(frozen=True, slots=True)
class Violation:
    """A hard constraint that a model does not fulfil.

    Attributes:
        rule: The constraint.
        reason: What the model lacks; half a sentence for people.
        remedy: What to do so that the constraint no longer rules the model out; None: nothing
            does, as the model is gone.
    """

    rule: Rule
    reason: str
    remedy: str | None


def violations(candidate: Candidate, constraints: Constraints) -> tuple[Violation, ...]:
    """Every hard constraint that a model does not fulfil; none: it may be recommended."""
    found = (
        _lifecycle(candidate),
        _availability(candidate),
        _tools(candidate, constraints),
        _context(candidate, constraints),
        _band(candidate, constraints),
        _budget(candidate, constraints),
    )
    return tuple(violation for violation in found if violation is not None)


def dollars(amount: Decimal) -> str:
    """An amount for people, with every digit it has."""
    return f"${amount.normalize():f}" if amount else "$0"


def _lifecycle(candidate: Candidate) -> Violation | None:
    if candidate.stage is not Stage.RETIRED:
        return None
    return Violation(Rule.LIFECYCLE, "its provider has retired it", None)


def _availability(candidate: Candidate) -> Violation | None:
    if candidate.unavailable_reason is None:
        return None
    return Violation(
        Rule.AVAILABILITY,
        f"it is not available: {candidate.unavailable_reason}",
        f"make it available ({candidate.unavailable_reason})",
    )


def _tools(candidate: Candidate, constraints: Constraints) -> Violation | None:
    if candidate.supports_tools or not constraints.need_tools:
        return None
    return Violation(Rule.TOOLS, "it can not call tools", "allow models that can not call tools")


def _context(candidate: Candidate, constraints: Constraints) -> Violation | None:
    needed = constraints.input_tokens + constraints.max_output_tokens
    window = candidate.context_window
    if window is None or needed <= window:
        return None
    return Violation(
        Rule.CONTEXT,
        f"question and answer take {needed} tokens and its context window holds {window}",
        f"shorten the session or the answer to {window} tokens together",
    )


def _band(candidate: Candidate, constraints: Constraints) -> Violation | None:
    limit = constraints.max_band
    if limit is None:
        return None
    if candidate.band is None:
        return Violation(
            Rule.COST_BAND,
            f"its cost band is not known and {limit} is the dearest allowed",
            "allow any cost band",
        )
    if _BANDS.index(candidate.band) <= _BANDS.index(limit):
        return None
    return Violation(
        Rule.COST_BAND,
        f"its cost band is {candidate.band} and {limit} is the dearest allowed",
        f"allow cost band {candidate.band}",
    )


def _budget(candidate: Candidate, constraints: Constraints) -> Violation | None:
    left = constraints.budget_left
    if left is None:
        return None
    cost = candidate.cost(constraints)
    if cost is None:
        return Violation(
            Rule.BUDGET,
            f"its price is not known, so it may cost more than the {dollars(left)} left",
            "lift the budget",
        )
    if cost <= left:
        return None
    return Violation(
        Rule.BUDGET,
        f"it costs up to {dollars(cost)} and the budget leaves {dollars(left)}",
        f"raise the budget to {dollars(cost)}",
    )
