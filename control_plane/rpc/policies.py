"""Who may call which method of the control plane."""

from __future__ import annotations

from typing import Final

from control_plane.domain.access import EVERYTHING, Role, Scope, scope_of
from grpc_runtime.auth import current_call, current_principal
from grpc_runtime.policy import ANY_CALLER, Policy

_READ: Final = frozenset({Role.VIEWER, Role.OPERATOR})
_CHANGE: Final = frozenset({Role.OPERATOR})
_ADMIN: Final = frozenset({Role.ADMIN})

_CONTROL: Final = {
    "CreateJob": _CHANGE,
    "GetJob": _READ,
    "ListJobs": _READ,
    "UpdateJob": _CHANGE,
    "DeleteJob": _CHANGE,
    "WatchJobs": _READ,
    "UpdateParameters": _CHANGE,
    "GetUpdate": _READ,
    "ListUpdates": _READ,
    "WaitUpdate": _READ,
    "CancelUpdate": _CHANGE,
    "BatchUpdateParameters": _CHANGE,
    "GetBatch": _READ,
    "ListBatches": _READ,
    "WatchBatch": _READ,
    "CancelBatch": _CHANGE,
    "QueryMetrics": _READ,
}
_ACCESS: Final = {
    "GetCaller": ANY_CALLER,
    "CreateToken": _ADMIN,
    "ListTokens": _ADMIN,
    "RevokeToken": _ADMIN,
    "ListAuditRecords": _ADMIN,
}
_AGENT: Final = {"Session": frozenset({Role.AGENT})}

POLICY: Final = Policy(
    {
        **{f"/midcourse.control.v1.ControlPlaneService/{k}": v for k, v in _CONTROL.items()},
        **{f"/midcourse.control.v1.AccessService/{k}": v for k, v in _ACCESS.items()},
        **{f"/midcourse.agent.v1.AgentService/{k}": v for k, v in _AGENT.items()},
    }
)
"""Of a method, the roles that may call it, beside administrators, who may call all of them.

With which jobs is not said here: what a caller may not touch is not there for it (see
`control_plane.services.scoped`).
"""

WATCHES: Final = frozenset(
    f"/midcourse.control.v1.ControlPlaneService/{name}"
    for name in ("WatchJobs", "WatchBatch", "WaitUpdate")
)
"""Methods whose calls stay open for as long as the caller likes."""


def scope_now() -> Scope:
    """The jobs that the caller being served may touch; everything, where none is being served."""
    call = current_call()
    if call is None:
        return EVERYTHING
    return scope_of(call.principal.selector, call.principal.only)


def name_now() -> str:
    """The name of the caller being served.

    Raises:
        LookupError: None is.
    """
    return current_principal().name
