"""Usage: kept as it is, listed by page, summed up exactly, deleted when it is old."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from analytics_service.ports import Store
from analytics_service.usage.records import (
    CallOutcome,
    Rates,
    UsageFilter,
    UsageGroup,
    UsageRecord,
    UsageSummary,
)
from analytics_service.usage.tokens import UNKNOWN, TokenUsage
from tests.support.analytics_store import (
    ALL_MONTH,
    DAY,
    NOW,
    SECOND,
    all_usage,
    call,
    ended,
    finish,
    one_usage,
    session,
    turn,
)

MIDNIGHT = NOW.replace(hour=0, minute=0, second=0, microsecond=0)


async def add(store: Store, *records: UsageRecord) -> None:
    """Records calls that have ended, or run."""
    for record in records:
        running = replace(
            record, outcome=CallOutcome.RUNNING, cost=None, tokens=UNKNOWN, duration=None
        )
        await store.begin_call(running)
        if record.outcome is not CallOutcome.RUNNING:
            await store.end_call(record)


class UsageContract:
    """What a store does with usage."""

    async def test_a_call_is_kept_as_it_is(self, store: Store) -> None:
        begun = call(
            "u1",
            reserved=Decimal("0.123456789012"),
            estimated_cost=Decimal("0.1"),
            estimated_tokens=TokenUsage(input=5, output=0),
            attempt=2,
            round=1,
        )
        await store.begin_call(begun)
        assert await all_usage(store) == [begun]
        end = ended(
            begun,
            "0.000000000001",
            outcome=CallOutcome.FAILED,
            error="it \0 broke",
            served_model="m-2",
            tokens=TokenUsage(1, 2, 3, 4, 5),
            rates=Rates(Decimal("0.15"), Decimal("0.60"), Decimal("0.075"), None, "list 1.2"),
            unknown_reason="",
            time_to_first_token=0.125,
            estimated_cost=None,
            estimated_tokens=UNKNOWN,
        )
        await store.end_call(end)
        assert await all_usage(store) == [replace(end, error="it \N{REPLACEMENT CHARACTER} broke")]

    async def test_what_a_call_has_reserved_is_history(self, store: Store) -> None:
        await store.set_budget(ALL_MONTH, Decimal(9), NOW)
        begun = call("u1", reserved=Decimal(2))
        await store.begin_call(begun)
        await store.end_call(ended(replace(begun, reserved=Decimal(0), principal="eve")))
        assert await one_usage(store, "u1") == ended(begun)
        assert (await store.get_budget(ALL_MONTH, NOW)).reserved == 0

    @pytest.mark.parametrize(
        ("cost", "kept"),
        [
            ("0.0000000000005", "0"),
            ("0.0000000000015", "0.000000000002"),
            ("0.0000000000025", "0.000000000002"),
            ("9000000", "9000000"),
            ("0.0000000000024999999999999999999999999999999999", "0.000000000002"),
        ],
    )
    async def test_costs_are_rounded_half_to_even(self, store: Store, cost: str, kept: str) -> None:
        await add(store, ended(call("u1"), cost))
        assert (await one_usage(store, "u1")).cost == Decimal(kept)

    async def test_amounts_that_can_not_be_kept_are_errors(self, store: Store) -> None:
        for amount in ("NaN", "Infinity", "1e8"):
            with pytest.raises(ValueError, match="US dollars"):
                await store.begin_call(call(reserved=Decimal(amount)))
        assert await all_usage(store) == []

    async def test_records_are_listed_by_page_the_newest_first(self, store: Store) -> None:
        for number in range(1, 8):
            await add(store, ended(call(f"u{number}", principal="ann" if number % 2 else "bob")))
        seen: list[str] = []
        before = None
        while page := await store.list_usage(UsageFilter(principal="ann"), before, 3):
            seen += [each.id for each in page]
            before = page[-1].id
        assert seen == ["u7", "u5", "u3", "u1"]
        # The place need not be a record that is there.
        page = await store.list_usage(UsageFilter(), "u3x", 2)
        assert [each.id for each in page] == ["u3", "u2"]

    async def test_ids_are_in_the_order_of_their_characters(self, store: Store) -> None:
        for name in ("a", "B", "_", "Ä", "1"):
            await add(store, ended(call(name)))
        assert [each.id for each in await all_usage(store)] == ["Ä", "a", "_", "B", "1"]

    async def test_every_filter_filters(self, store: Store) -> None:
        plain = ended(call("u1"))
        await add(
            store,
            plain,
            replace(plain, id="u2", time=NOW + SECOND),
            replace(plain, id="u3", used_model="n"),
            replace(plain, id="u4", requested_model="n"),
            replace(plain, id="u5", principal="bob"),
            replace(plain, id="u6", session_id="s2"),
        )
        for which, expected in [
            (UsageFilter(start=NOW + SECOND), {"u2"}),
            (UsageFilter(end=NOW + SECOND), {"u1", "u3", "u4", "u5", "u6"}),
            (UsageFilter(start=NOW, end=NOW), set()),
            (UsageFilter(model_id="n"), {"u3"}),
            (UsageFilter(principal="bob"), {"u5"}),
            (UsageFilter(session_id="s2"), {"u6"}),
            (UsageFilter(NOW, NOW + SECOND, "m", "ann", "s"), {"u1", "u4"}),
        ]:
            assert {each.id for each in await store.list_usage(which, None, 9)} == expected
            sums = await store.sum_usage(which, UsageGroup.ALL)
            assert sum(each.calls for each in sums) == len(expected)

    async def test_sums_tell_what_is_known_and_what_is_not(self, store: Store) -> None:
        none = UNKNOWN
        await add(
            store,
            ended(call("u1"), "0.1", tokens=TokenUsage(100, 10, cache_read=7)),
            ended(call("u2"), "0.2", tokens=TokenUsage(200, 20)),
            ended(
                call("u3"),
                None,
                outcome=CallOutcome.CANCELLED,
                estimated_cost=Decimal("0.4"),
                tokens=none,
            ),
            ended(call("u4"), None, outcome=CallOutcome.FAILED, tokens=none),
            call("u5", estimated_cost=Decimal("0.8")),
        )
        [summary] = await store.sum_usage(UsageFilter(), UsageGroup.ALL)
        assert summary == UsageSummary(
            key="",
            calls=5,
            unfinished_calls=3,
            tokens=TokenUsage(300, 30, cache_read=7, cache_write=None, reasoning=None),
            cost=Decimal("0.3"),
            unknown_cost_calls=3,
            estimated_cost=Decimal("1.2"),
        )
        # They can be shown as they are.
        assert str(summary.cost) == "0.3"

    async def test_where_nothing_is_known_there_is_no_sum_of_tokens(self, store: Store) -> None:
        await add(store, call())
        [summary] = await store.sum_usage(UsageFilter(), UsageGroup.MODEL)
        assert summary == UsageSummary("m", 1, 1, UNKNOWN, Decimal(0), 1, Decimal(0))

    async def test_of_nothing_there_are_no_sums(self, store: Store) -> None:
        for group in UsageGroup:
            assert await store.sum_usage(UsageFilter(), group) == []

    async def test_sums_come_by_key_in_order(self, store: Store) -> None:
        one = ended(call("u0"), "0.1")
        for number, (principal, model, name) in enumerate(
            [("b", "M", "s1"), ("a", "m", "s2"), ("B", "m", "s2"), ("a", "é", "s3")]
        ):
            await add(
                store,
                replace(
                    one,
                    id=f"u{number}",
                    principal=principal,
                    used_model=model,
                    session_id=name,
                ),
            )

        async def keys(group: UsageGroup) -> list[tuple[str, int]]:
            sums = await store.sum_usage(UsageFilter(), group)
            assert all(each.cost == each.calls * Decimal("0.1") for each in sums)
            return [(each.key, each.calls) for each in sums]

        assert await keys(UsageGroup.PRINCIPAL) == [("B", 1), ("a", 2), ("b", 1)]
        assert await keys(UsageGroup.MODEL) == [("M", 1), ("m", 2), ("é", 1)]
        assert await keys(UsageGroup.SESSION) == [("s1", 1), ("s2", 2), ("s3", 1)]
        assert await keys(UsageGroup.ALL) == [("", 4)]

    async def test_days_are_those_of_utc(self, store: Store) -> None:
        moment = timedelta(microseconds=1)
        await add(
            store,
            ended(call("u1", time=MIDNIGHT - moment)),
            ended(call("u2", time=MIDNIGHT)),
            ended(call("u3", time=MIDNIGHT + DAY - moment)),
            ended(call("u4", time=MIDNIGHT + 30 * DAY)),
        )
        sums = await store.sum_usage(UsageFilter(), UsageGroup.DAY)
        assert [(each.key, each.calls) for each in sums] == [
            ("2027-03-13", 1),
            ("2027-03-14", 2),
            ("2027-04-13", 1),
        ]

    async def test_large_sums_are_exact(self, store: Store) -> None:
        costs = [Decimal("123456.789012345678") + Decimal(n).scaleb(-12) for n in range(40)]
        for cost in costs:
            await add(store, ended(call(), cost))
        [summary] = await store.sum_usage(UsageFilter(), UsageGroup.ALL)
        assert summary.cost == sum(costs)

    async def test_old_sessions_are_pruned_piece_by_piece(self, store: Store) -> None:
        for number in range(5):
            at = NOW - number * DAY
            await store.create_session(session(f"s{number}", created=at, updated=at))
        old = NOW - DAY
        assert await store.prune(sessions_before=old, usage_before=None, limit=2) == 2
        assert await store.prune(sessions_before=old, usage_before=None, limit=2) == 1
        assert await store.prune(sessions_before=old, usage_before=None, limit=2) == 0
        left = await store.list_sessions("ann", None, 9)
        assert [each.id for each in left] == ["s0", "s1"]

    async def test_a_session_is_pruned_with_what_belongs_to_it_but_not_while_busy(
        self, store: Store
    ) -> None:
        begun = await store.begin_turn(turn(request_id="q"), call("u1"))
        later = NOW + DAY
        assert await store.prune(sessions_before=later, usage_before=None, limit=9) == 0
        await store.end_call(ended(call("u1")))
        await finish(store, begun)
        assert await store.prune(sessions_before=later, usage_before=None, limit=9) == 1
        assert await store.list_messages("s", 0, 9) == []
        assert await store.find_turn("ann", "q") is None
        assert len(await all_usage(store)) == 1

    async def test_old_usage_is_pruned_but_not_of_this_month_nor_running(
        self, store: Store
    ) -> None:
        """The clock of the store stands at `NOW`."""
        month = MIDNIGHT.replace(day=1)
        await add(
            store,
            ended(call("u1", time=month - 3 * DAY)),
            ended(call("u2", time=month - 2 * DAY)),
            call("u3", time=month - 2 * DAY),
            ended(call("u4", time=month - DAY)),
            ended(call("u5", time=month)),
        )
        await store.set_budget(ALL_MONTH, Decimal(10), NOW)
        before = month - DAY
        assert await store.prune(sessions_before=None, usage_before=before, limit=1) == 1
        assert await store.prune(sessions_before=None, usage_before=before, limit=9) == 1
        assert await store.prune(sessions_before=None, usage_before=before, limit=9) == 0
        # Whatever is asked for.
        assert await store.prune(sessions_before=None, usage_before=NOW, limit=9) == 1
        assert [each.id for each in await all_usage(store)] == ["u5", "u3"]
        budget = await store.get_budget(ALL_MONTH, NOW)
        assert budget.spent == Decimal("0.25")
        await store.end_call(ended(call("u3")))
        assert await store.prune(sessions_before=None, usage_before=None, limit=9) == 0
