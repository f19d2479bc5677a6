"""What the record says of a call: for each request that changes something, how to put it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import grpc

from control_plane import wording
from control_plane.domain.audit import Asked, AuditRecord
from control_plane.domain.names import job_name
from control_plane.services.audit import AuditLog, Entry
from grpc_runtime.auth import current_call
from grpc_runtime.bearer import hide_secrets
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import access_pb2, control_pb2, update_pb2

if TYPE_CHECKING:
    from grpc_runtime.auth import Kept
    from grpc_runtime.observing import FinishedCall

_KEPT: Final = "audit"
_REFUSED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_NAMING_FIELDS: Final = ("name", "job", "parent")
# Long before it is cut: so many are not read by anybody.
_MOST_LISTED: Final = 20
_LATER: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _update_parameters(request: control_pb2.UpdateParametersRequest) -> Asked:
    return Asked(request.job, _spec(request.spec), request.spec.reason)


def _batch_update(request: control_pb2.BatchUpdateParametersRequest) -> Asked:
    where = f"jobs with {request.selector}" if request.selector else _listed(request.jobs)
    best_effort = ", where it is valid" if request.best_effort else ""
    summary = f"{_spec(request.spec)}, for {where}{best_effort}"
    return Asked("batches", summary, request.spec.reason)


def _cancel(request: control_pb2.CancelUpdateRequest | control_pb2.CancelBatchRequest) -> Asked:
    return Asked(request.name, "cancel", request.reason)


def _create_job(request: control_pb2.CreateJobRequest) -> Asked:
    parts = [f"method {request.method}"] if request.method else []
    parts += [f"labels {_labels(request.labels.items())}"] if request.labels else []
    return Asked(job_name(request.job_id), ", ".join(["create", *parts]))


def _update_job(request: control_pb2.UpdateJobRequest) -> Asked:
    parts = [f"set labels {_labels(request.set_labels.items())}"] if request.set_labels else []
    parts += [f"remove labels {_listed(request.remove_labels)}"] if request.remove_labels else []
    return Asked(request.name, ", ".join(parts))


def _delete_job(request: control_pb2.DeleteJobRequest) -> Asked:
    return Asked(request.name, "delete")


def _create_token(request: access_pb2.CreateTokenRequest) -> Asked:
    access = request.access
    role = str(access.role)
    if access.role in access_pb2.Role.values():
        role = access_pb2.Role.Name(access.role).removeprefix("ROLE_").lower()
    jobs = f" {_listed(access.jobs)}" if access.jobs else ""
    labels = f" with {access.selector}" if access.selector else ""
    where = f"jobs{jobs}{labels}" if jobs or labels else "all jobs"
    return Asked("tokens", f"for {request.principal}: {role}, {where}", request.description)


def _revoke_token(request: access_pb2.RevokeTokenRequest) -> Asked:
    return Asked(request.name, "revoke")


def _session(request: session_pb2.SessionRequest) -> Asked:
    hello = request.hello
    where = f" on {hello.host}" if hello.host else ""
    return Asked(job_name(hello.job_id), f"session of process {hello.instance_id}{where}")


CHANGES: Final[dict[type[Any], Callable[[Any], Asked]]] = {
    control_pb2.UpdateParametersRequest: _update_parameters,
    control_pb2.BatchUpdateParametersRequest: _batch_update,
    control_pb2.CancelUpdateRequest: _cancel,
    control_pb2.CancelBatchRequest: _cancel,
    control_pb2.CreateJobRequest: _create_job,
    control_pb2.UpdateJobRequest: _update_job,
    control_pb2.DeleteJobRequest: _delete_job,
    access_pb2.CreateTokenRequest: _create_token,
    access_pb2.RevokeTokenRequest: _revoke_token,
    session_pb2.SessionRequest: _session,
}
"""Of each request that changes something, what it asks for."""


def entry_now() -> Entry | None:
    """What is to be recorded of the call that is being served; None: it changes nothing."""
    call = current_call()
    if call is None:
        return None
    others = call.kept.others
    if _KEPT not in others:
        asked = _asked(call.kept.request)
        others[_KEPT] = None
        if asked is not None:
            others[_KEPT] = Entry(
                _record(
                    call.principal.name,
                    call.peer,
                    call.method,
                    asked,
                    grpc.StatusCode.OK,
                    "",
                    call.request_id,
                )
            )
    entry: Entry | None = others[_KEPT]
    return entry


class RefusedCalls:
    """Has calls recorded that were refused, and changes that did not come about."""

    def __init__(self, log: AuditLog) -> None:
        """Takes the use case."""
        self._log = log

    def __call__(self, call: FinishedCall) -> None:
        """Is told of every call when it has ended."""
        asked = None if _is_recorded(call.kept) else _asked(call.request)
        is_change = asked is not None and not isinstance(call.request, session_pb2.SessionRequest)
        if call.code not in _REFUSED and not is_change:
            return
        record = _record(
            "" if call.principal is None else call.principal.name,
            call.peer,
            # Else it is whatever the caller has made up.
            call.method if call.known else "",
            asked or _about(call.request),
            call.code,
            call.reason,
            call.request_id,
        )
        self._log.refused(record, asyncio.get_running_loop().time())


def _is_recorded(kept: Kept) -> bool:
    entry: Entry | None = kept.others.get(_KEPT)
    return entry is not None and entry.is_recorded


def _asked(request: Any) -> Asked | None:
    """What a request asks for; None: it changes nothing."""
    describe = CHANGES.get(type(request))
    if describe is None or getattr(request, "validate_only", False):
        return None
    return describe(request)


def _about(request: Any) -> Asked:
    """What a request that changes nothing is about."""
    for field in _NAMING_FIELDS:
        if name := getattr(request, field, ""):
            return Asked(str(name))
    return Asked()


def _record(
    principal: str,
    peer: str,
    method: str,
    asked: Asked,
    code: grpc.StatusCode,
    error_reason: str,
    request_id: str,
) -> AuditRecord:
    return AuditRecord(
        time=_LATER,
        principal=principal,
        peer=peer,
        method=method,
        # By mistake a secret may stand in any of these.
        resource=hide_secrets(asked.resource),
        summary=hide_secrets(asked.summary),
        reason=hide_secrets(asked.reason),
        code=code.name,
        error_reason=error_reason,
        request_id=hide_secrets(request_id),
    )


def _spec(spec: update_pb2.UpdateSpec) -> str:
    parts = [wording.change(change) for change in spec.changes[:_MOST_LISTED]]
    parts += _and_more(len(spec.changes))
    if spec.HasField("action"):
        parts.append(wording.action(spec.action))
    if spec.force:
        parts.append("past soft guard rails")
    return ", ".join(parts)


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    return _listed([f"{key}={value}" for key, value in sorted(labels)])


def _listed(names: Any) -> str:
    return ", ".join([*names[:_MOST_LISTED], *_and_more(len(names))])


def _and_more(count: int) -> list[str]:
    return [f"and {count - _MOST_LISTED} more"] if count > _MOST_LISTED else []
