"""An analytics service that answers as a test tells it to, behind a real gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import grpc
from google.protobuf.descriptor import MethodDescriptor

from grpc_runtime.errors import StatusError, to_proto, trailing_metadata
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2

_SERVICE = pb.DESCRIPTOR.services_by_name["AnalyticsService"]

SESSION = "sessions/s1"
MESSAGE = "sessions/s1/messages/2"
CHOICE = model_pb2.ModelChoice(
    requested_model="mini", source=model_pb2.MODEL_SOURCE_REQUEST, used_model="gpt-6-luna"
)
Step = pb.ChatResponse | StatusError | asyncio.Event
"""What a chat does next: send an event, fail, or wait."""


def started() -> pb.ChatResponse:
    return pb.ChatResponse(started=pb.ChatStarted(session=SESSION, message=MESSAGE, model=CHOICE))


def delta(text: str) -> pb.ChatResponse:
    return pb.ChatResponse(text_delta=text)


def usage(cost: str | None) -> pb.ChatResponse:
    return pb.ChatResponse(usage=usage_pb2.UsageRecord(name="usage/u1", cost=cost))


def done(text: str, cost: str, *, unknown: int = 0) -> pb.ChatResponse:
    message = session_pb2.Message(
        name=MESSAGE,
        role=session_pb2.ROLE_ASSISTANT,
        state=session_pb2.MESSAGE_STATE_COMPLETE,
        parts=[
            session_pb2.Part(text=text),
            session_pb2.Part(tool_call=session_pb2.ToolCall(call_id="c1", tool="get_job")),
            session_pb2.Part(proposed_update=session_pb2.ProposedUpdate(rationale="it spiked")),
        ],
        model=model_pb2.ModelChoice(
            requested_model="mini", used_model="gpt-6-luna", served_model="gpt-6-luna-2026"
        ),
        cost=cost,
        unknown_cost_calls=unknown,
    )
    return pb.ChatResponse(done=pb.ChatDone(message=message))


WHOLE: tuple[Step, ...] = (
    started(),
    delta("It spiked "),
    delta("at 120."),
    usage("0.000123"),
    done("It spiked at 120.", "0.000123"),
)


class ScriptedAnalytics:
    """Answers with what was put into it.

    Attributes:
        address: Where it listens.
        calls: Every request, by method name, in order.
        metadata: Of every call, in order.
        failures: Refusals of the next calls, by method name.
        responses: Answers by method name; the last one stays.
        chats: What the next chats do; the last one stays.
        chat_ended: Set when a chat has ended, however it did.
    """

    def __init__(self) -> None:
        self.address = ""
        self.calls: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.failures: dict[str, list[StatusError]] = {}
        self.responses: dict[str, list[Any]] = {}
        self.chats: list[Sequence[Step]] = [WHOLE]
        self.chat_ended = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {method.name: self._handler(method) for method in _SERVICE.methods}
        self._server.add_registered_method_handlers(_SERVICE.full_name, handlers)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.stop(grace=None)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    async def _begin(self, method: str, request: Any, context: Any) -> None:
        self.calls.append((method, request))
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if waiting := self.failures.get(method):
            await _abort(context, waiting.pop(0))

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(request: Any, context: Any) -> Any:
            await self._begin(method.name, request, context)
            waiting = self.responses[method.name]
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

        read = getattr(pb, method.input_type.name).FromString
        write = getattr(pb, method.output_type.name).SerializeToString
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._chat, read, write)
        return grpc.unary_unary_rpc_method_handler(answer, read, write)

    async def _chat(self, request: Any, context: Any) -> AsyncIterator[pb.ChatResponse]:
        try:
            await self._begin("Chat", request, context)
            steps = self.chats.pop(0) if len(self.chats) > 1 else self.chats[0]
            for step in steps:
                match step:
                    case asyncio.Event():
                        await step.wait()
                    case StatusError():
                        await _abort(context, step)
                    case _:
                        yield step
        finally:
            self.chat_ended.set()


async def _abort(context: Any, error: StatusError) -> None:
    status = to_proto(error, default_domain="midcourse.analytics")
    await context.abort(error.code, status.message, trailing_metadata(status))
