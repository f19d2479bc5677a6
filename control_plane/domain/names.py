"""Resource names: jobs/{job}, jobs/{job}/updates/{revision} and batches/{batch}."""

from __future__ import annotations

import re

from control_plane.domain.errors import invalid
from control_plane.domain.job import check_job_id

_BATCH = re.compile(r"batches/([1-9][0-9]{0,17})")
_UPDATE = re.compile(r"jobs/([^/]*)/updates/([0-9]{1,18})")


def job_name(job_id: str) -> str:
    """The resource name of a job."""
    return f"jobs/{job_id}"


def update_name(job_id: str, revision: int) -> str:
    """The resource name of an update."""
    return f"jobs/{job_id}/updates/{revision}"


def parse_job(name: str, field: str) -> str:
    """The job's id.

    Raises:
        Refusal: INVALID_ARGUMENT, naming the field and the form.
    """
    prefix, _, job_id = name.partition("/")
    if prefix != "jobs" or not job_id or "/" in job_id:
        raise invalid(field, f"got {name[:120]!r}, allowed: jobs/{{job}}")
    check_job_id(job_id, field)
    return job_id


def parse_update(name: str, field: str) -> tuple[str, int]:
    """The job's id and the revision.

    Raises:
        Refusal: INVALID_ARGUMENT, naming the field and the form.
    """
    match = _UPDATE.fullmatch(name)
    if match is None:
        raise invalid(field, f"got {name[:120]!r}, allowed: jobs/{{job}}/updates/{{revision}}")
    check_job_id(match.group(1), field)
    return match.group(1), int(match.group(2))


def batch_name(key: int) -> str:
    """The resource name of a batch."""
    return f"batches/{key}"


def parse_batch(name: str, field: str) -> int:
    """The number of a batch.

    Raises:
        Refusal: INVALID_ARGUMENT, naming the field and the form.
    """
    match = _BATCH.fullmatch(name)
    if match is None:
        raise invalid(field, f"got {name[:120]!r}, allowed: batches/{{batch}}")
    return int(match.group(1))
