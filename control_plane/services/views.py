"""What callers see of a job: its durable state together with its newest telemetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control_plane.domain.errors import Reason, Refusal

if TYPE_CHECKING:
    from control_plane.domain.job import Job, MetricPoint, Progress
    from control_plane.domain.update import Update
    from control_plane.services.ports import Transaction


@dataclass(frozen=True, slots=True)
class JobView:
    """A job, its telemetry and its newest update.

    Attributes:
        job: Durable state; `session` has the newest known times in it.
        progress: How far training has come; None: unknown.
        metrics: The newest value of each metric.
        dropped_samples: Samples lost on the way here.
        last_update: The newest update, or None.
    """

    job: Job
    progress: Progress | None
    metrics: tuple[MetricPoint, ...]
    dropped_samples: int
    last_update: Update | None

    def labels(self) -> dict[str, str]:
        """What selectors see: the labels, and beneath them job, method and state."""
        job = self.job
        return {"job": job.id, "method": job.method, "state": job.state.value, **job.labels}


def need_job(tx: Transaction, job_id: str) -> Job:
    """The job.

    Raises:
        Refusal: JOB_NOT_FOUND.
    """
    job = tx.job(job_id)
    if job is None:
        raise Refusal(
            Reason.JOB_NOT_FOUND,
            f"there is no job {job_id!r}; list the jobs to see their names",
            metadata={"job": job_id},
        )
    return job


def need_update(tx: Transaction, job: Job, revision: int) -> Update:
    """The update.

    Raises:
        Refusal: UPDATE_NOT_FOUND.
    """
    update = tx.update(job, revision)
    if update is None:
        raise Refusal(
            Reason.UPDATE_NOT_FOUND,
            f"job {job.id!r} has no revision {revision}; its newest is {job.revision}",
            metadata={"job": job.id, "newest_revision": str(job.revision)},
        )
    return update
