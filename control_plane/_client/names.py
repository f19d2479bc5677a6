"""Resource names."""

from __future__ import annotations

from midcourse.control.v1 import update_pb2


def job_name(job: str) -> str:
    """Returns ``jobs/{job}`` for a job's id or its resource name."""
    return job if job.startswith("jobs/") else f"jobs/{job}"


def update_name(job: str, revision: int) -> str:
    """Returns ``jobs/{job}/updates/{revision}``."""
    return f"{job_name(job)}/updates/{revision}"


def job_id(name: str) -> str:
    """Returns the {job} of ``jobs/{job}`` or ``jobs/{job}/updates/{revision}``."""
    return name.removeprefix("jobs/").partition("/")[0]


def is_settled(update: update_pb2.Update) -> bool:
    """Says whether an update has reached a final state."""
    return update.state in _FINAL


_FINAL = frozenset(
    {
        update_pb2.UPDATE_STATE_APPLIED,
        update_pb2.UPDATE_STATE_REJECTED,
        update_pb2.UPDATE_STATE_EXPIRED,
        update_pb2.UPDATE_STATE_CANCELLED,
    }
)
