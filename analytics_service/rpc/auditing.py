"""What the record says of a call: for each request that changes something, how to put it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from grpc_runtime.audit.recording import Recorder
from grpc_runtime.audit.records import Asked
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import usage_pb2

_MOST_LISTED: Final = 20


def _create_session(request: pb.CreateSessionRequest) -> Asked:
    return Asked("sessions", _with_model("create", request.model_id))


def _update_session(request: pb.UpdateSessionRequest) -> Asked:
    fields = request.update_mask.paths or [field.name for field, _ in request.session.ListFields()]
    changed = [field for field in fields if field not in ("name", "etag")][:_MOST_LISTED]
    return Asked(request.session.name, f"change {', '.join(changed)}")


def _delete_session(request: pb.DeleteSessionRequest) -> Asked:
    return Asked(request.name, "delete")


def _chat(request: pb.ChatRequest) -> Asked:
    # Not the question itself: it is with the session, for as long as that is kept.
    asked = f"ask, {len(request.content)} characters"
    jobs = f", about {', '.join(request.jobs[:_MOST_LISTED])}" if request.jobs else ""
    return Asked(request.session or "sessions", _with_model(asked, request.model_id) + jobs)


def _cancel_chat(request: pb.CancelChatRequest) -> Asked:
    return Asked(request.name, "cancel")


def _set_budget(request: pb.SetBudgetRequest) -> Asked:
    who = request.principal or "everybody"
    what = request.model_id or "all models"
    limit = f"{request.limit} USD" if request.HasField("limit") else "no limit"
    span = str(request.period)
    if request.period in usage_pb2.BudgetPeriod.values():
        name = usage_pb2.BudgetPeriod.Name(request.period)
        span = name.removeprefix("BUDGET_PERIOD_").lower()
    return Asked("budgets", f"{limit} per {span} for {who} on {what}")


def _with_model(asked: str, model: str) -> str:
    return f"{asked}, of {model}" if model else asked


CHANGES: Final[dict[type[Any], Callable[[Any], Asked]]] = {
    pb.CreateSessionRequest: _create_session,
    pb.UpdateSessionRequest: _update_session,
    pb.DeleteSessionRequest: _delete_session,
    pb.ChatRequest: _chat,
    pb.CancelChatRequest: _cancel_chat,
    pb.SetBudgetRequest: _set_budget,
}
"""Of each request that changes something, what it asks for."""

RECORDER: Final = Recorder(CHANGES)
"""Finds out what to record of calls."""
