"""What is the Responses API's own."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from analytics_service.providers import sdk
from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    Served,
    TextDelta,
    ToolRequest,
    UsageReport,
)
from analytics_service.providers.openai_responses import OpenAIResponsesProvider
from analytics_service.usage.tokens import TokenUsage
from tests.support.fake_provider import (
    FakeProvider,
    Usage,
    cut,
    event,
    finish,
    interleaved,
    paced,
    stall,
    text,
    tool_call,
)
from tests.support.provider_calls import KEY, PLAIN_QUESTION, failure, hear


def item(kind: str, index: int, **fields: Any) -> Any:
    of = {"type": "function_call", **fields}
    return event({"type": f"response.output_item.{kind}", "output_index": index, "item": of})


def arguments(kind: str, index: int, **fields: Any) -> Any:
    what = f"response.function_call_arguments.{kind}"
    return event({"type": what, "output_index": index, **fields})


async def test_nothing_is_stored_and_standard_prices_are_asked_for(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    fake.default = paced(1)
    await hear(responses_provider)
    [request] = fake.requests
    assert request.path == "/v1/responses"
    assert request.body["stream"] is True
    assert request.body["store"] is False
    assert request.body["service_tier"] == "default"
    assert request.body["max_output_tokens"] == 4096
    assert request.body["instructions"] == "Be brief."
    [tool] = request.body["tools"]
    assert (tool["type"], tool["name"], tool["strict"]) == ("function", "list_jobs", False)


async def test_a_limit_that_is_too_low_is_not_raised_but_refused(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    words = "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16"
    fake.fail(400, kind="integer_below_min_value", message=words)
    error = await failure(responses_provider)
    assert error.fault is Fault.REFUSED
    assert words in error.message


async def test_the_model_is_told_by_the_first_event_that_has_it(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    created = {"type": "response.created", "response": {"model": "the-model"}}
    fake.reply(event(created), text("hi"), model="")
    heard = await hear(responses_provider, PLAIN_QUESTION)
    assert [told for told in heard.events if isinstance(told, Served)] == [Served("the-model")]
    assert heard.events[0] == Served("the-model")


async def test_calls_are_told_once_they_are_whole(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    calls = (tool_call("list_jobs", {"limit": 5}, "a"), tool_call("get_job", {"job": "b"}, "b"))
    call = fake.reply(interleaved(*calls), stall())
    told = []
    async with aclosing(responses_provider.stream(PLAIN_QUESTION)) as stream:
        async for one in stream:
            told.append(one)
            if isinstance(one, ToolRequest) and one.call_id == "b":
                break
        assert not (await call.received()).is_disconnected
    assert [one.name for one in told if isinstance(one, ToolRequest)] == ["list_jobs", "get_job"]


@pytest.mark.parametrize("known_by", ["id", "index"])
async def test_a_call_whose_last_event_has_little_is_known_by_those_before(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider, known_by: str
) -> None:
    a, b = ("fc_a", "fc_b") if known_by == "id" else ("fc_x", "fc_y")
    fake.reply(
        item("added", 0, id="fc_a", call_id="a", name="get_job", arguments=""),
        item("added", 1, id="fc_b", call_id="b", name="list_jobs", arguments=""),
        arguments("delta", 0, item_id=a, delta='{"job": '),
        arguments("delta", 1, item_id=b, delta='{"lim'),
        arguments("delta", 0, item_id=a, delta='"x"}'),
        arguments("done", 1, item_id=b, arguments='{"limit": 5}'),
        item("done", 1, id=b),
        item("done", 0, id=a),
    )
    heard = await hear(responses_provider)
    assert [(t.call_id, t.name, t.arguments) for t in heard.tools] == [
        ("b", "list_jobs", {"limit": 5}),
        ("a", "get_job", {"job": "x"}),
    ]
    assert heard.events[-1] == Finished(FinishReason.TOOL_CALLS)


async def test_a_call_that_comes_whole(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    fake.reply(item("done", 0, id="fc_a", call_id="a", name="get_job", arguments='{"job": "x"}'))
    [request] = (await hear(responses_provider)).tools
    assert (request.call_id, request.arguments) == ("a", {"job": "x"})


async def test_an_answer_that_ends_within_a_tool_call_is_broken(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    fake.reply(item("added", 0, id="fc_a", call_id="a", name="get_job", arguments=""))
    heard = await hear(responses_provider)
    assert heard.tools == []
    assert heard.error is not None
    assert heard.error.fault is Fault.STREAM_BROKEN
    assert heard.tokens == TokenUsage(input=10, output=5)


async def test_a_limit_within_a_tool_call_is_one(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    started = item("added", 0, id="fc_a", call_id="a", name="get_job", arguments="")
    fake.reply(started, finish="length")
    heard = await hear(responses_provider)
    assert heard.tools == []
    assert heard.events[-1] == Finished(FinishReason.LENGTH)


@pytest.mark.parametrize("how", ["stop", "length"])
async def test_a_refusal_in_words_is_told_and_is_one(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider, how: str
) -> None:
    refusal = {"type": "response.refusal.delta", "delta": "I can not help with that."}
    fake.reply(event(refusal), finish=how)
    heard = await hear(responses_provider)
    assert heard.text == "I can not help with that."
    assert heard.events[-1] == Finished(FinishReason.REFUSAL)


async def test_reasoning_is_not_the_answer(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "…"}
    fake.reply(
        event({"type": "response.output_item.added", "output_index": 0, "item": item}),
        event({"type": "response.reasoning_summary_text.delta", "delta": "hm"}),
        event({"type": "response.reasoning_text.delta", "delta": "hm"}),
        event({"type": "response.output_item.done", "output_index": 0, "item": item}),
        text("hi"),
        usage=Usage(input=7, output=120, reasoning=100),
    )
    heard = await hear(responses_provider)
    assert heard.text == "hi"
    assert heard.tokens == TokenUsage(input=7, output=120, reasoning=100)
    assert heard.events[-1] == Finished(FinishReason.STOP)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        ({"code": "server_error", "message": "oops"}, Fault.UNAVAILABLE),
        ({"code": "rate_limit_exceeded", "message": "oops"}, Fault.RATE_LIMITED),
        ({"code": "bio_policy", "message": "oops"}, Fault.REFUSED),
        ({"code": "invalid_prompt", "message": "oops"}, Fault.REFUSED),
        ({"code": None, "type": "invalid_request_error", "message": "oops"}, Fault.REFUSED),
        ({"code": "of_the_future", "message": "oops"}, Fault.STREAM_BROKEN),
    ],
)
async def test_a_response_that_fails_tells_why_and_what_it_took(
    fake: FakeProvider,
    responses_provider: OpenAIResponsesProvider,
    error: dict[str, Any],
    fault: Fault,
) -> None:
    usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    response = {"model": "a-model", "status": "failed", "error": error, "usage": usage}
    failed = event({"type": "response.failed", "response": response})
    fake.reply(text("Hel"), failed, finish=None)
    heard = await hear(responses_provider)
    assert heard.text == "Hel"
    assert heard.tokens == TokenUsage(input=7, output=2)
    assert heard.error is not None
    assert heard.error.fault is fault
    assert "oops" in heard.error.message
    assert not heard.error.is_unbilled


async def test_an_error_event_with_its_error_inside(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    inner = {"type": "server_error", "code": "context_length_exceeded", "message": f"not {KEY}"}
    fake.reply(text("Hel"), event({"type": "error", "error": inner}), finish=None)
    assert (await failure(responses_provider)).fault is Fault.CONTEXT_TOO_LONG


@pytest.mark.parametrize("end", [cut(), stall()])
async def test_whatever_follows_the_last_event_is_no_failure(
    fake: FakeProvider,
    responses_provider: OpenAIResponsesProvider,
    end: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sdk, "TAIL_SECONDS", 0.2)
    call = fake.reply(text("a\ud83d"), finish("stop"), end)
    heard = await hear(responses_provider)
    assert heard.error is None
    assert heard.events[-3:] == (
        TextDelta("\N{REPLACEMENT CHARACTER}"),
        UsageReport(TokenUsage(input=10, output=5)),
        Finished(FinishReason.STOP),
    )
    if end == stall():
        await call.disconnected()


async def test_an_error_after_the_last_event_is_no_failure(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    late = {"type": "error", "code": "server_error", "message": "oops"}
    fake.reply(text("hi"), finish("stop"), event(late))
    heard = await hear(responses_provider)
    assert heard.events[-1] == Finished(FinishReason.STOP)


async def test_connections_are_kept(
    fake: FakeProvider, responses_provider: OpenAIResponsesProvider
) -> None:
    fake.default = paced(1)
    for _ in range(3):
        await hear(responses_provider)
    assert fake.open_connections == 1
