"""AnalyticsService: a chat about the runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from analytics_service.chat.plan import Caller, Question
from analytics_service.chat.service import ChatService
from analytics_service.chat.sessions import SessionService
from analytics_service.ports import SessionChange, SessionCursor
from analytics_service.rpc import convert_chat, convert_model, convert_usage
from analytics_service.rpc.names import is_id, parse_message, parse_session
from analytics_service.usage.records import UsageGroup
from analytics_service.usage.service import UsageService
from grpc_runtime.audit import convert
from grpc_runtime.auth import ADMIN, current_principal
from grpc_runtime.errors import invalid_argument
from grpc_runtime.paging import invalid_token, page_size, read_token, write_token
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import analytics_pb2_grpc, model_pb2, session_pb2
from midcourse.control.v1 import access_pb2

if TYPE_CHECKING:
    import grpc

    from analytics_service.advice import Advice
    from analytics_service.catalogue.listing import ListedModel
    from grpc_runtime.audit.log import AuditLog

    Context = grpc.aio.ServicerContext[Any, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROS_DIGITS = 17
"""Enough for some thousand years, and few enough for a `datetime`."""
MAX_MESSAGES = 100
"""Messages of one page: with what their tools have returned they may be long."""
PAGE_BYTES = 2**20
"""Size of a page of messages, unless one message is larger: what is sent has a limit."""
_FORWARDED = ("authorization", "x-request-id")
"""What goes along when the control plane is asked in the caller's name."""


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicer hands calls to."""

    chat: ChatService
    sessions: SessionService
    usage: UsageService
    advice: Advice
    audit: AuditLog
    models: Callable[[], list[ListedModel]]


class AnalyticsServicer(analytics_pb2_grpc.AnalyticsServiceServicer):
    """Converts, hands on, converts back."""

    def __init__(self, use_cases: UseCases) -> None:
        """Takes the use cases."""
        self._chat = use_cases.chat
        self._sessions = use_cases.sessions
        self._usage = use_cases.usage
        self._advice = use_cases.advice
        self._audit = use_cases.audit
        self._models = use_cases.models

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Lists the models of the catalogue."""
        return pb.ListModelsResponse(
            models=[
                convert_model.model(listed)
                for listed in self._models()
                if listed.unavailable is None or not request.available_only
            ]
        )

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        """Creates a session."""
        session = await self._sessions.create(
            request.title, request.model_id, request.follow_successor, _caller(context)
        )
        return pb.CreateSessionResponse(session=convert_chat.session(session))

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Context
    ) -> pb.GetSessionResponse:
        """Returns a session."""
        session = await self._sessions.get(parse_session(request.name, "name"), _caller(context))
        return pb.GetSessionResponse(session=convert_chat.session(session))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """Lists the caller's sessions, the one used last first."""
        size = page_size(request.page_size)
        caller = _caller(context)
        query = f"sessions {caller.name}"
        after = _cursor(request.page_token, query)
        sessions = await self._sessions.list(caller, after, size + 1)
        page = sessions[:size]
        last = None if len(sessions) <= size else _cursor_text(page[-1].updated, page[-1].id)
        return pb.ListSessionsResponse(
            sessions=[convert_chat.session(session) for session in page],
            next_page_token=write_token(last, query),
        )

    async def UpdateSession(
        self, request: pb.UpdateSessionRequest, context: Context
    ) -> pb.UpdateSessionResponse:
        """Changes a session's title or model."""
        session_id = parse_session(request.session.name, "session.name")
        version = _version(request.session.etag, "session.etag")
        session = await self._sessions.change(
            session_id, _change(request), version, _caller(context)
        )
        return pb.UpdateSessionResponse(session=convert_chat.session(session))

    async def DeleteSession(
        self, request: pb.DeleteSessionRequest, context: Context
    ) -> pb.DeleteSessionResponse:
        """Deletes a session with its messages."""
        session_id = parse_session(request.name, "name")
        await self._sessions.delete(session_id, _version(request.etag, "etag"), _caller(context))
        return pb.DeleteSessionResponse()

    async def ListMessages(
        self, request: pb.ListMessagesRequest, context: Context
    ) -> pb.ListMessagesResponse:
        """Lists a session's messages, the oldest first."""
        session_id = parse_session(request.parent, "parent")
        size = min(page_size(request.page_size), MAX_MESSAGES)
        query = f"messages {session_id}"
        after = read_token(request.page_token, query)
        messages = await self._sessions.messages(
            session_id, after if isinstance(after, int) else 0, size + 1, _caller(context)
        )
        page = _fitting(convert_chat.message(message) for message in messages[:size])
        last = None if len(messages) <= len(page) else messages[len(page) - 1].number
        return pb.ListMessagesResponse(messages=page, next_page_token=write_token(last, query))

    async def Chat(
        self, request: pb.ChatRequest, context: Context
    ) -> AsyncIterator[pb.ChatResponse]:
        """Asks a question; the answer streams."""
        turn = await self._chat.start(_question(request), _caller(context))
        try:
            async for event in turn.events:
                yield convert_chat.event(event)
        finally:
            self._chat.abandon(turn)
        if turn.failure is not None:
            raise turn.failure

    async def CancelChat(
        self, request: pb.CancelChatRequest, context: Context
    ) -> pb.CancelChatResponse:
        """Stops an answer that is being written."""
        session_id, number = parse_message(request.name, "name")
        message = await self._chat.cancel(session_id, number, _caller(context))
        return pb.CancelChatResponse(message=convert_chat.message(message))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        """Returns what was used and spent."""
        which = convert_usage.filter_of(request)
        size = page_size(request.page_size, default=0)
        group = convert_usage.group_of(request.group_by)
        caller = _caller(context)
        response = pb.GetUsageResponse()
        if not (size and request.page_token):  # they are the same for all pages
            total = await self._usage.total(which, caller)
            response.total.CopyFrom(convert_usage.summary(total, UsageGroup.ALL))
            if group is not UsageGroup.ALL:
                sums = await self._usage.summaries(which, group, caller)
                response.summaries.extend(convert_usage.summary(each, group) for each in sums)
            elif total.calls:
                response.summaries.append(response.total)
        if size:
            query = f"usage {caller.name} {which}"
            before = read_token(request.page_token, query)
            records = await self._usage.records(
                which, before if isinstance(before, str) else None, size + 1, caller
            )
            response.records.extend(convert_usage.record(each) for each in records[:size])
            last = None if len(records) <= size else records[size - 1].id
            response.next_page_token = write_token(last, query)
        return response

    async def GetBudget(
        self, request: pb.GetBudgetRequest, context: Context
    ) -> pb.GetBudgetResponse:
        """Returns a budget and what is left of it."""
        key = convert_usage.budget_key_of(request)
        budget = await self._usage.budget(key, _caller(context))
        return pb.GetBudgetResponse(budget=convert_usage.budget(budget))

    async def ListBudgets(
        self, request: pb.ListBudgetsRequest, context: Context
    ) -> pb.ListBudgetsResponse:
        """Lists the budgets."""
        budgets = await self._usage.budgets(_caller(context))
        return pb.ListBudgetsResponse(budgets=[convert_usage.budget(each) for each in budgets])

    async def SetBudget(
        self, request: pb.SetBudgetRequest, context: Context
    ) -> pb.SetBudgetResponse:
        """Sets or lifts a limit."""
        key = convert_usage.budget_key_of(request)
        limit = None
        if request.HasField("limit"):
            limit = convert_usage.amount_of(request.limit, "limit")
        budget = await self._usage.set_budget(key, limit, _caller(context))
        return pb.SetBudgetResponse(budget=convert_usage.budget(budget))

    async def RecommendModel(
        self, request: pb.RecommendModelRequest, context: Context
    ) -> pb.RecommendModelResponse:
        """Says which model is likely good enough for a question and cheapest."""
        bands = {value: band for band, value in convert_model.BANDS.items()}
        if request.max_cost_band not in (model_pb2.COST_BAND_UNSPECIFIED, *bands):
            raise invalid_argument(
                "max_cost_band", f"got {request.max_cost_band}, allowed: 0 to {max(bands)}"
            )
        advice = await self._advice.on(
            request.content,
            parse_session(request.session, "session") if request.session else None,
            max_band=bands.get(request.max_cost_band),
            max_cost=convert_usage.amount_of(request.max_cost, "max_cost")
            if request.max_cost
            else None,
            need_tools=not request.allow_without_tools,
            caller=_caller(context),
        )
        return convert_model.recommendation(advice, self._advice.evaluation)

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: Context
    ) -> pb.ListAuditRecordsResponse:
        """Lists the record of changes and of refused calls, newest first."""
        fields = await convert.page(self._audit, request, access_pb2.AuditRecord)
        return pb.ListAuditRecordsResponse(**fields)


