"""The fake provider's answers in the providers' formats; see `tests.support.fake_provider`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from tests.support.fake_provider_responses import Responses
from tests.support.fake_provider_script import (
    Cut,
    ErrorEvent,
    Event,
    Failure,
    Finish,
    Gate,
    Pause,
    Reply,
    Stall,
    Text,
    ToolCall,
    ToolCalls,
    Usage,
)
from tests.support.fake_provider_sse import pieces_by_turns, sse


def is_anthropic(path: str) -> bool:
    """Whether a request to this path speaks Anthropic's format."""
    return path.endswith("/messages")


def is_responses(path: str) -> bool:
    """Whether a request to this path speaks the format of OpenAI's Responses API."""
    return path.endswith("/responses")


Step: TypeAlias = bytes | Gate | Pause | Stall | Cut


def steps(reply: Reply, path: str, body: Mapping[str, Any]) -> Iterator[Step]:
    """What is sent and waited for, one after another."""
    model = str(body.get("model", "")) if reply.model is None else reply.model
    teller: _OpenAI | Responses | _Anthropic
    if is_anthropic(path):
        teller = _Anthropic(reply, model)
    elif is_responses(path):
        teller = Responses(reply, model)
    else:
        teller = _OpenAI(reply, model, body)
    yield from teller.start()
    is_finished = has_tools = False
    for part in reply.parts:
        match part:
            case Text(deltas):
                yield from teller.text(deltas)
            case ToolCall():
                has_tools = True
                yield from teller.tools((part,))
            case ToolCalls(calls):
                has_tools = True
                yield from teller.tools(calls)
            case Finish(reason):
                is_finished = True
                yield from teller.finish(reason)
            case Event(data, name):
                yield sse(data, name if is_anthropic(path) else None)
            case ErrorEvent(kind, message):
                yield teller.error(kind, message)
                return
            case _:
                yield part
    if not is_finished and reply.finish is not None:
        is_finished = True
        reason = reply.finish
        if reason == "auto":
            reason = "tool_calls" if has_tools else "stop"
        yield from teller.finish(reason)
    if is_finished:
        yield from teller.end()


