"""Sessions, messages and the events of an answer as protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from analytics_service.chat import conversation, events
from analytics_service.names import message_name, session_name
from analytics_service.rpc.convert_model import choice, money
from analytics_service.rpc.convert_usage import record
from analytics_service.rpc.errors import code_of
from grpc_runtime.convert import timestamp
from midcourse.analytics.v1 import analytics_pb2, session_pb2
from midcourse.control.v1 import control_pb2, update_pb2

_ROLES = {
    conversation.Role.USER: session_pb2.ROLE_USER,
    conversation.Role.ASSISTANT: session_pb2.ROLE_ASSISTANT,
}
_STATES = {
    conversation.MessageState.RUNNING: session_pb2.MESSAGE_STATE_RUNNING,
    conversation.MessageState.COMPLETE: session_pb2.MESSAGE_STATE_COMPLETE,
    conversation.MessageState.TRUNCATED: session_pb2.MESSAGE_STATE_TRUNCATED,
    conversation.MessageState.CANCELLED: session_pb2.MESSAGE_STATE_CANCELLED,
    conversation.MessageState.FAILED: session_pb2.MESSAGE_STATE_FAILED,
    conversation.MessageState.INTERRUPTED: session_pb2.MESSAGE_STATE_INTERRUPTED,
}


def session(of: conversation.Session) -> session_pb2.Session:
    """A session."""
    return session_pb2.Session(
        name=session_name(of.id),
        title=of.title,
        model_id=of.model_id or "",
        follow_successor=of.follow_successor,
        principal=of.principal,
        create_time=timestamp(of.created),
        update_time=timestamp(of.updated),
        message_count=of.message_count,
        cost=money(of.cost),
        unknown_cost_calls=of.unknown_cost_calls,
        etag=str(of.version),
    )


def message(of: conversation.Message) -> session_pb2.Message:
    """A message."""
    return session_pb2.Message(
        name=message_name(of.session_id, of.number),
        role=_ROLES[of.role],
        state=_STATES[of.state],
        parts=[_part(part) for part in of.parts],
        model=None if of.model is None else choice(of.model),
        citations=[_citation(citation) for citation in of.citations],
        error=None if of.error is None else _error(of.error),
        create_time=timestamp(of.created),
        end_time=None if of.ended is None else timestamp(of.ended),
        cost=money(of.cost),
        unknown_cost_calls=of.unknown_cost_calls,
    )


def event(happened: events.ChatEvent) -> analytics_pb2.ChatResponse:
    """What happened while an answer was got."""
    response = analytics_pb2.ChatResponse
    match happened:
        case events.Delta(text):
            return response(text_delta=text)
        case events.Started(answer, chosen, replayed):
            return response(
                started=analytics_pb2.ChatStarted(
                    session=session_name(answer.session_id),
                    message=message_name(answer.session_id, answer.number),
                    model=choice(chosen),
                    replayed=replayed,
                )
            )
        case events.ToolCalled(call):
            return response(tool_call=_tool_call(call))
        case events.ToolReturned(call):
            return response(tool_result=_tool_call(call))
        case events.Proposed(proposal):
            return response(proposed_update=_proposal(proposal))
        case events.CallEnded(ended):
            return response(usage=record(ended))
        case events.Retried(error, delay, chosen):
            return response(
                retry=analytics_pb2.ChatRetry(error=error, delay=delay, model=choice(chosen))
            )
        case events.Done(answer):
            return response(done=analytics_pb2.ChatDone(message=message(answer)))
        case events.Failed(_, error):
            return response(
                error=session_pb2.Error(
                    code=code_of(error), reason=error.reason, message=error.message
                )
            )


def _part(part: conversation.Part) -> session_pb2.Part:
    match part:
        case conversation.TextPart(text):
            return session_pb2.Part(text=text)
        case conversation.ToolCallPart():
            return session_pb2.Part(tool_call=_tool_call(part))
        case conversation.ProposalPart():
            return session_pb2.Part(proposed_update=_proposal(part))


def _tool_call(call: conversation.ToolCallPart) -> session_pb2.ToolCall:
    return session_pb2.ToolCall(
        call_id=call.call_id,
        tool=call.tool,
        arguments=_struct(call.arguments),
        result=_struct(call.result),
        error=call.error,
        by_service=call.by_service,
        duration=call.duration,
    )


def _proposal(proposal: conversation.ProposalPart) -> session_pb2.ProposedUpdate:
    validated = None
    if proposal.validated is not None:
        validated = update_pb2.Update.FromString(proposal.validated)
    return session_pb2.ProposedUpdate(
        request=control_pb2.UpdateParametersRequest.FromString(proposal.request),
        validated=validated,
        error=None if proposal.error is None else _error(proposal.error),
        rationale=proposal.rationale,
    )


def _citation(citation: conversation.Citation) -> session_pb2.Citation:
    return session_pb2.Citation(
        job=f"jobs/{citation.job}",
        metric=citation.metric,
        first_step=citation.first_step,
        last_step=citation.last_step,
        what=citation.what,
    )


def _error(error: conversation.ErrorInfo) -> session_pb2.Error:
    return session_pb2.Error(code=error.code, reason=error.reason, message=error.message)


def _struct(values: Mapping[str, Any] | None) -> Struct | None:
    """JSON as protobuf; its numbers are doubles."""
    return None if values is None else ParseDict(dict(values), Struct())
