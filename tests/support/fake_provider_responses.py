"""The fake provider's answers in the format of OpenAI's Responses API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.support.fake_provider_script import Reply, ToolCall, Usage
from tests.support.fake_provider_sse import pieces_by_turns, sse

_INCOMPLETE_REASONS = {"length": "max_output_tokens"}


class Responses:
    """Tells an answer in events of a response."""

    def __init__(self, reply: Reply, model: str) -> None:
        self._usage = reply.usage
        self._model = model
        self._sequence = 0
        self._items = 0
        self._text: list[str] | None = None
        """The deltas of the message that is being told."""
        self._output: list[dict[str, Any]] = []

    def _event(self, kind: str, **content: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **content}
        self._sequence += 1
        return sse(json.dumps(data), kind)

    def _response(self, status: str, **content: Any) -> dict[str, Any]:
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "status": status,
            "model": self._model,
            "output": self._output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **content,
        }

    def start(self) -> Iterator[bytes]:
        for state in ("created", "in_progress"):
            yield self._event(f"response.{state}", response=self._response("in_progress"))

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": f"msg_{self._items}",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _of_text(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._items}", "output_index": self._items, "content_index": 0}

    def text(self, deltas: tuple[str, ...]) -> Iterator[bytes]:
        if self._text is None:
            self._text = []
            item = self._message("in_progress", [])
            yield self._event("response.output_item.added", output_index=self._items, item=item)
            yield self._event("response.content_part.added", **self._of_text(), part=self._part(""))
        for delta in deltas:
            self._text.append(delta)
            yield self._event(
                "response.output_text.delta", **self._of_text(), delta=delta, logprobs=[]
            )

    def _end_text(self) -> Iterator[bytes]:
        if self._text is None:
            return
        text = "".join(self._text)
        self._text = None
        of = self._of_text()
        yield self._event("response.output_text.done", **of, text=text, logprobs=[])
        yield self._event("response.content_part.done", **of, part=self._part(text))
        yield self._done(self._items, self._message("completed", [self._part(text)]))
        self._items += 1

    def _done(self, index: int, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        return self._event("response.output_item.done", output_index=index, item=item)

    def tools(self, calls: tuple[ToolCall, ...]) -> Iterator[bytes]:
        yield from self._end_text()
        first = self._items
        self._items += len(calls)
        items = [
            {
                "type": "function_call",
                "id": f"fc_{index}",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": "",
                "status": "in_progress",
            }
            for index, call in enumerate(calls, first)
        ]
        for index, item in enumerate(items, first):
            yield self._event("response.output_item.added", output_index=index, item=item)
        for number, piece in pieces_by_turns(calls):
            yield self._event(
                "response.function_call_arguments.delta",
                item_id=items[number]["id"],
                output_index=first + number,
                delta=piece,
            )
        for index, (call, item) in enumerate(zip(calls, items, strict=True), first):
            yield self._event(
                "response.function_call_arguments.done",
                item_id=item["id"],
                output_index=index,
                arguments=call.arguments,
            )
            yield self._done(index, {**item, "arguments": call.arguments, "status": "completed"})

    def finish(self, reason: str) -> Iterator[bytes]:
        yield from self._end_text()
        usage = None if self._usage is None else self._counts(self._usage)
        if reason in ("stop", "tool_calls"):
            response = self._response("completed", usage=usage)
            yield self._event("response.completed", response=response)
        else:
            details = {"reason": _INCOMPLETE_REASONS.get(reason, reason)}
            response = self._response("incomplete", usage=usage, incomplete_details=details)
            yield self._event("response.incomplete", response=response)

    def end(self) -> Iterator[bytes]:
        yield from ()  # its last event tells the reason and the usage together

    @staticmethod
    def _counts(usage: Usage) -> dict[str, Any]:
        prompt = usage.input + (usage.cache_read or 0) + (usage.cache_write or 0)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": usage.cache_read,
                "cache_write_tokens": usage.cache_write,
            },
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": prompt + usage.output,
        }

    def error(self, kind: str, message: str) -> bytes:
        return self._event("error", code=kind, message=message, param=None)
