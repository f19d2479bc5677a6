"""What was used and what may be spent: who may see it, and who may set it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.lookup import known
from analytics_service.chat.plan import Caller
from analytics_service.chat.sessions import owned
from analytics_service.errors import Reason, Refusal, invalid
from analytics_service.ports import Clock, Store
from analytics_service.usage.records import (
    Budget,
    BudgetKey,
    UsageFilter,
    UsageGroup,
    UsageRecord,
    UsageSummary,
)
from analytics_service.usage.tokens import UNKNOWN

MAX_LIMIT = Decimal(1_000_000)
"""Highest limit of a budget, in US dollars."""


class UsageService:
    """Usage and budgets."""

    def __init__(self, store: Store, catalogue: Catalogue, clock: Clock) -> None:
        """Puts the parts together.

        Args:
            store: Where usage is kept.
            catalogue: Knows models by id and alias.
            clock: Tells the time.
        """
        self._store = store
        self._catalogue = catalogue
        self._clock = clock

    async def summaries(
        self, which: UsageFilter, group: UsageGroup, caller: Caller
    ) -> Sequence[UsageSummary]:
        """Returns sums by key.

        Raises:
            Refusal: NOT_ALLOWED, SESSION_NOT_FOUND, MODEL_UNKNOWN, INVALID_ARGUMENT.
        """
        return await self._store.sum_usage(await self._allowed(which, caller), group)

    async def total(self, which: UsageFilter, caller: Caller) -> UsageSummary:
        """Returns the sum of all.

        Raises:
            Refusal: As `summaries`.
        """
        for summary in await self.summaries(which, UsageGroup.ALL, caller):
            return summary
        nothing = Decimal(0)
        return UsageSummary("", 0, 0, UNKNOWN, nothing, 0, nothing)

    async def records(
        self, which: UsageFilter, before: str | None, limit: int, caller: Caller
    ) -> Sequence[UsageRecord]:
        """Returns records, the newest first.

        Raises:
            Refusal: As `summaries`.
        """
        return await self._store.list_usage(await self._allowed(which, caller), before, limit)

    async def budget(self, key: BudgetKey, caller: Caller) -> Budget:
        """Returns a budget in its present span.

        Raises:
            Refusal: NOT_ALLOWED, MODEL_UNKNOWN.
        """
        if key.principal is not None and key.principal != caller.name:
            self._check_admin(caller, "see the budget of somebody else")
        return await self._store.get_budget(self._canonical(key), self._clock())

    async def budgets(self, caller: Caller) -> Sequence[Budget]:
        """Returns the budgets that have a limit and that the caller falls under."""
        budgets = await self._store.list_budgets(self._clock())
        return [
            budget
            for budget in budgets
            if caller.is_admin or budget.key.principal in (None, caller.name)
        ]

    async def set_budget(self, key: BudgetKey, limit: Decimal | None, caller: Caller) -> Budget:
        """Sets or lifts a limit.

        Raises:
            Refusal: NOT_ALLOWED, MODEL_UNKNOWN, INVALID_ARGUMENT.
        """
        self._check_admin(caller, "set budgets")
        if limit is not None and not 0 <= limit <= MAX_LIMIT:
            raise invalid("limit", f"got {limit}, allowed: 0 to {MAX_LIMIT} US dollars")
        return await self._store.set_budget(self._canonical(key), limit, self._clock())

    async def _allowed(self, which: UsageFilter, caller: Caller) -> UsageFilter:
        if which.start is not None and which.end is not None and which.start > which.end:
            raise invalid("end_time", "got a time before start_time, allowed: one after it")
        if which.session_id is not None:
            await owned(self._store, which.session_id, caller)
        if which.principal is not None and which.principal != caller.name:
            self._check_admin(caller, "see the usage of somebody else")
        if which.principal is None and not caller.is_admin:
            which = replace(which, principal=caller.name)
        if which.model_id is not None:
            which = replace(which, model_id=known(self._catalogue, which.model_id).id)
        return which

    def _canonical(self, key: BudgetKey) -> BudgetKey:
        if key.model_id is None:
            return key
        return replace(key, model_id=known(self._catalogue, key.model_id).id)

    @staticmethod
    def _check_admin(caller: Caller, what: str) -> None:
        if not caller.is_admin:
            raise Refusal(
                Reason.NOT_ALLOWED,
                f"{caller.name} may not {what}; ask somebody with the role admin",
            )