class _OpenAI:
    """Tells an answer in chunks of chat completions."""

    def __init__(self, reply: Reply, model: str, body: Mapping[str, Any]) -> None:
        self._usage = reply.usage
        self._asked = bool((body.get("stream_options") or {}).get("include_usage"))
        self._head = (
            '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":'
            f"{json.dumps(model)},"
        )
        self._tools = 0

    def _chunk(self, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return sse(f'{self._head}"choices":[{json.dumps(choice)}]}}')

    def start(self) -> Iterator[bytes]:
        yield self._chunk({"role": "assistant", "content": ""})

    def text(self, deltas: tuple[str, ...]) -> Iterator[bytes]:
        for delta in deltas:
            yield self._chunk({"content": delta})

    def tools(self, calls: tuple[ToolCall, ...]) -> Iterator[bytes]:
        first = self._tools
        self._tools += len(calls)
        for index, call in enumerate(calls, first):
            function = {"name": call.name, "arguments": ""}
            yield self._chunk(
                {
                    "tool_calls": [
                        {
                            "index": index,
                            "id": call.call_id,
                            "type": "function",
                            "function": function,
                        }
                    ]
                }
            )
        for index, piece in pieces_by_turns(calls):
            yield self._chunk(
                {"tool_calls": [{"index": first + index, "function": {"arguments": piece}}]}
            )

    def finish(self, reason: str) -> Iterator[bytes]:
        yield self._chunk({}, reason)

    def end(self) -> Iterator[bytes]:
        usage = self._usage
        if usage is not None and self._asked:
            yield sse(f'{self._head}"choices":[],"usage":{json.dumps(self._counts(usage))}}}')
        yield sse("[DONE]")

    @staticmethod
    def _counts(usage: Usage) -> dict[str, Any]:
        prompt = usage.input + (usage.cache_read or 0) + (usage.cache_write or 0)
        counts: dict[str, Any] = {
            "prompt_tokens": prompt,
            "completion_tokens": usage.output,
            "total_tokens": prompt + usage.output,
        }
        if usage.cache_read is not None or usage.cache_write is not None:
            counts["prompt_tokens_details"] = {
                "cached_tokens": usage.cache_read,
                "cache_write_tokens": usage.cache_write,
            }
        if usage.reasoning is not None:
            counts["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
            if usage.reasoning_beside:
                counts["completion_tokens"] -= usage.reasoning
        return counts

    @staticmethod
    def error(kind: str, message: str) -> bytes:
        return sse(json.dumps({"error": {"message": message, "type": kind, "code": kind}}))


_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class _Anthropic:
    """Tells an answer in events of messages."""

    def __init__(self, reply: Reply, model: str) -> None:
        self._usage = reply.usage
        self._model = model
        self._blocks = 0
        self._in_text = False

    @staticmethod
    def _event(kind: str, **content: Any) -> bytes:
        return sse(json.dumps({"type": kind, **content}), kind)

    def start(self) -> Iterator[bytes]:
        message: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._model,
            "stop_reason": None,
            "stop_sequence": None,
        }
        if (usage := self._usage) is not None:
            message["usage"] = {
                "input_tokens": usage.input,
                "output_tokens": 1,
                "cache_read_input_tokens": usage.cache_read,
                "cache_creation_input_tokens": usage.cache_write,
            }
        yield self._event("message_start", message=message)
        yield self._event("ping")

    def text(self, deltas: tuple[str, ...]) -> Iterator[bytes]:
        if not self._in_text:
            self._in_text = True
            yield self._event(
                "content_block_start",
                index=self._blocks,
                content_block={"type": "text", "text": ""},
            )
        for delta in deltas:
            yield self._event(
                "content_block_delta",
                index=self._blocks,
                delta={"type": "text_delta", "text": delta},
            )

    def _end_text(self) -> Iterator[bytes]:
        if self._in_text:
            self._in_text = False
            yield self._event("content_block_stop", index=self._blocks)
            self._blocks += 1

    def tools(self, calls: tuple[ToolCall, ...]) -> Iterator[bytes]:
        yield from self._end_text()
        first = self._blocks
        self._blocks += len(calls)
        for index, call in enumerate(calls, first):
            block = {"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}}
            yield self._event("content_block_start", index=index, content_block=block)
        for index, piece in pieces_by_turns(calls):
            yield self._event(
                "content_block_delta",
                index=first + index,
                delta={"type": "input_json_delta", "partial_json": piece},
            )
        for index in range(first, self._blocks):
            yield self._event("content_block_stop", index=index)

    def finish(self, reason: str) -> Iterator[bytes]:
        yield from self._end_text()
        content: dict[str, Any] = {
            "delta": {"stop_reason": _STOP_REASONS.get(reason, reason), "stop_sequence": None}
        }
        if (usage := self._usage) is not None:
            content["usage"] = {"output_tokens": usage.output}
            if usage.reasoning is not None:
                content["usage"]["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
        yield self._event("message_delta", **content)

    def end(self) -> Iterator[bytes]:
        yield self._event("message_stop")

    @classmethod
    def error(cls, kind: str, message: str) -> bytes:
        return cls._event("error", error={"type": kind, "message": message})


def http_error(failure: Failure, path: str) -> bytes:
    body = failure.body
    if body is None:
        error: dict[str, Any] = {"message": failure.message, "type": failure.kind}
        if is_anthropic(path):
            body = json.dumps({"type": "error", "error": error}).encode()
        else:
            body = json.dumps({"error": {**error, "code": failure.kind, "param": None}}).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **failure.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {failure.status} Failed\r\n{head}\r\n".encode() + body