def _fitting(messages: Iterable[session_pb2.Message]) -> list[session_pb2.Message]:
    """As many as fit into one page, at least one."""
    page: list[session_pb2.Message] = []
    size = 0
    for message in messages:
        size += message.ByteSize()
        if page and size > PAGE_BYTES:
            break
        page.append(message)
    return page


def _caller(context: Context) -> Caller:
    principal = current_principal()
    metadata = tuple(
        (key, value) for key, value in context.invocation_metadata() or () if key in _FORWARDED
    )
    return Caller(principal.name, ADMIN in principal.roles, metadata)


def _question(request: pb.ChatRequest) -> Question:
    if request.max_output_tokens < 0:
        raise invalid_argument(
            "max_output_tokens",
            f"got {request.max_output_tokens}, allowed: 0 (for the default) or more",
        )
    temperature = request.temperature if request.HasField("temperature") else None
    if temperature is not None and not 0 <= temperature <= 2:
        raise invalid_argument("temperature", f"got {temperature}, allowed: 0 to 2")
    return Question(
        content=request.content,
        session_id=parse_session(request.session, "session") if request.session else None,
        model_id=request.model_id or None,
        follow_successor=request.follow_successor if request.HasField("follow_successor") else None,
        max_output_tokens=request.max_output_tokens or None,
        temperature=temperature,
        jobs=tuple(_job(name, f"jobs[{index}]") for index, name in enumerate(request.jobs)),
        request_id=request.request_id,
    )


