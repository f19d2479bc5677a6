"""Sessions and messages: kept without loss, listed by page, changed, deleted."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from analytics_service.chat.conversation import (
    Citation,
    ErrorInfo,
    Message,
    MessageState,
    ModelChoice,
    ModelSource,
    ProposalPart,
    TextPart,
    ToolCallPart,
)
from analytics_service.errors import Reason, Refusal
from analytics_service.ports import SessionChange, SessionCursor, Store
from tests.support.analytics_store import (
    NOW,
    SECOND,
    all_usage,
    call,
    ended,
    finish,
    next_turn,
    refused,
    session,
    turn,
)

FULL = (
    TextPart("Grüße \N{SNOWMAN} \0 \n"),
    ToolCallPart("c1", "list_jobs", None, error="no JSON", raw_arguments="{", round=1),
    ToolCallPart(
        "c2",
        "get_series",
        {"job": "j", "limit": 5},
        result={"points": [[1, math.inf], [2, 0.1]], "big": 2**60},
        by_service=True,
        duration=0.25,
    ),
    ProposalPart(b"\x00\xff\xfe~", None, ErrorInfo(9, "NOT_LIVE", "it is over"), "try it"),
    ProposalPart(b"", b"\x80\x81", None),
)


async def add_updated(store: Store, *minutes: int, principal: str = "ann") -> None:
    for minute in minutes:
        at = NOW + timedelta(minutes=minute)
        await store.create_session(
            session(f"{principal}{minute}", principal=principal, created=at, updated=at)
        )


def cursor(name: str, at: datetime) -> SessionCursor:
    return SessionCursor(at, name)


class SessionsContract:
    """What a store does with sessions and messages."""

    async def test_a_session_is_kept_as_it_is(self, store: Store) -> None:
        new = session(title="Grüße \N{SNOWMAN}", model_id="m", follow_successor=True)
        await store.create_session(new)
        assert await store.get_session("s") == new
        assert await store.get_session("other") is None
        assert await store.list_messages("s", 0, 5) == []
        assert await store.get_message("s", None) is None

    async def test_what_no_database_can_keep_of_a_title_is_replaced(self, store: Store) -> None:
        await store.create_session(session(title="a\0b\ud800c"))
        found = await store.get_session("s")
        assert found is not None
        assert found.title == "a\N{REPLACEMENT CHARACTER}b?c"

    async def test_sessions_are_listed_by_page_the_one_updated_last_first(
        self, store: Store
    ) -> None:
        await add_updated(store, 3, 1, 2)
        await add_updated(store, 5, 2, principal="bob")
        seen: list[str] = []
        after = None
        while page := await store.list_sessions("ann", after, 2):
            seen += [each.id for each in page]
            after = cursor(page[-1].id, page[-1].updated)
        assert seen == ["ann3", "ann2", "ann1"]
        of_ann = await store.list_sessions("ann", None, 10)
        assert [each.id for each in of_ann] == ["ann3", "ann2", "ann1"]
        rest = await store.list_sessions("ann", cursor("ann3", of_ann[0].updated), 10)
        assert rest == of_ann[1:]
        assert await store.list_sessions("eve", None, 10) == []

    async def test_equally_new_sessions_are_listed_once_each(self, store: Store) -> None:
        names = ["B", "a", "Ä", "_", "ab"]
        for name in names:
            await store.create_session(session(name))
        seen: list[str] = []
        after = None
        while page := await store.list_sessions("ann", after, 1):
            seen += [each.id for each in page]
            after = cursor(page[-1].id, page[-1].updated)
        assert seen == sorted(names, reverse=True)

    async def test_a_change_changes_what_it_names(self, store: Store) -> None:
        await store.create_session(session(model_id="m"))
        later = NOW + SECOND
        changed = await store.change_session("s", SessionChange(title="New"), later, 1)
        assert changed == session(model_id="m", title="New", updated=later, version=2)
        assert await store.get_session("s") == changed
        changed = await store.change_session(
            "s", SessionChange(model_id="", follow_successor=True), later, None
        )
        assert changed.model_id is None
        assert changed.follow_successor
        assert changed.title == "New"
        assert changed.version == 3

    async def test_a_change_that_changes_nothing_makes_no_version(self, store: Store) -> None:
        await store.create_session(session(title="T"))
        same = await store.change_session("s", SessionChange(title="T"), NOW + SECOND, None)
        assert same == session(title="T")
        assert await store.get_session("s") == same

    async def test_time_does_not_run_backwards(self, store: Store) -> None:
        await store.create_session(session())
        changed = await store.change_session("s", SessionChange(title="T"), NOW - SECOND, None)
        assert changed.updated == NOW

    async def test_another_version_is_refused(self, store: Store) -> None:
        await store.create_session(session())
        await store.change_session("s", SessionChange(title="T"), NOW, None)
        with refused(Reason.ETAG_MISMATCH, "version 2"):
            await store.change_session("s", SessionChange(title="U"), NOW, 1)
        with refused(Reason.ETAG_MISMATCH, "version 2"):
            await store.delete_session("s", 1)
        await store.delete_session("s", 2)

    async def test_what_is_not_there_can_not_be_changed_or_deleted(self, store: Store) -> None:
        with refused(Reason.SESSION_NOT_FOUND, "'s'"):
            await store.change_session("s", SessionChange(title="U"), NOW, None)
        with refused(Reason.SESSION_NOT_FOUND, "'s'"):
            await store.delete_session("s", None)

    async def test_a_session_goes_with_its_messages_and_usage_stays(self, store: Store) -> None:
        first = call("u1")
        begun = await store.begin_turn(turn(request_id="q"), first)
        await store.end_call(ended(first))
        await finish(store, begun)
        await store.delete_session("s", None)
        assert await store.get_session("s") is None
        assert await store.list_messages("s", 0, 5) == []
        assert await store.find_turn("ann", "q") is None
        assert [each.id for each in await all_usage(store)] == ["u1"]

    async def test_a_busy_session_is_not_deleted(self, store: Store) -> None:
        begun = await store.begin_turn(turn(), None)
        with refused(Reason.SESSION_BUSY, "message 2 of session 's'"):
            await store.delete_session("s", None)
        await finish(store, begun)
        await store.delete_session("s", None)

    async def test_messages_are_kept_as_they_are(self, store: Store) -> None:
        of = turn()
        begun = await store.begin_turn(of, None)
        end = replace(
            begun.answer,
            state=MessageState.FAILED,
            parts=FULL,
            ended=NOW + SECOND,
            model=ModelChoice("x", ModelSource.SESSION, "m", "m-2", "retired", "soon"),
            citations=(Citation("j", "metric", "loss", 0, 10), Citation("j", "job")),
            error=ErrorInfo(14, "PROVIDER_UNAVAILABLE", "down"),
        )
        assert await store.end_turn(end) == end
        question, answer = await store.list_messages("s", 0, 5)
        assert question == replace(of.question, session_id="s", number=1)
        assert answer == end
        assert await store.get_message("s", 2) == end

    async def test_an_answer_with_half_a_character_is_kept(self, store: Store) -> None:
        begun = await store.begin_turn(turn(), None)
        parts = (
            *FULL,
            TextPart("a\ud83dé"),
            ToolCallPart("c", "t", {"k": "\ude00"}, result={"x": math.inf}),
        )
        done = await store.end_turn(
            replace(begun.answer, state=MessageState.COMPLETE, parts=parts, ended=NOW)
        )
        assert done.parts == (
            *FULL,
            TextPart("a?é"),
            ToolCallPart("c", "t", {"k": "?"}, result={"x": math.inf}),
        )

    async def test_messages_are_listed_in_order(self, store: Store) -> None:
        await finish(store, await store.begin_turn(turn(), None))
        for _ in range(2):
            await finish(store, await store.begin_turn(await next_turn(store), None))

        def numbers(messages: object) -> list[int]:
            assert isinstance(messages, list)
            return [each.number for each in messages if isinstance(each, Message)]

        assert numbers(await store.list_messages("s", 0, 4)) == [1, 2, 3, 4]
        assert numbers(await store.list_messages("s", 4, 4)) == [5, 6]
        assert numbers(await store.last_messages("s", 3)) == [4, 5, 6]
        newest = await store.get_message("s", None)
        assert newest is not None
        assert newest.number == 6
        assert await store.get_message("s", 7) is None

    async def test_a_closed_store_refuses(self, store: Store) -> None:
        await store.close()
        await store.close()
        with pytest.raises(Refusal) as caught:
            await store.get_session("s")
        assert caught.value.reason is Reason.SHUTTING_DOWN
        assert caught.value.retry_delay is not None
        with refused(Reason.SHUTTING_DOWN, "shutting down"):
            await store.create_session(session())
