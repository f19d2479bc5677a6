"""Sessions over the API, and whose they are."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from analytics_service.client import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    MidcourseError,
    NotFoundError,
    PermissionDeniedError,
)
from analytics_service.rpc import servicer
from grpc_runtime.errors import StatusError, from_rpc_error
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import analytics_pb2_grpc, session_pb2
from tests.support.analytics import (
    ANTHROPIC_MODEL,
    OPENAI_MODEL,
    RunningAnalytics,
    running_analytics,
)
from tests.support.callers import Names, named
from tests.support.fake_provider import Reply, gate, text


@pytest.fixture
async def analytics(tmp_path: Path) -> AsyncIterator[RunningAnalytics]:
    async with running_analytics(tmp_path) as running:
        running.fake.default = Reply((text("hi"),))
        yield running


@pytest.fixture
async def stub(analytics: RunningAnalytics) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(analytics.address) as channel:
        yield analytics_pb2_grpc.AnalyticsServiceStub(channel)


async def error_of(call: Any) -> StatusError:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call did not fail")


async def test_a_session_is_made_read_changed_and_deleted(analytics: RunningAnalytics) -> None:
    client = analytics.client
    made = await client.create_session(title="Spikes", model=ANTHROPIC_MODEL)
    assert made.principal == "anonymous"
    assert made.message_count == 0
    assert await client.get_session(made.name) == made
    changed = await client.update_session(made.name, title="Dips", etag=made.etag)
    assert (changed.title, changed.model_id) == ("Dips", ANTHROPIC_MODEL)
    assert changed.etag != made.etag
    with pytest.raises(ConflictError) as stale:
        await client.update_session(made.name, title="Peaks", etag=made.etag)
    assert stale.value.reason == "ETAG_MISMATCH"
    with pytest.raises(ConflictError):
        await client.delete_session(made.name, etag=made.etag)
    assert await client.get_session(made.name) == changed
    await client.delete_session(made.name, etag=changed.etag)
    for call in (client.get_session(made.name), client.delete_session(made.name)):
        with pytest.raises(NotFoundError) as gone:
            await call
        assert gone.value.reason == "SESSION_NOT_FOUND"


async def test_a_mask_says_what_changes(analytics: RunningAnalytics, stub: Any) -> None:
    made = await analytics.client.create_session(title="Spikes", model=ANTHROPIC_MODEL)

    async def update(*paths: str, **fields: Any) -> session_pb2.Session:
        session = session_pb2.Session(name=made.name, **fields)
        answer: pb.UpdateSessionResponse = await stub.UpdateSession(
            pb.UpdateSessionRequest(session=session, update_mask=FieldMask(paths=paths))
        )
        return answer.session

    # In the mask, though empty; set, though not in the mask.
    changed = await update("model_id", title="ignored")
    assert (changed.title, changed.model_id) == ("Spikes", "")
    changed = await update("follow_successor", follow_successor=True)
    assert changed.follow_successor
    # Without a mask: what is set.
    changed = await update(model_id="gpt-4o-mini")
    assert (changed.title, changed.model_id) == ("Spikes", "gpt-4o-mini")
    assert changed.follow_successor
    error = await error_of(update("principal", principal="eve"))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["update_mask"]
    for wrong in ({"title": "x" * 201}, {"title": "two\nlines"}, {"model_id": "gpt-7"}):
        assert (await error_of(update(**wrong))).code == grpc.StatusCode.INVALID_ARGUMENT
    assert (await analytics.client.get_session(made.name)) == changed


@pytest.mark.parametrize("name", ["", "sessions/", "jobs/1", "sessions/a/b", "sessions/ä", "1"])
async def test_names_that_are_none_are_refused(stub: Any, name: str) -> None:
    calls = {
        "name": stub.GetSession(pb.GetSessionRequest(name=name)),
        "parent": stub.ListMessages(pb.ListMessagesRequest(parent=name)),
        "session.name": stub.UpdateSession(
            pb.UpdateSessionRequest(session=session_pb2.Session(name=name, title="x"))
        ),
    }
    for field, call in calls.items():
        error = await error_of(call)
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT
        assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize("name", ["sessions/none", "sessions/none/messages/2"])
async def test_what_is_not_there_can_not_be_cancelled(stub: Any, name: str) -> None:
    error = await error_of(stub.CancelChat(pb.CancelChatRequest(name=name)))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_a_wrong_etag_is_refused(analytics: RunningAnalytics, stub: Any) -> None:
    made = await analytics.client.create_session()
    error = await error_of(stub.DeleteSession(pb.DeleteSessionRequest(name=made.name, etag='"1"')))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["etag"]


async def test_sessions_are_listed_the_one_used_last_first(analytics: RunningAnalytics) -> None:
    client = analytics.client
    made = [await client.create_session(title=str(number)) for number in range(5)]
    await client.ask("hello?", session=made[1].name)
    await client.update_session(made[3].name, title="3, changed")
    titles = [each.title async for each in client.list_sessions(page_size=2)]
    assert titles == ["3, changed", "1", "4", "2", "0"]


async def test_messages_are_listed_in_order_page_by_page(analytics: RunningAnalytics) -> None:
    session = (await analytics.client.ask("0?")).session
    for number in (1, 2):
        await analytics.client.ask(f"{number}?", session=session)
    listed = [m async for m in analytics.client.list_messages(session, page_size=4)]
    assert [m.name.rpartition("/")[2] for m in listed] == ["1", "2", "3", "4", "5", "6"]
    assert [m.parts[0].text for m in listed] == ["0?", "hi", "1?", "hi", "2?", "hi"]


async def test_page_tokens_are_of_one_query(analytics: RunningAnalytics, stub: Any) -> None:
    one, two = [(await analytics.client.ask("hello?")).session for _ in range(2)]
    listed = await stub.ListSessions(pb.ListSessionsRequest(page_size=1))
    messages = await stub.ListMessages(pb.ListMessagesRequest(parent=one, page_size=1))
    usage = await stub.GetUsage(pb.GetUsageRequest(page_size=1))
    assert listed.next_page_token
    assert messages.next_page_token
    assert usage.next_page_token
    digest = hashlib.sha256(b"sessions anonymous").hexdigest()[:12]
    made_up = [
        base64.urlsafe_b64encode(json.dumps([after, digest]).encode()).decode()
        for after in ("nonsense", "9" * 400 + " x", "", "1 ", 7)
    ]
    wrong = [
        *(
            stub.ListSessions(pb.ListSessionsRequest(page_token=token))
            for token in (messages.next_page_token, "!", *made_up)
        ),
        stub.ListMessages(pb.ListMessagesRequest(parent=two, page_token=messages.next_page_token)),
        stub.GetUsage(
            pb.GetUsageRequest(page_size=1, session=one, page_token=usage.next_page_token)
        ),
    ]
    for call in wrong:
        error = await error_of(call)
        assert error.reason == "PAGE_TOKEN_INVALID", error
    error = await error_of(stub.ListSessions(pb.ListSessionsRequest(page_size=-1)))
    assert [violation.field for violation in error.violations] == ["page_size"]


async def test_a_session_in_use_is_not_deleted(analytics: RunningAnalytics) -> None:
    analytics.fake.reply(text("Once"), gate(asyncio.Event()))
    async with analytics.client.chat("hello?") as chat:
        await anext(chat)
        assert chat.started is not None
        with pytest.raises(FailedPreconditionError) as busy:
            await analytics.client.delete_session(chat.started.session)
        assert busy.value.reason == "SESSION_BUSY"


async def test_what_is_others_is_not_seen_and_not_touched(tmp_path: Path) -> None:
    async with running_analytics(tmp_path, authenticator=Names()) as analytics:
        analytics.fake.default = Reply((text("hi"),))
        ann, eve, root = (named(analytics.client, name) for name in ("ann", "eve", "root*admin"))
        session = (await ann.ask("hello?")).session
        own = (await eve.ask("hello?")).session
        assert [each.name async for each in eve.list_sessions()] == [own]
        tried: list[Awaitable[object]] = [
            eve.get_session(session),
            eve.update_session(session, title="mine"),
            eve.delete_session(session),
            eve.ask("and?", session=session),
            eve.cancel_chat(f"{session}/messages/2"),
            anext(eve.list_messages(session)),
            eve.get_usage(session=session),
            eve.recommend_model("hello?", session=session),
        ]
        for call in tried:
            with pytest.raises(NotFoundError) as hidden:
                await call
            assert hidden.value.reason == "SESSION_NOT_FOUND"
        refused: list[Awaitable[object]] = [
            eve.set_budget(1, "day"),
            eve.set_budget(None, "day", principal="eve"),
            eve.get_budget("day", principal="ann"),
            eve.get_usage(principal="ann"),
        ]
        for call in refused:
            with pytest.raises(PermissionDeniedError) as forbidden:
                await call
            assert forbidden.value.reason in ("NOT_ALLOWED", "ROLE_REQUIRED")
            assert "admin" in forbidden.value.message
        # Own usage alone, unless one is an admin.
        assert {each.principal async for each in eve.list_usage()} == {"eve"}
        assert (await eve.get_usage()).total.calls == 1
        assert (await root.get_usage()).total.calls == 2
        assert (await root.get_session(session)).principal == "ann"
        await root.set_budget(1, "month", principal="ann")
        await root.set_budget(2, "month", principal="eve")
        await root.set_budget(3, "month")
        assert [each.principal for each in await eve.list_budgets()] == ["", "eve"]
        assert len(await root.list_budgets()) == 3
        # The same id of two callers is of two requests.
        await ann.ask("hello?", request_id="r")
        answer = await eve.ask("hello?", request_id="r")
        assert not answer.replayed


async def test_a_question_knows_what_changed_while_it_was_being_asked(
    analytics: RunningAnalytics, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, store = analytics.client, analytics.service.chat._store
    session = (await client.create_session(title="Old", model=OPENAI_MODEL)).name
    plain = store.begin_turn

    async def too_late(*args: Any) -> Any:
        monkeypatch.undo()
        # Somebody else asks, and renames the session, between the look and the question.
        await client.ask("first?", session=session)
        await client.update_session(session, title="New", model=ANTHROPIC_MODEL)
        return await plain(*args)

    monkeypatch.setattr(store, "begin_turn", too_late)
    answer = await client.ask("second?", session=session)
    assert answer.model.used_model == ANTHROPIC_MODEL
    after = await client.get_session(session)
    assert (after.title, after.model_id) == ("New", ANTHROPIC_MODEL)
    said = str(analytics.fake.requests[-1].body)
    assert said.index("first?") < said.index("hi") < said.index("second?")


async def test_a_page_of_records_sums_up_once_and_the_next_not_at_all(
    analytics: RunningAnalytics, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        await analytics.client.ask("hello?", model=OPENAI_MODEL)
    store, summed = analytics.service.chat._store, []
    plain = store.sum_usage

    async def noted(*args: Any) -> Any:
        summed.append(args)
        return await plain(*args)

    monkeypatch.setattr(store, "sum_usage", noted)
    first = await stub.GetUsage(pb.GetUsageRequest(page_size=1))
    assert first.summaries == [first.total]
    assert (first.total.calls, len(summed)) == (2, 1)
    rest = pb.GetUsageRequest(page_size=1, page_token=first.next_page_token)
    second = await stub.GetUsage(rest)
    assert (len(first.records), len(second.records), second.next_page_token) == (1, 1, "")
    assert not second.HasField("total")
    assert not second.summaries
    assert len(summed) == 1


async def test_a_page_of_messages_is_cut_where_it_gets_large(
    analytics: RunningAnalytics, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "PAGE_BYTES", 5_000)
    session = (await analytics.client.ask("x" * 6_000)).session
    for _ in range(3):
        await analytics.client.ask("y" * 2_000, session=session)
    request = pb.ListMessagesRequest(parent=session, page_size=1_000)
    pages: list[list[session_pb2.Message]] = []
    while not pages or request.page_token:
        page = await stub.ListMessages(request)
        pages.append(list(page.messages))
        request.page_token = page.next_page_token
    assert [each.name for page in pages for each in page] == [
        f"{session}/messages/{number}" for number in range(1, 9)
    ]
    # The first is too large for any page, and is one.
    assert len(pages[0]) == 1
    sizes = [sum(each.ByteSize() for each in page) for page in pages]
    assert sizes[0] > servicer.PAGE_BYTES
    assert max(sizes[1:]) <= servicer.PAGE_BYTES < sum(sizes[1:])


async def test_usage_of_a_span_ends_before_its_end(analytics: RunningAnalytics) -> None:
    await analytics.client.ask("hello?", model=OPENAI_MODEL)
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    usage = await analytics.client.get_usage("day", start_time=now - hour, end_time=now + hour)
    assert (usage.total.calls, len(usage.summaries)) == (1, 1)
    usage = await analytics.client.get_usage(start_time=now + hour)
    assert usage.total.calls == 0
    with pytest.raises(MidcourseError) as wrong:
        await analytics.client.get_usage(start_time=now, end_time=now - hour)
    assert isinstance(wrong.value, InvalidArgumentError)


async def test_characters_that_no_text_of_a_database_holds_are_kept_from_models_and_refused(
    tmp_path: Path, postgres_address: str
) -> None:
    async with running_analytics(tmp_path, database=postgres_address) as analytics:
        analytics.fake.default = Reply((text("a\0b"),), model="m\0n")
        client = analytics.client
        answer = await client.ask("what is there?")
        assert answer.text == "a\0b"
        (_, answered) = [m async for m in client.list_messages(answer.session)]
        assert answered.parts[0].text == "a\0b"
        wrong: list[tuple[str, Awaitable[object]]] = [
            ("content", client.ask("a\0b")),
            ("request_id", client.ask("hello?", request_id="a\0b")),
            ("principal", client.set_budget(1, "day", principal="a\0b")),
            ("principal", client.get_usage(principal="a\0b")),
        ]
        for field, call in wrong:
            with pytest.raises(InvalidArgumentError) as refused:
                await call
            assert [violation.field for violation in refused.value.violations] == [field]
