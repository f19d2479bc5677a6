"""Every method of both clients: what it sends, what it returns, what it repeats."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from analytics_service.client import (
    AsyncClient,
    Client,
    ConflictError,
    NotFoundError,
    UnavailableError,
)
from grpc_runtime.errors import StatusError
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2
from midcourse.control.v1 import access_pb2
from tests.support.analytics_callers import Caller
from tests.support.scripted_analytics import ScriptedAnalytics

SESSION = session_pb2.Session(name="sessions/s1", title="A title", etag="e1")
MESSAGE = session_pb2.Message(name="sessions/s1/messages/2")
BUDGET = usage_pb2.Budget(name="budgets/-/-/day", limit="5.00")
MODEL = model_pb2.Model(name="models/mini", model_id="mini")
RECORD = usage_pb2.UsageRecord(name="usage/u1", cost="0.10")
AUDITED = access_pb2.AuditRecord(principal="ops")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOON_PROTO = Timestamp(seconds=int(NOON.timestamp()))
DOWN = StatusError(grpc.StatusCode.UNAVAILABLE, "draining", reason="SHUTTING_DOWN")


@dataclass
class Case:
    """A call of the client, and the calls of the service that it stands for."""

    method: str
    rpc: str
    requests: list[Any]
    responses: list[Any]
    result: Any
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    repeatable: bool = True


def pages(kind: Any, name: str, items: list[Any]) -> list[Any]:
    first = kind(**{name: items[:1]}, next_page_token="more")
    return [first, kind(**{name: items[1:]})]


CASES = {
    "models": Case(
        "list_models",
        "ListModels",
        [pb.ListModelsRequest(available_only=True)],
        [pb.ListModelsResponse(models=[MODEL])],
        [MODEL],
        options={"available_only": True},
    ),
    "a recommendation": Case(
        "recommend_model",
        "RecommendModel",
        [
            pb.RecommendModelRequest(
                content="Why?",
                session="sessions/s1",
                max_cost_band=model_pb2.COST_BAND_MEDIUM,
                max_cost="100",
                allow_without_tools=True,
            )
        ],
        [pb.RecommendModelResponse(model_id="mini")],
        pb.RecommendModelResponse(model_id="mini"),
        ("Why?",),
        {
            "session": "s1",
            "max_cost_band": "$$",
            "max_cost": Decimal("1E+2"),
            "allow_without_tools": True,
        },
    ),
    "a recommendation without wishes": Case(
        "recommend_model",
        "RecommendModel",
        [pb.RecommendModelRequest(content="Why?")],
        [pb.RecommendModelResponse()],
        pb.RecommendModelResponse(),
        ("Why?",),
    ),
    "a new session": Case(
        "create_session",
        "CreateSession",
        [pb.CreateSessionRequest(title="A title", model_id="mini", follow_successor=True)],
        [pb.CreateSessionResponse(session=SESSION)],
        SESSION,
        options={"title": "A title", "model": "mini", "follow_successor": True},
        repeatable=False,
    ),
    "a session by its id": Case(
        "get_session",
        "GetSession",
        [pb.GetSessionRequest(name="sessions/s1")],
        [pb.GetSessionResponse(session=SESSION)],
        SESSION,
        ("s1",),
    ),
    "sessions": Case(
        "list_sessions",
        "ListSessions",
        [
            pb.ListSessionsRequest(page_size=1),
            pb.ListSessionsRequest(page_size=1, page_token="more"),
        ],
        pages(pb.ListSessionsResponse, "sessions", [SESSION, SESSION]),
        [SESSION, SESSION],
        options={"page_size": 1},
    ),
    "a session's new model": Case(
        "update_session",
        "UpdateSession",
        [
            pb.UpdateSessionRequest(
                session=session_pb2.Session(name="sessions/s1"),
                update_mask=FieldMask(paths=["model_id", "follow_successor"]),
            )
        ],
        [pb.UpdateSessionResponse(session=SESSION)],
        SESSION,
        ("sessions/s1",),
        {"model": "", "follow_successor": False},
    ),
    "a session's new title, if nobody changed it": Case(
        "update_session",
        "UpdateSession",
        [
            pb.UpdateSessionRequest(
                session=session_pb2.Session(name="sessions/s1", title="New", etag="e1"),
                update_mask=FieldMask(paths=["title"]),
            )
        ],
        [pb.UpdateSessionResponse(session=SESSION)],
        SESSION,
        ("s1",),
        {"title": "New", "etag": "e1"},
        repeatable=False,
    ),
    "a session's end": Case(
        "delete_session",
        "DeleteSession",
        [pb.DeleteSessionRequest(name="sessions/s1", etag="e1")],
        [pb.DeleteSessionResponse()],
        None,
        ("s1",),
        {"etag": "e1"},
        repeatable=False,
    ),
    "messages": Case(
        "list_messages",
        "ListMessages",
        [
            pb.ListMessagesRequest(parent="sessions/s1"),
            pb.ListMessagesRequest(parent="sessions/s1", page_token="more"),
        ],
        pages(pb.ListMessagesResponse, "messages", [MESSAGE, MESSAGE]),
        [MESSAGE, MESSAGE],
        ("s1",),
    ),
    "the end of an answer": Case(
        "cancel_chat",
        "CancelChat",
        [pb.CancelChatRequest(name="sessions/s1/messages/2")],
        [pb.CancelChatResponse(message=MESSAGE)],
        MESSAGE,
        ("sessions/s1/messages/2",),
    ),
    "the end of whatever is written in a session": Case(
        "cancel_chat",
        "CancelChat",
        [pb.CancelChatRequest(name="sessions/s1")],
        [pb.CancelChatResponse(message=MESSAGE)],
        MESSAGE,
        ("s1",),
        repeatable=False,
    ),
    "sums of usage": Case(
        "get_usage",
        "GetUsage",
        [
            pb.GetUsageRequest(
                start_time=NOON_PROTO,
                end_time=NOON_PROTO,
                model_id="mini",
                principal="ops",
                session="sessions/s1",
                group_by=usage_pb2.USAGE_GROUP_DAY,
            )
        ],
        [pb.GetUsageResponse(total=usage_pb2.UsageSummary(calls=3))],
        pb.GetUsageResponse(total=usage_pb2.UsageSummary(calls=3)),
        ("day",),
        {
            "start_time": NOON,
            "end_time": NOON,
            "model": "mini",
            "principal": "ops",
            "session": "s1",
        },
    ),
    "the sum of all usage": Case(
        "get_usage",
        "GetUsage",
        [pb.GetUsageRequest()],
        [pb.GetUsageResponse()],
        pb.GetUsageResponse(),
    ),
    "usage, call by call": Case(
        "list_usage",
        "GetUsage",
        [
            pb.GetUsageRequest(model_id="mini", page_size=100),
            pb.GetUsageRequest(model_id="mini", page_size=100, page_token="more"),
        ],
        pages(pb.GetUsageResponse, "records", [RECORD, RECORD]),
        [RECORD, RECORD],
        options={"model": "mini"},
    ),
    "a budget": Case(
        "get_budget",
        "GetBudget",
        [
            pb.GetBudgetRequest(
                principal="ops", model_id="mini", period=usage_pb2.BUDGET_PERIOD_MONTH
            )
        ],
        [pb.GetBudgetResponse(budget=BUDGET)],
        BUDGET,
        ("month",),
        {"principal": "ops", "model": "mini"},
    ),
    "budgets": Case(
        "list_budgets",
        "ListBudgets",
        [pb.ListBudgetsRequest()],
        [pb.ListBudgetsResponse(budgets=[BUDGET])],
        [BUDGET],
    ),
    "a limit": Case(
        "set_budget",
        "SetBudget",
        [pb.SetBudgetRequest(period=usage_pb2.BUDGET_PERIOD_DAY, limit="5.00")],
        [pb.SetBudgetResponse(budget=BUDGET)],
        BUDGET,
        (Decimal("5.00"), "day"),
    ),
    "no limit any more": Case(
        "set_budget",
        "SetBudget",
        [pb.SetBudgetRequest(principal="ops", period=usage_pb2.BUDGET_PERIOD_DAY)],
        [pb.SetBudgetResponse(budget=BUDGET)],
        BUDGET,
        (None, "day"),
        {"principal": "ops"},
    ),
    "who changed what": Case(
        "list_audit_records",
        "ListAuditRecords",
        [
            pb.ListAuditRecordsRequest(
                principal="ops", resource="sessions/s1", start_time=NOON_PROTO, end_time=NOON_PROTO
            ),
            pb.ListAuditRecordsRequest(
                principal="ops",
                resource="sessions/s1",
                start_time=NOON_PROTO,
                end_time=NOON_PROTO,
                page_token="more",
            ),
        ],
        pages(pb.ListAuditRecordsResponse, "records", [AUDITED, AUDITED]),
        [AUDITED, AUDITED],
        options={
            "principal": "ops",
            "resource": "sessions/s1",
            "start_time": NOON,
            "end_time": NOON,
        },
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_call_and_its_answer(
    case: Case, caller: Caller, service: ScriptedAnalytics
) -> None:
    service.responses[case.rpc] = list(case.responses)
    assert await caller.run(case.method, *case.args, **case.options) == case.result
    assert service.calls == [(case.rpc, request) for request in case.requests]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_only_what_may_be_repeated_is(
    case: Case, caller: Caller, service: ScriptedAnalytics
) -> None:
    service.responses[case.rpc] = list(case.responses)
    service.failures[case.rpc] = [DOWN]
    if case.repeatable:
        assert await caller.run(case.method, *case.args, **case.options) == case.result
        assert service.requests(case.rpc)[:2] == [case.requests[0]] * 2
    else:
        with pytest.raises(UnavailableError, match="draining"):
            await caller.run(case.method, *case.args, **case.options)
        assert len(service.calls) == 1


def test_every_method_of_the_api_has_a_case() -> None:
    methods = pb.DESCRIPTOR.services_by_name["AnalyticsService"].methods
    assert {case.rpc for case in CASES.values()} | {"Chat"} == {each.name for each in methods}


def test_both_clients_have_the_same_methods() -> None:
    def signatures(client: type) -> dict[str, Any]:
        return {
            name: list(inspect.signature(member).parameters.values())
            for name, member in vars(client).items()
            if inspect.isfunction(member) and not name.startswith("_")
        }

    assert signatures(Client) == signatures(AsyncClient)
    assert list(inspect.signature(Client).parameters) == list(
        inspect.signature(AsyncClient).parameters
    )


@pytest.mark.parametrize(
    ("method", "args", "options", "words"),
    [
        ("update_session", ("s1",), {}, "nothing to change: give one of title, model_id"),
        ("get_budget", ("week",), {}, "period: got 'week', allowed: 'day', 'month'"),
        ("get_usage", ("hour",), {}, "group_by: got 'hour', allowed: 'model'"),
        ("recommend_model", ("Why?",), {"max_cost_band": "cheap"}, "max_cost_band: got 'cheap'"),
    ],
)
async def test_what_cannot_be_said_is_not_sent(
    caller: Caller,
    service: ScriptedAnalytics,
    method: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        await caller.run(method, *args, **options)
    assert service.calls == []


async def test_refusals_are_those_of_the_control_planes_client(
    caller: Caller, service: ScriptedAnalytics
) -> None:
    from control_plane import client as control_plane_client

    code = grpc.StatusCode
    service.failures["GetSession"] = [
        StatusError(code.NOT_FOUND, "no session s1", reason="SESSION_NOT_FOUND"),
        StatusError(code.ABORTED, "changed", reason="ETAG_MISMATCH"),
    ]
    with pytest.raises(control_plane_client.NotFoundError) as caught:
        await caller.run("get_session", "s1")
    assert type(caught.value) is NotFoundError
    assert caught.value.reason == "SESSION_NOT_FOUND"
    with pytest.raises(ConflictError):
        await caller.run("get_session", "s1")


async def test_nobody_there(caller: Caller, service: ScriptedAnalytics) -> None:
    await service.__aexit__()
    with pytest.raises(UnavailableError, match=r"no analytics service answers at 127\.0\.0\.1:"):
        await caller.run("list_models")


async def test_metadata_goes_with_every_call(caller: Caller, service: ScriptedAnalytics) -> None:
    service.responses["ListModels"] = [pb.ListModelsResponse()]
    asking = caller.client.with_metadata([("authorization", "Bearer s3cret")])
    await Caller(asking).run("list_models")
    await Caller(asking).run("ask", "Why?")
    await Caller(asking).run("close")
    await caller.run("list_models")
    sent = [seen.get("authorization") for seen in service.metadata]
    assert sent == ["Bearer s3cret", "Bearer s3cret", None]
    assert "s3cret" not in f"{asking!r}{vars(asking)!r}"


async def test_the_address_comes_from_argument_environment_or_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIDCOURSE_ANALYTICS", "analytics.example:7000")
    async with AsyncClient() as client:
        assert client.address == Client().address == "analytics.example:7000"
    monkeypatch.delenv("MIDCOURSE_ANALYTICS")
    assert Client().address == "127.0.0.1:50052"
    assert Client("127.0.0.1:1").address == "127.0.0.1:1"
