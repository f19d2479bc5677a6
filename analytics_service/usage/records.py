"""What is kept of every call to a provider, and what may be spent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from analytics_service.usage.tokens import UNKNOWN, TokenUsage


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices that a call is charged at: US dollars per million tokens.

    Attributes:
        input: Tokens of the prompt.
        output: Tokens of the answer.
        cache_read: Tokens read from the cache; None: there is no such price.
        cache_write: Tokens written to the cache; None: there is no such price.
        source: Name and version of the price list.
    """

    input: Decimal
    output: Decimal
    cache_read: Decimal | None
    cache_write: Decimal | None
    source: str


class CallOutcome(StrEnum):
    """How a call to a provider ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One call to a provider: every attempt of every round is one.

    Attributes:
        id: Unique; ascending with time.
        time: When it began.
        principal: Name of the caller.
        session_id: The session.
        message_number: The answer that the call was made for.
        requested_model: Id or alias as asked for.
        used_model: Id of the model that was used.
        provider: Id of the provider.
        round: Calls of the same answer before this one, attempts aside.
        attempt: Which attempt of the round, from 1 on.
        replica: The process that makes the call; whoever finds it dead settles the call.
        reserved: What is set aside for it in the budgets, in US dollars.
        estimated_cost: A guess while, or where, the cost is not known; None: no ground for one.
        estimated_tokens: The guess that it comes from.
        outcome: How it ended.
        error: What went wrong; empty: nothing.
        served_model: What the provider says has served; None: it has not said.
        tokens: As the provider counted them.
        cost: In US dollars; None: not known.
        unknown_reason: Why the cost is not known; empty: it is.
        rates: The prices that applied; None: none did.
        time_to_first_token: Seconds from the request on; None: none came.
        duration: Seconds from the request to the end; None: it is running.
    """

    id: str
    time: datetime
    principal: str
    session_id: str
    message_number: int
    requested_model: str
    used_model: str
    provider: str
    round: int
    attempt: int
    replica: str
    reserved: Decimal
    estimated_cost: Decimal | None = None
    estimated_tokens: TokenUsage = UNKNOWN
    outcome: CallOutcome = CallOutcome.RUNNING
    error: str = ""
    served_model: str | None = None
    tokens: TokenUsage = UNKNOWN
    cost: Decimal | None = None
    unknown_reason: str = ""
    rates: Rates | None = None
    time_to_first_token: float | None = None
    duration: float | None = None

    @property
    def charge(self) -> Decimal:
        """What the budgets are charged with: the cost, else the most that it may have been.

        A guess is too little for that: of what a model has thought before it was stopped, nothing
        is seen.
        """
        if self.cost is not None:
            return self.cost
        return max(self.reserved, self.estimated_cost or Decimal(0))


class Period(StrEnum):
    """A span of time that a budget is for, UTC."""

    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class BudgetKey:
    """What a budget is about.

    Attributes:
        principal: Name of the caller; None: all callers together.
        model_id: Id of the model; None: all models together.
        period: The span.
    """

    principal: str | None
    model_id: str | None
    period: Period


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget in its present span. Amounts are US dollars.

    Attributes:
        key: What it is about.
        limit: Most to be spent; None: there is no limit.
        spent: Known costs, and the most that a call may have cost where it is unknown.
        estimated: Part of `spent` that is not known.
        reserved: Set aside for calls that are running.
        start: Start of the span.
        end: End of the span.
    """

    key: BudgetKey
    limit: Decimal | None
    spent: Decimal
    estimated: Decimal
    reserved: Decimal
    start: datetime
    end: datetime


class UsageGroup(StrEnum):
    """What usage is summed up by."""

    ALL = "all"
    MODEL = "model"
    PRINCIPAL = "principal"
    SESSION = "session"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which records to look at; None: all.

    Attributes:
        start: From this time on.
        end: Before this time.
        model_id: Of this model (the one that was used).
        principal: Of this caller.
        session_id: Of this session.
    """

    start: datetime | None = None
    end: datetime | None = None
    model_id: str | None = None
    principal: str | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """A sum of usage. Calls that are running count with what is known of them.

    Attributes:
        key: Model id, name of the caller, session id, day (2026-11-23), or empty.
        calls: Calls to providers.
        unfinished_calls: Those that did not come to their end.
        tokens: Sums of what is known; None where nothing is.
        cost: Of the calls of known cost, in US dollars.
        unknown_cost_calls: Calls of which the cost is not known.
        estimated_cost: Guess at the cost of those.
    """

    key: str
    calls: int
    unfinished_calls: int
    tokens: TokenUsage
    cost: Decimal
    unknown_cost_calls: int
    estimated_cost: Decimal
