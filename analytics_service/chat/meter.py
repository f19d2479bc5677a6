"""What one call to a provider uses, takes and costs."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from analytics_service.catalogue.model import CatalogueModel
from analytics_service.providers.base import (
    ProviderEvent,
    ProviderRequest,
    Served,
    TextDelta,
    ToolRequest,
    UsageReport,
)
from analytics_service.usage.estimate import (
    estimated_usage,
    upper_bound_tokens,
)
from analytics_service.usage.prices import PriceBook
from analytics_service.usage.records import CallOutcome, UsageRecord
from analytics_service.usage.tokens import UNKNOWN, TokenUsage

_FREE = Decimal(0)


def reserved(
    record: UsageRecord, *, model: CatalogueModel, request: ProviderRequest, prices: PriceBook
) -> UsageRecord:
    """A call's record with what is to be set aside for it, and a first guess at its cost.

    The reservation is an upper bound. The guess is what reading the prompt costs: all that
    is certain if the service dies in the middle of the call.
    """
    bound = prices.upper_bound(
        model, upper_bound_tokens(request), request.max_output_tokens, record.time
    )
    guess = replace(estimated_usage(request, ""), output=0)
    return replace(
        record,
        reserved=_FREE if bound is None else bound,
        estimated_tokens=guess,
        estimated_cost=prices.cost(model, None, guess, record.time).cost,
    )


def unsent(record: UsageRecord, outcome: CallOutcome, error: str = "") -> UsageRecord:
    """The record of a call that was begun, but never sent to its provider."""
    return _unbilled(replace(record, outcome=outcome, error=error, duration=0.0))


def _unbilled(record: UsageRecord) -> UsageRecord:
    none = TokenUsage(input=0, output=0)
    return replace(record, cost=_FREE, tokens=none, estimated_cost=None, estimated_tokens=UNKNOWN)


class Meter:
    """Follows one call from its request to its end."""

    def __init__(
        self,
        record: UsageRecord,
        *,
        model: CatalogueModel,
        request: ProviderRequest,
        prices: PriceBook,
    ) -> None:
        """Starts the clock.

        Args:
            record: The call as it was begun.
            model: The model that is used.
            request: What the provider is asked.
            prices: What it charges.
        """
        self._record = record
        self._model = model
        self._request = request
        self._prices = prices
        self._started = time.monotonic()
        self._first: float | None = None
        self._tokens = UNKNOWN
        self._written: list[str] = []
        self.served: str | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a token of the answer has come."""
        return self._first is not None

    def feed(self, event: ProviderEvent) -> None:
        """Takes note of an event."""
        match event:
            case TextDelta(text):
                self._note(text)
            case ToolRequest():
                self._note(event.name + event.raw)
            case UsageReport(tokens):
                self._tokens = tokens
            case Served(model):
                self.served = model
            case _:
                pass

    def settled(
        self, outcome: CallOutcome, *, error: str = "", unbilled: bool = False
    ) -> UsageRecord:
        """The record of the call at its end.

        Args:
            outcome: How it ended.
            error: What went wrong; empty: nothing.
            unbilled: The provider has certainly not charged for it.
        """
        record = replace(
            self._record,
            outcome=outcome,
            error=error,
            served_model=self.served,
            tokens=self._tokens,
            duration=time.monotonic() - self._started,
            time_to_first_token=None if self._first is None else self._first - self._started,
        )
        if unbilled and not self.has_begun:
            return _unbilled(record)
        whole = outcome is CallOutcome.COMPLETED
        # A count that comes before the end is not the bill: it is where a guess begins.
        tokens = self._tokens if whole else UNKNOWN
        costed = self._prices.cost(self._model, self.served, tokens, record.time)
        if costed.cost is not None:
            return replace(
                record,
                cost=costed.cost,
                rates=costed.rates,
                estimated_cost=None,
                estimated_tokens=UNKNOWN,
            )
        reason = costed.unknown_reason
        if not whole:
            reason = "the call ended before the provider had counted its tokens"
        guess = self._guess()
        return replace(
            record,
            rates=costed.rates,
            unknown_reason=reason,
            estimated_tokens=guess,
            estimated_cost=self._guessed_cost(guess, record.time),
        )

    def _note(self, text: str) -> None:
        if self._first is None:
            self._first = time.monotonic()
        self._written.append(text)

    def _guess(self) -> TokenUsage:
        """What the provider has said, and a guess where it has not."""
        guess = estimated_usage(self._request, "".join(self._written))
        known = self._tokens
        return TokenUsage(
            input=guess.input if known.input is None else known.input,
            output=max(guess.output or 0, known.output or 0),
            cache_read=known.cache_read,
            cache_write=known.cache_write,
            reasoning=known.reasoning,
        )

    def _guessed_cost(self, guess: TokenUsage, at: datetime) -> Decimal | None:
        for served in (self.served, None):
            cost = self._prices.cost(self._model, served, guess, at).cost
            if cost is not None:
                return cost
        return None
