"""Who may call which method of the analytics service."""

from __future__ import annotations

from typing import Final

from grpc_runtime.policy import Policy

# To ask is to read: what is asked about is read with the caller's own rights, and an answer changes
# no run, it only drafts what a person may send. What it costs is held in by budgets.
_ASK: Final = frozenset({"viewer", "operator"})
_ADMIN: Final = frozenset({"admin"})

_METHODS: Final = {
    "ListModels": _ASK,
    "CreateSession": _ASK,
    "GetSession": _ASK,
    "ListSessions": _ASK,
    "UpdateSession": _ASK,
    "DeleteSession": _ASK,
    "ListMessages": _ASK,
    "Chat": _ASK,
    "CancelChat": _ASK,
    "GetUsage": _ASK,
    "GetBudget": _ASK,
    "ListBudgets": _ASK,
    "SetBudget": _ADMIN,
    "RecommendModel": _ASK,
    "ListAuditRecords": _ADMIN,
}

POLICY: Final = Policy(
    {f"/midcourse.analytics.v1.AnalyticsService/{name}": who for name, who in _METHODS.items()}
)
"""Of a method, the roles that may call it, beside administrators, who may call all of them.

A session is its owner's; for others it is not there.
"""
