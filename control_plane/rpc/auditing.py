"""What the record says of a call: for each request that changes something, how to put it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from control_plane import wording
from control_plane.domain.names import job_name
from grpc_runtime.audit.recording import Recorder
from grpc_runtime.audit.records import Asked
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import access_pb2, control_pb2, update_pb2

# Long before it is cut: so many are not read by anybody.
_MOST_LISTED: Final = 20


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


RECORDER: Final = Recorder(CHANGES, streams=[session_pb2.SessionRequest])
"""Finds out what to record of calls."""


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