def _job(name: str, field: str) -> str:
    collection, _, job_id = name.partition("/")
    if collection != "jobs" or not job_id or "/" in job_id:
        raise invalid_argument(field, f"got {name[:100]!r}, allowed: jobs/{{job}}")
    return job_id


_FIELDS = ("title", "model_id", "follow_successor")


def _change(request: pb.UpdateSessionRequest) -> SessionChange:
    session = request.session
    paths = list(request.update_mask.paths)
    for path in paths:
        if path not in _FIELDS:
            raise invalid_argument(
                "update_mask", f"got {path[:60]!r}, allowed: {', '.join(_FIELDS)}"
            )
    if not paths:
        paths = [field for field in _FIELDS if getattr(session, field)]
    return SessionChange(
        title=session.title if "title" in paths else None,
        model_id=session.model_id if "model_id" in paths else None,
        follow_successor=session.follow_successor if "follow_successor" in paths else None,
    )


def _version(etag: str, field: str) -> int | None:
    if not etag:
        return None
    if not (etag.isascii() and etag.isdigit() and len(etag) < 19):
        raise invalid_argument(field, f"got {etag[:60]!r}, allowed: an etag as it was returned")
    return int(etag)


def _cursor_text(updated: datetime, session_id: str) -> str:
    return f"{(updated - _EPOCH) // timedelta(microseconds=1)} {session_id}"


def _cursor(token: str, query: str) -> SessionCursor | None:
    after = read_token(token, query)
    if after is None:
        return None
    micros, _, session_id = str(after).partition(" ")
    # Whoever knows how tokens are made can make one up.
    if not (micros.isascii() and micros.isdigit() and len(micros) <= _MICROS_DIGITS):
        raise invalid_token(token)
    if not is_id(session_id):
        raise invalid_token(token)
    return SessionCursor(_EPOCH + timedelta(microseconds=int(micros)), session_id)
