"""Recovery: what dead replicas left is settled once, and what is alive is left alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

from analytics_service.chat.conversation import MessageState, TextPart
from analytics_service.ports import Store
from analytics_service.usage.records import CallOutcome
from tests.support.analytics_store import (
    ALL_DAY,
    NOW,
    SECOND,
    all_usage,
    call,
    ended,
    finish,
    next_turn,
    one_usage,
    session,
    turn,
)

LATER = NOW + 60 * SECOND


class RecoveryContract:
    """What a store does with what dead replicas left."""

    async def test_what_a_dead_replica_left_is_settled(self, store: Store, other: Store) -> None:
        await store.set_budget(ALL_DAY, Decimal(2), NOW)
        await store.beat("r1", NOW)
        first = call("u1", estimated_cost=Decimal("0.5"))
        begun = await store.begin_turn(turn(), first)
        await store.end_call(
            ended(first, "0.25"), replace(begun.answer, parts=(TextPart("So far"),))
        )
        await store.begin_call(call("u2", round=1, estimated_cost=Decimal("0.5")))
        await other.beat("r2", LATER)
        assert await other.recover("r2", {"r1": NOW}, LATER) == 2
        assert await other.beats() == {"r2": LATER}
        assert await one_usage(store, "u1") == ended(first, "0.25")
        found = await one_usage(store, "u2")
        assert found.outcome is CallOutcome.INTERRUPTED
        assert found.cost is None
        assert found.unknown_reason
        assert found.error
        assert found.charge == 1
        answer = await store.get_message("s", 2)
        assert answer is not None
        assert answer.state is MessageState.INTERRUPTED
        assert answer.text == "So far"
        assert answer.ended == LATER
        assert answer.error is not None
        assert answer.error.reason == "CHAT_INTERRUPTED"
        assert (answer.cost, answer.unknown_cost_calls) == (Decimal("0.25"), 1)
        after = await store.get_session("s")
        assert after is not None
        assert (after.cost, after.unknown_cost_calls) == (Decimal("0.25"), 1)
        assert after.updated == LATER
        assert after.version > begun.session.version
        budget = await store.get_budget(ALL_DAY, NOW)
        assert budget.spent == Decimal("1.25")
        assert budget.estimated == 1
        assert budget.reserved == 0
        # The session is not busy any more.
        assert (await store.begin_turn(await next_turn(store), None)).answer.number == 4

    async def test_a_second_recovery_finds_nothing(self, store: Store) -> None:
        await store.begin_turn(turn(), call())
        assert await store.recover("r2", {}, LATER) == 2
        before = await all_usage(store), await store.get_session("s")
        assert await store.recover("r2", {}, LATER) == 0
        assert await store.recover("r3", {}, LATER) == 0
        assert (await all_usage(store), await store.get_session("s")) == before

    async def test_of_two_that_recover_at_once_one_settles(
        self, store: Store, other: Store
    ) -> None:
        await store.set_budget(ALL_DAY, Decimal(99), NOW)
        for number in range(10):
            await store.begin_turn(turn(session(f"s{number}")), call(reserved=Decimal("0.5")))
        counts = await asyncio.gather(
            *((store, other)[number % 2].recover(f"x{number}", {}, LATER) for number in range(6))
        )
        assert sorted(counts) == [0] * 5 + [20]
        assert (await store.get_budget(ALL_DAY, NOW)).reserved == 0
        sessions = await store.list_sessions("ann", None, 99)
        assert [each.unknown_cost_calls for each in sessions] == [1] * 10

    async def test_what_is_alive_is_left_alone(self, store: Store) -> None:
        begun = await store.begin_turn(turn(replica="r1"), call("u1", replica="r1"))
        await store.begin_turn(turn(session("s2"), replica="r2"), call("u2", replica="r2"))
        await store.beat("r1", NOW)
        await store.beat("r1", NOW + SECOND)
        # It has beaten since it was looked at.
        assert await store.recover("r2", {"r1": NOW}, LATER) == 0
        assert await store.recover("r1", {}, LATER) == 2
        assert await store.get_message("s", 2) == begun.answer
        assert (await one_usage(store, "u1")).outcome is CallOutcome.RUNNING
        assert (await one_usage(store, "u2")).outcome is CallOutcome.INTERRUPTED

    async def test_what_comes_too_late_changes_nothing(self, store: Store) -> None:
        first = call("u1")
        begun = await store.begin_turn(turn(), first)
        await store.recover("r2", {}, LATER)
        state = await all_usage(store), await store.get_message("s", 2)
        await store.end_call(ended(first), replace(begun.answer, parts=(TextPart("late"),)))
        assert await finish(store, begun) == state[1]
        assert (await all_usage(store), await store.get_message("s", 2)) == state

    async def test_a_call_of_a_deleted_session_is_recovered(self, store: Store) -> None:
        await finish(store, await store.begin_turn(turn(), call("u1")))
        await store.delete_session("s", None)
        assert await store.recover("r2", {}, LATER) == 1
        assert (await one_usage(store, "u1")).outcome is CallOutcome.INTERRUPTED

    async def test_calls_that_end_while_they_are_recovered_are_settled_once(
        self, store: Store, other: Store
    ) -> None:
        await store.set_budget(ALL_DAY, Decimal(99), NOW)
        records = [call() for _ in range(30)]
        begun = [
            await store.begin_turn(turn(session(f"s{number}")), record)
            for number, record in enumerate(records)
        ]
        ends = []
        for turn_begun, record in zip(begun, records, strict=True):
            mine = replace(record, session_id=turn_begun.session.id)
            ends += [store.end_call(ended(mine, "0.5")), finish(store, turn_begun)]
        await asyncio.gather(*ends[:30], other.recover("r2", {}, LATER), *ends[30:])
        usage = await all_usage(store)
        budget = await store.get_budget(ALL_DAY, NOW)
        assert budget.reserved == 0
        assert budget.spent == sum(each.charge for each in usage)
        sessions = {each.id: each for each in await store.list_sessions("ann", None, 99)}
        for each in usage:
            found = sessions[each.session_id]
            assert (found.cost, found.unknown_cost_calls) == (
                (0, 1) if each.cost is None else (each.cost, 0)
            )
