"""Advice on which model to ask, with what the caller's budgets leave in view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from analytics_service.catalogue.listing import ListedModel
from analytics_service.catalogue.model import CostBand
from analytics_service.chat.conversation import Message
from analytics_service.chat.plan import Caller
from analytics_service.chat.service import MAX_HISTORY
from analytics_service.chat.sessions import owned
from analytics_service.errors import invalid
from analytics_service.ports import Clock, Store
from analytics_service.recommend.candidates import Candidate, Constraints
from analytics_service.recommend.evaluation import evaluation_summary
from analytics_service.recommend.recommend import Recommendation, recommend
from analytics_service.usage.estimate import likely_tokens
from analytics_service.usage.records import Budget

PROMPT_TOKENS = 2_500
"""Tokens of instructions, tools and a first look at the runs, roughly."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Recommends models.

    Attributes:
        store: Knows sessions and budgets.
        models: The models as they are today.
        clock: Tells the time.
        max_output_tokens: Most tokens of one answer.
    """

    store: Store
    models: Callable[[], list[ListedModel]]
    clock: Clock
    max_output_tokens: int

    @property
    def evaluation(self) -> str:
        """What the score was evaluated on, and how well it does."""
        return evaluation_summary()

    async def on(
        self,
        content: str,
        session_id: str | None,
        *,
        max_band: CostBand | None,
        max_cost: Decimal | None,
        need_tools: bool,
        caller: Caller,
    ) -> Recommendation:
        """Says which model is likely good enough for a question and cheapest.

        Args:
            content: The question.
            session_id: Where it would be asked; None: in a new session.
            max_band: Dearest band to recommend; None: any.
            max_cost: Most that one call may cost, in US dollars; None: what budgets leave.
            need_tools: Leave out models that can not call tools.
            caller: Who asks.

        Raises:
            Refusal: INVALID_ARGUMENT, SESSION_NOT_FOUND.
        """
        if not content.strip():
            raise invalid("content", "got nothing, allowed: a question")
        history: Sequence[Message] = ()
        if session_id is not None:
            await owned(self.store, session_id, caller)
            history = await self.store.last_messages(session_id, MAX_HISTORY)
        read = PROMPT_TOKENS + sum(likely_tokens(text) for text in (content, *_texts(history)))
        budgets = [
            budget
            for budget in await self.store.list_budgets(self.clock())
            if budget.key.principal in (None, caller.name)
        ]
        limits = [_left(budget) for budget in budgets if budget.key.model_id is None]
        if max_cost is not None:
            limits.append(max_cost)
        constraints = Constraints(
            input_tokens=read,
            max_output_tokens=self.max_output_tokens,
            need_tools=need_tools,
            budget_left=min(limits, default=None),
            max_band=max_band,
        )
        candidates = [_candidate(listed, budgets, constraints) for listed in self.models()]
        return recommend(content, candidates, constraints)


def _texts(history: Iterable[Message]) -> Iterable[str]:
    return (message.text for message in history)


def _left(budget: Budget) -> Decimal:
    assert budget.limit is not None  # only those are listed
    # An overdrawn one leaves nothing, which is enough for what is free.
    return max(Decimal(0), budget.limit - budget.spent - budget.reserved)


def _candidate(
    listed: ListedModel, budgets: Sequence[Budget], constraints: Constraints
) -> Candidate:
    model, rates = listed.model, listed.rates
    candidate = Candidate(
        model_id=model.id,
        display_name=model.display_name,
        provider=model.provider,
        tier=model.tier,
        band=listed.band,
        input_price=None if rates is None else rates.input,
        output_price=None if rates is None else rates.output,
        context_window=model.context_window,
        supports_tools=model.tools,
        stage=listed.stage,
        unavailable_reason=listed.unavailable,
    )
    own = [_left(budget) for budget in budgets if budget.key.model_id == model.id]
    cost = candidate.cost(constraints)
    if candidate.available and own and (cost is None or cost > min(own)):
        return _without_budget(candidate, min(own))
    return candidate


def _without_budget(candidate: Candidate, left: Decimal) -> Candidate:
    return replace(
        candidate, unavailable_reason=f"the budgets of this model leave {left:f} US dollars"
    )
