"""Turns: recorded whole or not at all, once, and one at a time in a session."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

import pytest

from analytics_service.chat.conversation import MessageState, TextPart
from analytics_service.errors import Reason, Refusal
from analytics_service.ports import SessionChange, Store, TurnBegun
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
    refused,
    session,
    turn,
)


class TurnsContract:
    """What a store does with turns."""

    async def test_a_turn_begins_with_a_session(self, store: Store) -> None:
        of = turn(session(model_id="m"))
        first = call("u1", session_id="", message_number=0)
        begun = await store.begin_turn(of, first)
        assert begun == TurnBegun(
            session(model_id="m", message_count=2),
            replace(of.answer, session_id="s", number=2),
            replayed=False,
        )
        assert await store.get_session("s") == begun.session
        assert await store.get_message("s", None) == begun.answer
        # The call gets the session's id and the answer's number.
        assert await all_usage(store) == [replace(first, session_id="s", message_number=2)]

    async def test_a_turn_takes_over_model_title_and_succession(self, store: Store) -> None:
        await store.create_session(session(cost=Decimal(0)))
        wanted = session(title="T", model_id="m", follow_successor=True, principal="not looked at")
        begun = await store.begin_turn(turn(wanted, is_new=False, at=NOW + SECOND), None)
        assert begun.session == session(
            title="T",
            model_id="m",
            follow_successor=True,
            message_count=2,
            updated=NOW + SECOND,
            version=2,
        )
        await finish(store, begun)
        again = await store.begin_turn(await next_turn(store), None)
        assert again.answer.number == 4

    async def test_a_turn_that_was_made_up_from_what_is_not_so_any_more_is_refused(
        self, store: Store
    ) -> None:
        await store.create_session(session())
        stale = turn(session(title="Old"), is_new=False, request_id="q")
        await store.change_session("s", SessionChange(title="New"), NOW, None)
        with refused(Reason.ETAG_MISMATCH, "version 2"):
            await store.begin_turn(stale, call())
        assert await all_usage(store) == []
        begun = await store.begin_turn(await next_turn(store, request_id="q"), None)
        assert begun.session.title == "New"
        await finish(store, begun)
        # Neither is an answer that has ended meanwhile passed over.
        with refused(Reason.ETAG_MISMATCH, "version"):
            await store.begin_turn(turn(begun.session, is_new=False), None)
        # But what was asked before is told again.
        assert (await store.begin_turn(stale, None)).replayed

    async def test_a_turn_needs_its_session(self, store: Store) -> None:
        with refused(Reason.SESSION_NOT_FOUND, "'s'"):
            await store.begin_turn(turn(is_new=False, request_id="q"), call())
        assert await all_usage(store) == []
        assert await store.find_turn("ann", "q") is None

    async def test_a_busy_session_takes_no_turn(self, store: Store) -> None:
        begun = await store.begin_turn(turn(), None)
        with pytest.raises(Refusal) as caught:
            await store.begin_turn(turn(is_new=False, request_id="q"), call())
        assert caught.value.reason is Reason.SESSION_BUSY
        assert "message 2 of session 's'" in caught.value.message
        assert caught.value.metadata == {"session": "s", "message": "2"}
        assert await all_usage(store) == []
        assert await store.find_turn("ann", "q") is None
        assert await store.get_session("s") == begun.session
        await finish(store, begun)
        assert (await store.begin_turn(await next_turn(store), None)).answer.number == 4

    async def test_of_turns_at_once_in_a_session_one_begins(
        self, store: Store, other: Store
    ) -> None:
        await store.create_session(session())
        results = await asyncio.gather(
            *(each.begin_turn(turn(is_new=False), call()) for each in [store, other] * 10),
            return_exceptions=True,
        )
        begun = [each for each in results if isinstance(each, TurnBegun)]
        reasons = {each.reason for each in results if isinstance(each, Refusal)}
        assert len(begun) == 1
        assert reasons == {Reason.SESSION_BUSY}
        assert len(await all_usage(store)) == 1
        assert len(await store.list_messages("s", 0, 100)) == 2

    async def test_a_turn_over_budget_writes_nothing(self, store: Store) -> None:
        await store.set_budget(ALL_DAY, Decimal("0.5"), NOW)
        with refused(Reason.BUDGET_EXCEEDED, "0.5"):
            await store.begin_turn(turn(request_id="q"), call())
        assert await store.get_session("s") is None
        assert await all_usage(store) == []
        assert await store.find_turn("ann", "q") is None
        # So the same request may be made again.
        await store.set_budget(ALL_DAY, None, NOW)
        assert not (await store.begin_turn(turn(request_id="q"), call())).replayed

    async def test_a_repeated_request_returns_what_it_led_to(self, store: Store) -> None:
        of = turn(request_id="q")
        begun = await store.begin_turn(of, call("u1"))
        again = await store.begin_turn(of, call("u2"))
        assert again == replace(begun, replayed=True)
        # With another session's id too: whoever repeats it has made up a new one.
        renamed = turn(session("s2"), request_id="q")
        assert await store.begin_turn(renamed, call("u3")) == again
        assert [each.id for each in await all_usage(store)] == ["u1"]
        assert await store.get_session("s2") is None
        assert await store.find_turn("ann", "q") == ("f", begun.answer)
        await store.end_call(ended(call("u1")))
        done = await finish(store, begun)
        replayed = await store.begin_turn(turn(is_new=False, request_id="q"), call("u4"))
        assert replayed.answer == done
        assert replayed.session == await store.get_session("s")
        assert len(await store.list_messages("s", 0, 9)) == 2

    async def test_a_request_id_with_other_content_is_refused(self, store: Store) -> None:
        await store.begin_turn(turn(request_id="q"), None)
        with refused(Reason.REQUEST_ID_REUSED, "'q'"):
            await store.begin_turn(turn(session("s2"), request_id="q", fingerprint="g"), call())
        assert await store.get_session("s2") is None
        assert await all_usage(store) == []

    async def test_request_ids_of_different_callers_are_different(self, store: Store) -> None:
        await store.begin_turn(turn(request_id="q"), None)
        of_bob = turn(session("s2", principal="bob"), request_id="q", fingerprint="g")
        assert not (await store.begin_turn(of_bob, None)).replayed
        assert await store.find_turn("eve", "q") is None
        # No id: nothing is a repetition.
        for number in (3, 4):
            begun = await store.begin_turn(turn(session(f"s{number}")), None)
            assert not begun.replayed

    async def test_of_equal_requests_at_once_one_is_made(self, store: Store, other: Store) -> None:
        begun = await asyncio.gather(
            *(
                each.begin_turn(turn(session(f"s{number}"), request_id="q"), call())
                for number, each in enumerate([store, other] * 10)
            )
        )
        [made] = [each for each in begun if not each.replayed]
        assert {each.answer for each in begun} == {made.answer}
        assert len(await all_usage(store)) == 1
        assert len(await store.list_sessions("ann", None, 99)) == 1

    async def test_an_answer_grows_with_its_calls(self, store: Store) -> None:
        first = call("u1")
        begun = await store.begin_turn(turn(), first)
        grown = replace(begun.answer, parts=(TextPart("Because"),))
        await store.end_call(ended(first, "0.25"), grown)
        stored = await store.get_message("s", 2)
        assert stored == replace(grown, cost=Decimal("0.25"))
        second = call("u2", round=1)
        await store.begin_call(second)
        await store.end_call(ended(second, None, estimated_cost=Decimal(1)))
        end = replace(
            grown, state=MessageState.COMPLETE, parts=(TextPart("Because."),), ended=NOW + SECOND
        )
        done = await store.end_turn(end)
        assert done == replace(end, cost=Decimal("0.25"), unknown_cost_calls=1)
        assert await store.get_message("s", 2) == done
        after = await store.get_session("s")
        assert after is not None
        assert (after.cost, after.unknown_cost_calls) == (Decimal("0.25"), 1)
        assert after.updated == first.time + 2.5 * SECOND
        assert after.version > begun.session.version

    async def test_sums_are_exact(self, store: Store) -> None:
        begun = await store.begin_turn(turn(), None)
        costs = [Decimal("0.000000000001"), Decimal("0.1"), Decimal("0.2")] * 7
        for cost in costs:
            each = call()
            await store.begin_call(each)
            await store.end_call(ended(each, cost))
        done = await finish(store, begun)
        after = await store.get_session("s")
        assert after is not None
        assert done.cost == after.cost == sum(costs)

    async def test_a_call_that_is_settled_stays_as_it_is(self, store: Store) -> None:
        first = call("u1")
        begun = await store.begin_turn(turn(), first)
        await store.end_call(ended(first, "0.25"))
        await store.end_call(ended(first, "0.75"))
        assert await one_usage(store, "u1") == ended(first, "0.25")
        assert (await finish(store, begun)).cost == Decimal("0.25")

    async def test_an_answer_that_has_ended_stays_as_it_is(self, store: Store) -> None:
        first = call("u1")
        begun = await store.begin_turn(turn(), first)
        done = await finish(store, begun)
        late = replace(begun.answer, parts=(TextPart("late"),))
        await store.end_call(ended(first, "0.25"), late)
        late_end = replace(late, state=MessageState.FAILED, ended=NOW + 9 * SECOND)
        assert await store.end_turn(late_end) == replace(done, cost=Decimal("0.25"))

    async def test_an_answer_of_a_deleted_session_has_no_end(self, store: Store) -> None:
        begun = await store.begin_turn(turn(), None)
        await finish(store, begun)
        await store.delete_session("s", None)
        with refused(Reason.MESSAGE_NOT_FOUND, "no message 2"):
            await finish(store, begun)

    async def test_a_call_of_a_deleted_session_is_settled(self, store: Store) -> None:
        first = call("u1")
        await finish(store, await store.begin_turn(turn(), first))
        await store.delete_session("s", None)
        await store.end_call(ended(first, "0.25"))
        assert (await one_usage(store, "u1")).cost == Decimal("0.25")

    async def test_what_makes_no_sense_is_an_error(self, store: Store) -> None:
        begun = await store.begin_turn(turn(), None)
        with pytest.raises(ValueError, match="running"):
            await store.end_turn(begun.answer)
        with pytest.raises(ValueError, match="running"):
            await store.end_call(call())
        with pytest.raises(ValueError, match="ended"):
            await store.begin_call(call(outcome=CallOutcome.FAILED))

    async def test_a_running_answer_can_be_asked_to_stop(self, store: Store, other: Store) -> None:
        begun = await store.begin_turn(turn(replica="r1"), None)
        await store.begin_turn(turn(session("s2"), replica="r2"), None)
        assert await store.cancels_requested("r1") == []
        assert await other.request_cancel("s", 2) == begun.answer
        assert await other.request_cancel("s", 2) == begun.answer
        assert await store.cancels_requested("r1") == [("s", 2)]
        assert await store.cancels_requested("r2") == []
        done = await finish(store, begun)
        assert await store.cancels_requested("r1") == []
        assert await store.request_cancel("s", 2) == done
        assert await store.cancels_requested("r1") == []
        assert await store.request_cancel("s", 3) is None
