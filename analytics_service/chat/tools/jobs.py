"""Reads jobs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from analytics_service.chat.conversation import Citation
from analytics_service.chat.fence import LABEL_LENGTH, NAME_LENGTH, TEXT_LENGTH, clipped
from analytics_service.chat.tools.arguments import GetJobArguments, ListJobsArguments
from analytics_service.chat.tools.tool import Reading, Tool
from analytics_service.chat.tools.updates import rendered_update
from analytics_service.chat.tools.values import number, time_of, value_of, without_absent
from control_plane.client import Client, job_id
from midcourse.control.v1 import job_pb2, parameter_pb2

MAX_LABELS: Final = 20
MAX_METRIC_NAMES: Final = 60
MAX_PARAMETERS: Final = 30


def list_jobs(client: Client, arguments: ListJobsArguments) -> Reading:
    """Lists jobs in the order of their ids."""
    states = [job_pb2.JobState.Value(f"JOB_STATE_{each.upper()}") for each in arguments.states]
    limit = arguments.limit
    # One more than wanted tells whether there are more.
    found = client.list_jobs(arguments.selector, states=states, page_size=limit + 1)
    jobs = list(islice(found, limit + 1))
    result = {"jobs": [_in_short(each) for each in jobs[:limit]], "more": len(jobs) > limit}
    return Reading(result, tuple(Citation(job_id(each.name), "job") for each in jobs[:limit]))


def get_job(client: Client, arguments: GetJobArguments) -> Reading:
    """Reads a job."""
    job = client.get_job(arguments.job)
    return Reading(_in_full(job), (Citation(job_id(job.name), "job"),))


def last_active(job: job_pb2.Job) -> datetime:
    """When a job was last heard of."""
    times = [job.create_time, job.update_time, job.session.last_seen_time]
    return max(time.ToDatetime(UTC) for time in times)


def _in_short(job: job_pb2.Job) -> dict[str, Any]:
    return without_absent(
        {
            "job": job_id(job.name),
            "state": job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower(),
            "state_message": clipped(job.state_message, TEXT_LENGTH),
            "method": clipped(job.method, NAME_LENGTH),
            **_progress(job),
            **_labels(job.labels),
            "newest_revision": number(job.desired.revision),
            "last_active": last_active(job).isoformat().replace("+00:00", "Z"),
        }
    )


def _in_full(job: job_pb2.Job) -> dict[str, Any]:
    metrics = list(job.metrics)[:MAX_METRIC_NAMES]
    in_force: dict[str, list[dict[str, Any]]] = {}
    for each in job.effective.parameters:
        in_force.setdefault(each.parameter, []).append(
            without_absent(
                {
                    "group": clipped(each.group, NAME_LENGTH),
                    "value": value_of(each.value),
                    "since_step": number(each.step),
                    "by_revision": number(each.revision),
                }
            )
        )
    parameters = [_parameter(each, in_force) for each in job.parameters[:MAX_PARAMETERS]]
    last_update = rendered_update(job.last_update) if job.HasField("last_update") else None
    return without_absent(
        {
            **_in_short(job),
            "created": time_of(job.create_time),
            "parameters": parameters,
            "parameters_left_out": len(job.parameters) - len(parameters) or None,
            "metrics": [
                {
                    "metric": clipped(each.name, NAME_LENGTH),
                    "step": number(each.step),
                    "value": number(each.value),
                }
                for each in metrics
            ],
            "metrics_left_out": len(job.metrics) - len(metrics) or None,
            "dropped_samples": number(job.dropped_samples) or None,
            "trainer_connected": job.session.connected if job.HasField("session") else None,
            "trainer_exit": _exit(job.exit) if job.HasField("exit") else None,
            "last_update": last_update,
        }
    )


def _progress(job: job_pb2.Job) -> dict[str, Any]:
    if not job.HasField("progress"):
        return {}
    of = job.progress
    return {
        "step": number(of.step),
        "max_steps": number(of.max_steps) if of.HasField("max_steps") else None,
        "epoch": number(of.epoch) if of.HasField("epoch") else None,
        "max_epochs": number(of.max_epochs) if of.HasField("max_epochs") else None,
        "steps_per_second": number(of.steps_per_second)
        if of.HasField("steps_per_second")
        else None,
        "step_time": time_of(of.step_time) if of.HasField("step_time") else None,
    }


def _labels(labels: Mapping[str, str]) -> dict[str, Any]:
    kept = sorted(labels.items())[:MAX_LABELS]
    return {
        "labels": {clipped(k, LABEL_LENGTH): clipped(v, LABEL_LENGTH) for k, v in kept},
        "labels_left_out": len(labels) - len(kept) or None,
    }


def _exit(of: job_pb2.TrainerExit) -> dict[str, Any]:
    return without_absent(
        {
            "exit_code": of.exit_code if of.HasField("exit_code") else None,
            "signal": of.signal if of.HasField("signal") else None,
            "message": clipped(of.message, TEXT_LENGTH),
            "time": time_of(of.time) if of.HasField("time") else None,
        }
    )


def _parameter(
    spec: parameter_pb2.ParameterSpec, in_force: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    rails = spec.guard_rails
    operations = [
        parameter_pb2.Operation.Name(each).removeprefix("OPERATION_").lower()
        for each in spec.operations
    ]
    declared = value_of(spec.current_value)
    return without_absent(
        {
            "parameter": clipped(spec.name, NAME_LENGTH),
            "in_force": in_force.get(spec.name)
            or ([{"value": declared}] if declared is not None else None),
            "unit": clipped(spec.unit, NAME_LENGTH),
            "bounds": _bounds(spec.bounds),
            "soft_bounds": _bounds(rails.bounds),
            "max_relative_change": number(rails.max_relative_change)
            if rails.HasField("max_relative_change")
            else None,
            "frozen": rails.frozen or None,
            "only_for": [clipped(p, NAME_LENGTH) for p in rails.allowed_principals[:10]],
            "changes_at": parameter_pb2.Boundary.Name(spec.boundary)
            .removeprefix("BOUNDARY_")
            .lower(),
            "operations": operations,
            "groups": [clipped(each, NAME_LENGTH) for each in spec.groups[:10]],
            "unavailable_reason": clipped(spec.unavailable_reason, TEXT_LENGTH),
        }
    )


def _bounds(of: parameter_pb2.Bounds) -> dict[str, Any]:
    return without_absent(
        {
            "minimum": number(of.minimum) if of.HasField("minimum") else None,
            "minimum_exclusive": of.minimum_exclusive or None,
            "maximum": number(of.maximum) if of.HasField("maximum") else None,
            "maximum_exclusive": of.maximum_exclusive or None,
            "allowed": [clipped(each, NAME_LENGTH) for each in of.allowed_texts[:20]],
        }
    )


LIST_JOBS: Final = Tool(
    "list_jobs",
    "Lists training jobs in the order of their ids, with state, step, labels and when each was "
    "last active. Use it to find out which jobs there are.",
    ListJobsArguments,
    list_jobs,
)

GET_JOB: Final = Tool(
    "get_job",
    "Reads one training job: state, step, labels, the live parameters with the value in force, "
    "the bounds and the operations that each allows, names and newest values of its metrics, the "
    "newest update, and how the trainer ended if it has.",
    GetJobArguments,
    get_job,
)
