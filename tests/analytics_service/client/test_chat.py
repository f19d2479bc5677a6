"""Questions and answers as they come, with both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import grpc
import pytest

from analytics_service.client import (
    Answer,
    AsyncClient,
    DeadlineExceededError,
    FailedPreconditionError,
    MidcourseError,
    ResourceExhaustedError,
    UnavailableError,
)
from grpc_runtime.errors import StatusError
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import model_pb2, session_pb2
from tests.support.analytics_callers import QUICK, Caller
from tests.support.scripted_analytics import (
    MESSAGE,
    SESSION,
    WHOLE,
    ScriptedAnalytics,
    delta,
    done,
    started,
    usage,
)

Code = grpc.StatusCode
DOWN = StatusError(Code.UNAVAILABLE, "draining", reason="SHUTTING_DOWN")


async def test_an_answer_as_it_comes(caller: Caller) -> None:
    chat = caller.chat("Why?")
    assert [chat.chat.text, chat.chat.started, chat.chat.model] == ["", None, None]
    event = await chat.next()
    assert event is not None
    assert event.started.session == SESSION
    assert chat.chat.model is not None
    assert chat.chat.model.used_model == "gpt-6-luna"
    await chat.next()
    assert chat.chat.text == "It spiked "
    await chat.next()
    assert chat.chat.text == "It spiked at 120."
    assert [chat.chat.message] == [None]
    rest = await chat.rest()
    assert [event.WhichOneof("event") for event in rest] == ["usage", "done"]
    assert chat.chat.text == "It spiked at 120."
    assert chat.chat.message is not None
    assert chat.chat.model.served_model == "gpt-6-luna-2026"
    assert await chat.next() is None
    assert not chat.chat.cancelled


async def test_ask_returns_the_answer_with_what_it_cost(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    answer = await caller.run(
        "ask",
        "Why?",
        session="s1",
        model="mini",
        follow_successor=False,
        max_output_tokens=100,
        temperature=0.0,
        jobs=["my-run", "jobs/other"],
        request_id="r-1",
    )
    assert service.requests("Chat") == [
        pb.ChatRequest(
            session="sessions/s1",
            content="Why?",
            model_id="mini",
            follow_successor=False,
            max_output_tokens=100,
            temperature=0.0,
            jobs=["jobs/my-run", "jobs/other"],
            request_id="r-1",
        )
    ]
    assert isinstance(answer, Answer)
    assert answer.text == "It spiked at 120."
    assert answer.cost == Decimal("0.000123")
    assert answer.session == SESSION
    assert answer.message.name == MESSAGE
    assert [record.cost for record in answer.usage] == ["0.000123"]
    assert [proposal.rationale for proposal in answer.proposed_updates] == ["it spiked"]
    assert answer.model.served_model == "gpt-6-luna-2026"
    assert not answer.replayed


async def test_what_is_not_asked_for_is_not_sent(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    await caller.run("ask", "Why?")
    (request,) = service.requests("Chat")
    assert {field.name for field, _ in request.ListFields()} == {"content", "request_id"}


async def test_one_job_is_not_taken_for_its_letters(caller: Caller) -> None:
    with pytest.raises(TypeError, match=r"allowed: several ids, such as \['my-run'\]"):
        await caller.run("ask", "Why?", jobs="my-run")


async def test_a_cost_that_is_not_known(caller: Caller, service: ScriptedAnalytics) -> None:
    service.chats = [(started(), usage(None), done("x", "0.10", unknown=1))]
    assert (await caller.run("ask", "Why?")).cost is None


async def test_events_of_a_failed_attempt_and_a_proposal(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    other = model_pb2.ModelChoice(requested_model="mini", used_model="haiku-5-5")
    proposal = session_pb2.ProposedUpdate(rationale="halve it")
    service.chats = [
        (
            started(),
            pb.ChatResponse(retry=pb.ChatRetry(error="429", delay=0.1, model=other)),
            pb.ChatResponse(proposed_update=proposal),
            done("x", "0"),
        )
    ]
    chat = caller.chat("Why?")
    await chat.next()
    await chat.next()
    assert chat.chat.model == other
    await chat.next()
    assert chat.chat.proposed_updates == [proposal]


# Repeating


async def test_a_question_is_repeated_with_its_id_until_its_answer_has_begun(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    service.failures["Chat"] = [DOWN, DOWN]
    chat = caller.chat("Why?")
    answer = await chat.result()
    assert answer.text == "It spiked at 120."
    requests = service.requests("Chat")
    assert len(requests) == 3
    assert {request.request_id for request in requests} == {chat.chat.request_id}
    assert chat.chat.request_id


async def test_every_question_has_an_id_of_its_own(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    await caller.run("ask", "Why?")
    await caller.run("ask", "Why?")
    first, second = service.requests("Chat")
    assert first.request_id != second.request_id


async def test_tries_are_bounded(caller: Caller, service: ScriptedAnalytics) -> None:
    service.failures["Chat"] = [DOWN] * 5
    with pytest.raises(UnavailableError, match="draining"):
        await caller.run("ask", "Why?")
    assert len(service.requests("Chat")) == QUICK.attempts


async def test_an_answer_that_has_begun_is_never_asked_for_again(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    service.chats = [(started(), DOWN), WHOLE]
    chat = caller.chat("Why?")
    with pytest.raises(UnavailableError, match="draining"):
        await chat.result()
    assert len(service.requests("Chat")) == 1
    assert await chat.next() is None
    with pytest.raises(UnavailableError, match="draining"):  # told again, not forgotten
        await chat.result()


async def test_a_refusal_is_not_repeated(caller: Caller, service: ScriptedAnalytics) -> None:
    service.failures["Chat"] = [
        StatusError(Code.FAILED_PRECONDITION, "grok-beta is retired", reason="MODEL_RETIRED")
    ]
    with pytest.raises(FailedPreconditionError, match="grok-beta is retired"):
        await caller.run("ask", "Why?", model="grok-beta")
    assert len(service.requests("Chat")) == 1


async def test_a_delay_beyond_the_clients_timeout_is_not_waited_for(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    service.failures["Chat"] = [
        StatusError(Code.RESOURCE_EXHAUSTED, "a budget", reason="BUDGET_SPENT", retry_delay=60.0)
    ]
    with pytest.raises(ResourceExhaustedError, match="a budget") as caught:
        await caller.run("ask", "Why?")
    assert caught.value.retry_delay == 60.0


# Ends


async def test_a_stream_that_ends_too_early_is_no_answer(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    service.chats = [(started(), delta("It sp"))]
    chat = caller.chat("Why?")
    with pytest.raises(UnavailableError, match=f"ended before the answer did; {MESSAGE} has"):
        await chat.result()
    assert chat.chat.text == "It sp"


async def test_a_failure_in_the_middle_comes_as_event_and_as_exception(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    told = session_pb2.Error(code=14, reason="PROVIDER_UNAVAILABLE", message="openai is down")
    failure = StatusError(Code.UNAVAILABLE, "openai is down", reason="PROVIDER_UNAVAILABLE")
    service.chats = [(started(), pb.ChatResponse(error=told), failure)]
    chat = caller.chat("Why?")
    await chat.next()
    event = await chat.next()
    assert event is not None
    assert event.error == told
    with pytest.raises(UnavailableError, match="openai is down") as caught:
        await chat.next()
    assert caught.value.reason == "PROVIDER_UNAVAILABLE"


async def test_leaving_early_cancels_the_answer(
    caller: Caller, service: ScriptedAnalytics, within: Callable[..., Any]
) -> None:
    service.chats = [(started(), asyncio.Event())]
    chat = caller.chat("Why?")
    await chat.leave_after(1)
    await within(service.chat_ended.wait())
    assert chat.chat.cancelled
    assert await chat.next() is None
    with pytest.raises(MidcourseError, match=f"given up before its end; {MESSAGE} has") as caught:
        await chat.result()
    assert caught.value.code is Code.CANCELLED


async def test_leaving_at_the_end_cancels_nothing(caller: Caller) -> None:
    chat = caller.chat("Why?")
    await chat.leave_after(len(WHOLE))
    await chat.rest()
    assert (await chat.result()).text == "It spiked at 120."


async def test_cancelling_ends_a_blocked_iteration(
    caller: Caller, service: ScriptedAnalytics, within: Callable[..., Any]
) -> None:
    service.chats = [(started(), asyncio.Event())]
    chat = caller.chat("Why?")
    await chat.next()
    blocked = asyncio.create_task(chat.rest())
    await asyncio.sleep(0)
    chat.chat.cancel()
    chat.chat.cancel()
    assert await within(blocked) == []
    await within(service.chat_ended.wait())


async def test_cancelling_ends_the_wait_between_tries(
    caller: Caller, service: ScriptedAnalytics, within: Callable[..., Any]
) -> None:
    service.failures["Chat"] = [
        StatusError(Code.UNAVAILABLE, "later", reason="SHUTTING_DOWN", retry_delay=5.0)
    ]
    chat = caller.chat("Why?")
    waiting = asyncio.create_task(chat.rest())
    await within(service.chat_ended.wait())
    chat.chat.cancel()
    assert await within(waiting) == []
    assert len(service.requests("Chat")) == 1


async def test_a_question_that_was_never_sent_can_be_cancelled(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    chat = caller.chat("Why?")
    chat.chat.cancel()
    assert await chat.rest() == []
    assert service.calls == []


async def test_an_answer_that_takes_too_long(
    caller: Caller, service: ScriptedAnalytics, within: Callable[..., Any]
) -> None:
    service.chats = [(started(), asyncio.Event())]
    with pytest.raises(DeadlineExceededError, match=r"analytics service at .* in time"):
        await caller.run("ask", "Why?", timeout=0.2)
    await within(service.chat_ended.wait())


async def test_a_cancelled_task_cancels_the_answer(
    service: ScriptedAnalytics, within: Callable[..., Any]
) -> None:
    service.chats = [(started(), asyncio.Event())]
    async with AsyncClient(service.address, retry=QUICK) as client:
        chat = client.chat("Why?")
        await anext(chat)
        task = asyncio.create_task(chat.result())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await within(service.chat_ended.wait())
        assert chat.cancelled
