"""Calls out of Python values: pure, for the blocking and the asynchronous client alike."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypedDict, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask

from analytics_service._client.money import Amount, amount_text
from grpc_runtime.client.call import Call, unary_call
from grpc_runtime.convert import timestamp
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2
from midcourse.analytics.v1.analytics_pb2_grpc import AnalyticsServiceStub
from midcourse.control.v1 import access_pb2

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from grpc_runtime.client.call import StubMethod

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")
_Named = TypeVar("_Named", bound=str)

Band = Literal["free", "$", "$$", "$$$", "$$$$"]
Period = Literal["day", "month"]
Group = Literal["model", "principal", "session", "day"]

BANDS: Final[Mapping[Band, model_pb2.CostBand.ValueType]] = MappingProxyType(
    {
        "free": model_pb2.COST_BAND_FREE,
        "$": model_pb2.COST_BAND_LOW,
        "$$": model_pb2.COST_BAND_MEDIUM,
        "$$$": model_pb2.COST_BAND_HIGH,
        "$$$$": model_pb2.COST_BAND_VERY_HIGH,
    }
)
"""Bands of cost, cheapest first, as people write them."""

_PERIODS: Final[dict[Period, usage_pb2.BudgetPeriod.ValueType]] = {
    "day": usage_pb2.BUDGET_PERIOD_DAY,
    "month": usage_pb2.BUDGET_PERIOD_MONTH,
}
_GROUPS: Final[dict[Group, usage_pb2.UsageGroup.ValueType]] = {
    "model": usage_pb2.USAGE_GROUP_MODEL,
    "principal": usage_pb2.USAGE_GROUP_PRINCIPAL,
    "session": usage_pb2.USAGE_GROUP_SESSION,
    "day": usage_pb2.USAGE_GROUP_DAY,
}


def _call(
    method: Callable[[AnalyticsServiceStub], StubMethod[_Request, _Response]],
    request: _Request,
    result: Callable[[_Response], _Result],
    *,
    repeatable: bool = True,
) -> Call[_Result]:
    return unary_call(AnalyticsServiceStub, method, request, result, repeatable=repeatable)


class ChatOptions(TypedDict, total=False):
    """Options of a question.

    Attributes:
        session: Id or resource name of the session to ask in; by default a new one is made.
        model: Id or alias of the model that is to answer, here and later in this session; by
            default the session's, else the service's.
        follow_successor: Take a retired model's successor instead of being refused; by default
            as the session and the service's configuration say.
        max_output_tokens: Most tokens of one answer of the model, reasoning included; by default
            the service's choice.
        temperature: Sampling temperature; by default none is sent.
        jobs: Ids of the jobs that the question is about; by default the model finds out.
        request_id: Id of the question, the same for every try of it: the service answers an id
            once, and tells that answer again to whoever repeats it. By default a new one.
        timeout: Seconds that the answer may take, by default 600; then it is cancelled.
    """

    session: str
    model: str
    follow_successor: bool | None
    max_output_tokens: int
    temperature: float | None
    jobs: Iterable[str]
    request_id: str | None
    timeout: float


def chat_request(question: str, options: ChatOptions) -> pb.ChatRequest:
    """Returns a question that is safe to repeat: it always has an id.

    Raises:
        TypeError: ``jobs`` is one text.
    """
    session = options.get("session", "")
    jobs = options.get("jobs", ())
    if isinstance(jobs, str):  # which is an iterable of strings too: of its letters
        raise TypeError(f"jobs: got {jobs!r}, allowed: several ids, such as [{jobs!r}]")
    return pb.ChatRequest(
        session=resource_name("sessions", session) if session else "",
        content=question,
        model_id=options.get("model", ""),
        follow_successor=options.get("follow_successor"),
        max_output_tokens=options.get("max_output_tokens", 0),
        temperature=options.get("temperature"),
        jobs=[resource_name("jobs", job) for job in jobs],
        request_id=options.get("request_id") or str(uuid.uuid4()),
    )


def list_models(*, available_only: bool) -> Call[Sequence[model_pb2.Model]]:
    """Lists the models."""
    return _call(
        lambda stub: stub.ListModels,
        pb.ListModelsRequest(available_only=available_only),
        lambda response: response.models,
    )


def create_session(title: str, model: str, *, follow_successor: bool) -> Call[session_pb2.Session]:
    """Creates a session; there would be two after two calls."""
    return _call(
        lambda stub: stub.CreateSession,
        pb.CreateSessionRequest(title=title, model_id=model, follow_successor=follow_successor),
        lambda response: response.session,
        repeatable=False,
    )


def get_session(session: str) -> Call[session_pb2.Session]:
    """Returns a session."""
    return _call(
        lambda stub: stub.GetSession,
        pb.GetSessionRequest(name=resource_name("sessions", session)),
        lambda response: response.session,
    )


def list_sessions(page_size: int) -> Call[Sequence[session_pb2.Session]]:
    """Lists sessions, a page at a time."""
    return _call(
        lambda stub: stub.ListSessions,
        pb.ListSessionsRequest(page_size=page_size),
        lambda response: response.sessions,
    )


def update_session(
    session: str,
    *,
    title: str | None,
    model: str | None,
    follow_successor: bool | None,
    etag: str,
) -> Call[session_pb2.Session]:
    """Changes what is given; with an etag the second of two calls would be refused."""
    given = {"title": title, "model_id": model, "follow_successor": follow_successor}
    changed = session_pb2.Session(
        name=resource_name("sessions", session),
        title=title or "",
        model_id=model or "",
        follow_successor=follow_successor or False,
        etag=etag,
    )
    paths = [path for path, value in given.items() if value is not None]
    if not paths:  # to the service an empty mask means every field that is set
        raise ValueError(f"nothing to change: give one of {', '.join(given)}")
    return _call(
        lambda stub: stub.UpdateSession,
        pb.UpdateSessionRequest(session=changed, update_mask=FieldMask(paths=paths)),
        lambda response: response.session,
        repeatable=not etag,
    )


def delete_session(session: str, etag: str) -> Call[None]:
    """Deletes a session; a second call would not find it."""
    return _call(
        lambda stub: stub.DeleteSession,
        pb.DeleteSessionRequest(name=resource_name("sessions", session), etag=etag),
        lambda _: None,
        repeatable=False,
    )


def list_messages(session: str, page_size: int) -> Call[Sequence[session_pb2.Message]]:
    """Lists a session's messages, a page at a time."""
    return _call(
        lambda stub: stub.ListMessages,
        pb.ListMessagesRequest(parent=resource_name("sessions", session), page_size=page_size),
        lambda response: response.messages,
    )


