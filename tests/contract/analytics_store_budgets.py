"""Budgets: limits hold, whoever calls at the same time, and count what was spent before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import product
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics_service.errors import Reason, Refusal
from analytics_service.ports import Store
from analytics_service.usage.budgets import span
from analytics_service.usage.records import (
    Budget,
    BudgetKey,
    CallOutcome,
    Period,
    UsageRecord,
)
from tests.support.analytics_store import (
    ALL_DAY,
    ALL_MONTH,
    DAY,
    NOW,
    all_usage,
    call,
    clear,
    ended,
    refused,
    session,
    turn,
)

PRINCIPALS = ("ann", "*")
MODELS = ("m", "=n")
"""Names that look like what the tables say for all."""


def keys_for(principal: str, model_id: str) -> tuple[BudgetKey, ...]:
    """All budgets that a call falls under."""
    return tuple(
        BudgetKey(who, which, period)
        for who, which, period in product((principal, None), (model_id, None), Period)
    )


async def left(store: Store, principal: str, model_id: str, at: datetime) -> Decimal | None:
    """The least that any budget leaves for a call; None: there is no limit."""
    budgets = [await store.get_budget(key, at) for key in keys_for(principal, model_id)]
    rest = (b.limit - b.spent - b.reserved for b in budgets if b.limit is not None)
    return min((max(Decimal(0), each) for each in rest), default=None)


KEYS = sorted(
    {key for who in PRINCIPALS for which in MODELS for key in keys_for(who, which)}, key=str
)


def recomputed(budget: Budget, records: Iterable[UsageRecord]) -> Budget:
    """The budget as its usage says."""
    start, end = span(budget.key.period, budget.start)
    under = [
        record
        for record in records
        if start <= record.time < end
        and budget.key in keys_for(record.principal, record.used_model)
    ]
    running = [record for record in under if record.outcome is CallOutcome.RUNNING]
    settled = [record for record in under if record.outcome is not CallOutcome.RUNNING]
    return replace(
        budget,
        spent=sum((each.charge for each in settled), Decimal(0)),
        estimated=sum((each.charge for each in settled if each.cost is None), Decimal(0)),
        reserved=sum((each.reserved for each in running), Decimal(0)),
        start=start,
        end=end,
    )


async def check(store: Store) -> None:
    """Every budget, with a limit or without, says what the usage says."""
    records = await all_usage(store)
    limited = {at: {each.key: each for each in await store.list_budgets(at)} for at in TIMES}
    for at in TIMES:
        for key in KEYS:
            budget = await store.get_budget(key, at)
            assert budget == recomputed(budget, records)
            assert limited[at].get(key, replace(budget, limit=None)) == budget


TIMES = (NOW, NOW + DAY, NOW + 30 * DAY)
AMOUNTS = st.decimals(0, 4, places=12)


@dataclass(frozen=True)
class SetLimit:
    key: BudgetKey
    limit: Decimal | None
    at: int


@dataclass(frozen=True)
class Begin:
    principal: str
    model: str
    at: int
    reserved: Decimal
    replica: str


@dataclass(frozen=True)
class End:
    which: int
    part: Decimal
    known: bool


@dataclass(frozen=True)
class Recover:
    replica: str


Step: TypeAlias = SetLimit | Begin | End | Recover

TIMES_OF = st.integers(0, len(TIMES) - 1)
STEPS = st.lists(
    st.one_of(
        st.builds(SetLimit, st.sampled_from(KEYS), st.none() | AMOUNTS, TIMES_OF),
        st.builds(
            Begin,
            st.sampled_from(PRINCIPALS),
            st.sampled_from(MODELS),
            TIMES_OF,
            AMOUNTS,
            st.sampled_from(("r1", "r2")),
        ),
        st.builds(End, st.integers(0, 9), st.decimals(0, 1, places=3), st.booleans()),
        st.builds(Recover, st.sampled_from(("r1", "r2"))),
    ),
    max_size=25,
)


async def take(store: Store, step: Step, running: list[UsageRecord]) -> None:
    match step:
        case SetLimit(key, limit, at):
            budget = await store.set_budget(key, limit, TIMES[at])
            assert (budget.key, budget.limit) == (key, limit)
        case Begin(principal, model, at, reserved, replica):
            record = call(
                principal=principal,
                used_model=model,
                time=TIMES[at],
                reserved=reserved,
                replica=replica,
                estimated_cost=reserved / 2,
            )
            room = await left(store, principal, model, record.time)
            if room is not None and room < reserved:
                with refused(Reason.BUDGET_EXCEEDED, "this call may cost"):
                    await store.begin_call(record)
                return
            await store.begin_call(record)
            running.append(record)
            for key in keys_for(principal, model):
                budget = await store.get_budget(key, record.time)
                assert budget.limit is None or budget.spent + budget.reserved <= budget.limit
        case End(which, part, known) if running:
            record = running.pop(which % len(running))
            charge = (record.reserved * part).quantize(Decimal("1e-12"))
            await store.end_call(
                ended(record, charge if known else None, estimated_cost=None if known else charge)
            )
        case Recover(replica):
            # Settled by somebody else, so that their own end comes too late.
            await store.recover(replica, {}, NOW)
        case End():
            pass  # nothing is running


class BudgetsContract:
    """What a store does with budgets."""

    async def test_a_budget_without_a_limit_tells_what_was_spent(self, store: Store) -> None:
        await store.begin_call(call("u1"))
        await store.begin_call(call("u2", principal="bob"))
        # As much as the call may have cost, whatever was guessed.
        await store.end_call(ended(call("u1"), None, estimated_cost=Decimal("0.5")))
        await store.begin_call(call("u3"))
        await store.end_call(ended(call("u3"), None, estimated_cost=Decimal("1.5")))
        assert await store.get_budget(ALL_DAY, NOW) == Budget(
            key=ALL_DAY,
            limit=None,
            spent=Decimal("2.5"),
            estimated=Decimal("2.5"),
            reserved=Decimal(1),
            start=NOW.replace(hour=0, minute=0, second=0, microsecond=0),
            end=NOW.replace(day=15, hour=0, minute=0, second=0, microsecond=0),
        )
        of_bob = await store.get_budget(BudgetKey("bob", None, Period.MONTH), NOW)
        assert of_bob.spent == 0
        assert of_bob.reserved == 1
        assert of_bob.end.month == 4
        assert await store.list_budgets(NOW) == []
        assert await left(store, "ann", "m", NOW) is None

    @pytest.mark.parametrize("key", keys_for("ann", "m"), ids=str)
    async def test_a_call_falls_under_each_of_its_budgets(
        self, store: Store, key: BudgetKey
    ) -> None:
        await store.set_budget(key, Decimal("1.5"), NOW)
        await store.begin_call(call())
        with pytest.raises(Refusal) as caught:
            await store.begin_call(call())
        assert caught.value.reason is Reason.BUDGET_EXCEEDED
        for word in (
            "1.5",
            "wait for running calls",
            key.principal or "all callers",
            key.model_id or "all models",
        ):
            assert word in caught.value.message
        assert caught.value.metadata["limit"] == "1.5"
        assert caught.value.metadata["reserved"] == "1"
        assert len(await all_usage(store)) == 1
        # What fits is let through.
        await store.begin_call(call(reserved=Decimal("0.5")))
        await store.begin_call(call(reserved=Decimal(0)))
        assert await left(store, "ann", "m", NOW) == 0

    async def test_a_refusal_sends_nobody_to_wait_for_calls_that_do_not_run(
        self, store: Store
    ) -> None:
        await store.set_budget(ALL_DAY, Decimal(0), NOW)
        with pytest.raises(Refusal, match="this call may cost up to 1; choose a cheaper model"):
            await store.begin_call(call())

    @pytest.mark.parametrize("key", keys_for("bob", "n")[:6], ids=str)
    async def test_a_call_does_not_fall_under_the_budgets_of_others(
        self, store: Store, key: BudgetKey
    ) -> None:
        await store.set_budget(key, Decimal(0), NOW)
        await store.begin_call(call())
        assert await left(store, "ann", "m", NOW) is None
        assert (await store.get_budget(key, NOW)).reserved == 0

    async def test_a_reservation_lasts_until_the_end_then_the_charge_does(
        self, store: Store
    ) -> None:
        await store.set_budget(ALL_DAY, Decimal(1), NOW)
        await store.begin_call(call("u1"))
        assert (await store.get_budget(ALL_DAY, NOW)).reserved == 1
        await store.end_call(ended(call("u1"), "0.25"))
        budget = await store.get_budget(ALL_DAY, NOW)
        assert budget.spent == Decimal("0.25")
        assert budget.estimated == budget.reserved == 0
        assert await left(store, "ann", "m", NOW) == Decimal("0.75")
        await store.begin_call(call("u2", reserved=Decimal("0.75")))
        await store.end_call(ended(call("u2"), None, estimated_cost=Decimal("0.5")))
        budget = await store.get_budget(ALL_DAY, NOW)
        assert (budget.spent, budget.estimated) == (Decimal(1), Decimal("0.75"))
        # A call that reserves nothing and costs something may go beyond: nothing is left then.
        await store.begin_call(call("u3", reserved=Decimal(0)))
        await store.end_call(ended(call("u3"), "5"))
        assert await left(store, "ann", "m", NOW) == 0

    async def test_a_limit_counts_what_was_spent_before_it_was_set(self, store: Store) -> None:
        await store.begin_call(call("u1"))
        await store.begin_call(call("u2"))
        await store.end_call(ended(call("u1"), "0.25"))
        set_to = await store.set_budget(ALL_DAY, Decimal(2), NOW)
        assert set_to.limit == 2
        assert set_to.spent == Decimal("0.25")
        assert set_to.reserved == 1
        with refused(Reason.BUDGET_EXCEEDED, "2 US dollars, of which 0.25"):
            await store.begin_call(call())
        await store.end_call(ended(call("u2"), "0.25"))
        await store.begin_call(call())

    async def test_a_limit_can_be_changed_and_lifted(self, store: Store) -> None:
        await store.set_budget(ALL_DAY, Decimal(0), NOW)
        with refused(Reason.BUDGET_EXCEEDED, "0 US dollars"):
            await store.begin_call(call())
        await store.set_budget(ALL_DAY, Decimal(1), NOW)
        await store.begin_call(call())
        lifted = await store.set_budget(ALL_DAY, None, NOW)
        assert lifted.limit is None
        assert lifted.reserved == 1
        await store.begin_call(call())
        assert await store.list_budgets(NOW) == []
        # And set again: with all that happened while there was none.
        assert (await store.set_budget(ALL_DAY, Decimal(1), NOW)).reserved == 2
        assert await left(store, "ann", "m", NOW) == 0

    async def test_a_limit_that_is_none_is_refused(self, store: Store) -> None:
        for limit in ("-1", "NaN", "Infinity", "1e9"):
            with refused(Reason.INVALID_ARGUMENT, "limit: got"):
                await store.set_budget(ALL_DAY, Decimal(limit), NOW)
        assert await store.list_budgets(NOW) == []

    async def test_spans_are_apart(self, store: Store) -> None:
        await store.set_budget(ALL_DAY, Decimal(1), NOW)
        await store.set_budget(ALL_MONTH, Decimal(2), NOW)
        await store.begin_call(call())
        # The next day has a day's budget of its own, but the month is the same.
        await store.begin_call(call(time=NOW + DAY))
        with refused(Reason.BUDGET_EXCEEDED, "all models, month"):
            await store.begin_call(call(time=NOW + 2 * DAY))
        await store.begin_call(call(time=NOW + 30 * DAY))
        # The call's own time counts, not when it is recorded.
        with refused(Reason.BUDGET_EXCEEDED, "all models, day"):
            await store.begin_call(call(time=NOW + timedelta(seconds=1)))
        assert (await store.get_budget(ALL_DAY, NOW + 2 * DAY)).reserved == 0
        assert (await store.get_budget(ALL_MONTH, NOW + 2 * DAY)).reserved == 2

    async def test_budgets_are_listed_in_the_order_of_their_keys(self, store: Store) -> None:
        keys = [
            BudgetKey(who, which, period)
            for who in (None, "*", "ann")
            for which in (None, "m")
            for period in Period
        ]
        for number, key in enumerate(reversed(keys)):
            await store.set_budget(key, Decimal(number), NOW)
        listed = await store.list_budgets(NOW)
        assert [each.key for each in listed] == keys
        assert [each.limit for each in listed] == list(reversed(range(len(keys))))

    async def test_a_turn_reserves_for_its_first_call(self, store: Store) -> None:
        await store.set_budget(ALL_DAY, Decimal(1), NOW - 40 * DAY)
        await store.begin_turn(turn(), call("u1"))
        with refused(Reason.BUDGET_EXCEEDED, "1 US dollars"):
            await store.begin_turn(turn(session("s2")), call())
        await store.end_call(ended(call("u1"), "0"))
        await store.begin_turn(turn(session("s2")), call())

    async def test_of_many_calls_at_once_just_those_begin_that_fit(
        self, store: Store, other: Store
    ) -> None:
        fit = 17
        await store.set_budget(ALL_DAY, Decimal(fit), NOW)
        await store.set_budget(BudgetKey("ann", None, Period.MONTH), Decimal(1_000), NOW)
        await store.set_budget(BudgetKey(None, "m", Period.DAY), Decimal(1_000), NOW)
        # Nobody has looked at this day yet.
        at = NOW + DAY
        calls = [
            call(principal=("ann", "bob")[n % 2], used_model=("m", "n")[n % 3 % 2], time=at)
            for n in range(200)
        ]
        results = await asyncio.gather(
            *((store, other)[n % 2].begin_call(each) for n, each in enumerate(calls)),
            return_exceptions=True,
        )
        reasons = [each.reason for each in results if isinstance(each, Refusal)]
        assert reasons == [Reason.BUDGET_EXCEEDED] * (200 - fit)
        assert results.count(None) == fit
        budget = await other.get_budget(ALL_DAY, at)
        assert budget == recomputed(budget, await all_usage(store))
        assert budget.reserved == fit

    async def test_limits_hold_while_calls_begin_and_end_and_limits_change(
        self, store: Store, other: Store
    ) -> None:
        both = (store, other)
        highest = Decimal(0)

        async def spend(number: int) -> None:
            nonlocal highest
            mine = both[number % 2]
            record = call(principal=PRINCIPALS[number % 2], replica=f"r{number % 2}")
            with suppress(Refusal):
                await mine.begin_turn(turn(session(f"s{number}")), record)
                highest = max(highest, (await mine.get_budget(ALL_DAY, NOW)).reserved)
                await mine.end_call(ended(record, "0.125"))

        async def administer() -> None:
            for number in range(10):
                await both[number % 2].set_budget(ALL_DAY, Decimal(6 + number % 2), NOW)
                await both[number % 2].set_budget(ALL_MONTH, Decimal(900), NOW)
                if number % 3 == 0:
                    await other.set_budget(ALL_MONTH, None, NOW)

        await store.set_budget(ALL_DAY, Decimal(6), NOW)
        await asyncio.gather(*(spend(number) for number in range(60)), administer())
        await check(store)
        assert highest <= 7
        spent = (await store.get_budget(ALL_DAY, NOW)).spent
        assert Decimal("0.5") <= spent <= 7

    async def test_a_call_that_ends_twice_at_once_is_settled_once(
        self, store: Store, other: Store
    ) -> None:
        await store.set_budget(ALL_DAY, Decimal(99), NOW)
        records = [call(session_id="deleted") for _ in range(30)]
        for record in records:
            await store.begin_call(record)
        await asyncio.gather(
            *(each.end_call(ended(record)) for record in records for each in (store, other))
        )
        budget = await store.get_budget(ALL_DAY, NOW)
        assert budget.reserved == 0
        assert budget.spent == 30 * Decimal("0.25")

    async def test_budgets_say_what_the_usage_says(self, store: Store) -> None:
        @settings(
            max_examples=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(STEPS)
        def search(steps: list[Step]) -> None:
            async def run() -> None:
                await clear(store)
                running: list[UsageRecord] = []
                for step in steps:
                    await take(store, step, running)
                await check(store)

            asyncio.run_coroutine_threadsafe(run(), loop).result(60)

        # Beside the event loop that the store belongs to.
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(search)
