"""Drafts a change for a person to decide on. It is checked, never submitted."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc

from analytics_service.chat.conversation import Citation, ErrorInfo, ProposalPart
from analytics_service.chat.fence import clipped
from analytics_service.chat.tools.arguments import ChangeArguments, ProposeUpdateArguments
from analytics_service.chat.tools.tool import Reading, Tool
from analytics_service.chat.tools.values import number, operation_of, without_absent
from control_plane import changes
from control_plane.client import (
    Client,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    MidcourseError,
    PermissionDeniedError,
)
from midcourse.control.v1 import control_pb2, update_pb2

_MAX_WHY: Final = 1_000
_DRAFTED_ONLY: Final = (
    "Drafted only: nothing has changed. The person who asks sees the draft and decides whether "
    "to submit it."
)


def propose_update(client: Client, arguments: ProposeUpdateArguments) -> Reading:
    """Drafts an update of a job and has the control plane check it."""
    job = arguments.job
    revision = client.get_job(job).desired.revision
    drafted = [_BUILDERS[each.operation](each) for each in arguments.changes]
    request = _request(arguments, drafted, revision)
    result: dict[str, Any] = {
        "job": job,
        "changes": [operation_of(each) for each in drafted],
        "at_step": arguments.at_step,
        "expected_revision": number(revision),
        "note": _DRAFTED_ONLY,
    }
    validated: update_pb2.Update | None = None
    error: ErrorInfo | None = None
    try:
        validated = client.update_parameters(
            job,
            drafted,
            at_step=arguments.at_step,
            reason=arguments.rationale,
            expected_revision=revision,
            validate_only=True,
        )
        result["valid"] = True
    except PermissionDeniedError as refused:
        # Whoever asks may not change the job; somebody else may, and will find out.
        error = _error_info(refused)
        result |= {"valid": None, "why": f"not checked: {clipped(str(refused), _MAX_WHY)}"}
    except (ConflictError, FailedPreconditionError, InvalidArgumentError) as refused:
        error = _error_info(refused)
        result |= {"valid": False, "why": clipped(str(refused), _MAX_WHY)}
    proposal = ProposalPart(
        request.SerializeToString(deterministic=True),
        None if validated is None else validated.SerializeToString(deterministic=True),
        error,
        arguments.rationale,
    )
    # Whether it is valid is said also where that is not known.
    shown = without_absent(result) | {"valid": result["valid"]}
    return Reading(shown, (Citation(job, "job"),), proposal)


def _request(
    arguments: ProposeUpdateArguments, drafted: list[update_pb2.Change], revision: int
) -> control_pb2.UpdateParametersRequest:
    spec = update_pb2.UpdateSpec(changes=drafted, reason=arguments.rationale)
    if arguments.at_step is not None:
        spec.apply_at.step = arguments.at_step
    return control_pb2.UpdateParametersRequest(
        job=f"jobs/{arguments.job}",
        spec=spec,
        request_id=str(uuid.uuid4()),
        expected_revision=revision,
    )


def _set(of: ChangeArguments) -> update_pb2.Change:
    assert of.value is not None
    return changes.set_value(of.parameter, of.value, group=of.group)


def _peak(of: ChangeArguments) -> update_pb2.Change:
    assert of.value is not None
    return changes.set_value(of.parameter, of.value, mode="peak", group=of.group)


def _hold(of: ChangeArguments) -> update_pb2.Change:
    assert of.value is not None
    return changes.hold(of.parameter, of.value, steps=of.steps, group=of.group)


def _multiply(of: ChangeArguments) -> update_pb2.Change:
    assert of.factor is not None
    return changes.multiply(of.parameter, of.factor, group=of.group)


def _ramp(of: ChangeArguments) -> update_pb2.Change:
    assert of.value is not None
    assert of.steps is not None
    return changes.ramp(of.parameter, of.value, steps=of.steps, group=of.group)


def _schedule(of: ChangeArguments) -> update_pb2.Change:
    assert of.shape is not None
    return changes.schedule(
        of.parameter,
        of.shape,
        peak=of.peak,
        warmup_steps=of.warmup_steps or 0,
        floor=of.floor or 0.0,
        steps=of.steps,
        group=of.group,
    )


def _release(of: ChangeArguments) -> update_pb2.Change:
    return changes.release(of.parameter, group=of.group)


_BUILDERS: Final[Mapping[str, Callable[[ChangeArguments], update_pb2.Change]]] = {
    "set": _set,
    "peak": _peak,
    "hold": _hold,
    "multiply": _multiply,
    "ramp": _ramp,
    "schedule": _schedule,
    "release": _release,
}


def _error_info(error: MidcourseError) -> ErrorInfo:
    code = grpc.StatusCode.UNKNOWN if error.code is None else error.code
    number_of_code: int = code.value[0]
    return ErrorInfo(number_of_code, error.reason, str(error))


PROPOSE_UPDATE: Final = Tool(
    "propose_update",
    "Drafts a change of a job's live parameters and has it checked against the job; it is not "
    "submitted. Use it only where a change is asked for or clearly called for, and read the job "
    "first: it says which parameters, operations and bounds there are. The result says whether "
    "the draft is valid, and if not, why.",
    ProposeUpdateArguments,
    propose_update,
)