def cancel_chat(name: str) -> Call[session_pb2.Message]:
    """Stops an answer; where only the session is named, a second call might stop the next one."""
    name = resource_name("sessions", name)
    return _call(
        lambda stub: stub.CancelChat,
        pb.CancelChatRequest(name=name),
        lambda response: response.message,
        repeatable="/messages/" in name,
    )


class UsageFilter(TypedDict, total=False):
    """Which usage is meant; by default all that the caller may see.

    Attributes:
        start_time: Only calls from this time on.
        end_time: Only calls before this time.
        model: Only of this model, by id or alias.
        principal: Only of this caller; by default oneself, or everybody if one may see that.
        session: Only of this session.
    """

    start_time: datetime | None
    end_time: datetime | None
    model: str
    principal: str
    session: str


def get_usage(group_by: Group | None, only: UsageFilter) -> Call[pb.GetUsageResponse]:
    """Sums usage up."""
    return _call(
        lambda stub: stub.GetUsage,
        _usage_request(only, group_by=group_by),
        lambda response: response,
    )


def list_usage(page_size: int, only: UsageFilter) -> Call[Sequence[usage_pb2.UsageRecord]]:
    """Lists calls to providers, a page at a time."""
    return _call(
        lambda stub: stub.GetUsage,
        _usage_request(only, page_size=page_size or 100),
        lambda response: response.records,
    )


def get_budget(period: Period, principal: str, model: str) -> Call[usage_pb2.Budget]:
    """Returns a budget."""
    return _call(
        lambda stub: stub.GetBudget,
        pb.GetBudgetRequest(
            principal=principal, model_id=model, period=_known(period, _PERIODS, "period")
        ),
        lambda response: response.budget,
    )


def list_budgets() -> Call[Sequence[usage_pb2.Budget]]:
    """Lists budgets."""
    return _call(
        lambda stub: stub.ListBudgets,
        pb.ListBudgetsRequest(),
        lambda response: response.budgets,
    )


def set_budget(
    limit: Amount | None, period: Period, principal: str, model: str
) -> Call[usage_pb2.Budget]:
    """Sets or lifts a limit."""
    return _call(
        lambda stub: stub.SetBudget,
        pb.SetBudgetRequest(
            principal=principal,
            model_id=model,
            period=_known(period, _PERIODS, "period"),
            limit=None if limit is None else amount_text(limit),
        ),
        lambda response: response.budget,
    )


def list_audit_records(
    principal: str,
    resource: str,
    start_time: datetime | None,
    end_time: datetime | None,
    page_size: int,
) -> Call[Sequence[access_pb2.AuditRecord]]:
    """Lists the record of changes, a page at a time."""
    return _call(
        lambda stub: stub.ListAuditRecords,
        pb.ListAuditRecordsRequest(
            principal=principal,
            resource=resource,
            start_time=_timestamp(start_time),
            end_time=_timestamp(end_time),
            page_size=page_size,
        ),
        lambda response: response.records,
    )


def recommend_model(
    question: str,
    *,
    session: str,
    max_cost_band: Band | None,
    max_cost: Amount | None,
    allow_without_tools: bool,
) -> Call[pb.RecommendModelResponse]:
    """Asks for advice."""
    return _call(
        lambda stub: stub.RecommendModel,
        pb.RecommendModelRequest(
            content=question,
            session=resource_name("sessions", session) if session else "",
            max_cost_band=model_pb2.COST_BAND_UNSPECIFIED
            if max_cost_band is None
            else _known(max_cost_band, BANDS, "max_cost_band"),
            max_cost="" if max_cost is None else amount_text(max_cost),
            allow_without_tools=allow_without_tools,
        ),
        lambda response: response,
    )


def resource_name(collection: str, name: str) -> str:
    """Returns ``{collection}/{id}`` for an id, and what is a resource name already as it is."""
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def _usage_request(
    only: UsageFilter, *, group_by: Group | None = None, page_size: int = 0
) -> pb.GetUsageRequest:
    session = only.get("session", "")
    return pb.GetUsageRequest(
        start_time=_timestamp(only.get("start_time")),
        end_time=_timestamp(only.get("end_time")),
        model_id=only.get("model", ""),
        principal=only.get("principal", ""),
        session=resource_name("sessions", session) if session else "",
        group_by=usage_pb2.USAGE_GROUP_UNSPECIFIED
        if group_by is None
        else _known(group_by, _GROUPS, "group_by"),
        page_size=page_size,
    )


def _timestamp(when: datetime | None) -> Timestamp | None:
    """Wraps a time; one without a zone is local, as Python has it."""
    return None if when is None else timestamp(when.astimezone(UTC))


def _known(word: _Named, words: Mapping[_Named, _Response], what: str) -> _Response:
    if word not in words:
        raise ValueError(f"{what}: got {word!r}, allowed: {', '.join(map(repr, words))}")
    return words[word]
