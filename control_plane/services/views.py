"""What callers see of a job: its durable state together with its newest telemetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.names import batch_name

if TYPE_CHECKING:
    from control_plane.domain.batch import Batch
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


def need_job(tx: Transaction, job_id: str) -> Job:
    """The job.

    Raises:
        Refusal: JOB_NOT_FOUND.
    """
    job = tx.job(job_id)
    if job is None:
        raise job_not_found(job_id)
    return job


def job_not_found(job_id: str) -> Refusal:
    """The refusal for a job that there is none of."""
    return Refusal(
        Reason.JOB_NOT_FOUND,
        f"there is no job {job_id!r}; list the jobs to see their names",
        metadata={"job": job_id},
    )


def need_batch(tx: Transaction, key: int) -> Batch:
    """The batch.

    Raises:
        Refusal: BATCH_NOT_FOUND.
    """
    batch = tx.batch(key)
    if batch is None:
        raise Refusal(
            Reason.BATCH_NOT_FOUND,
            f"there is no {batch_name(key)}; list the batches to see their names",
            metadata={"batch": batch_name(key)},
        )
    return batch


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
