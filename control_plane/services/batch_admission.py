"""Which jobs a batch is for, and which of them take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control_plane.domain import batch as rules
from control_plane.domain.acceptance import ChangesThatPassed, check_acceptable
from control_plane.domain.batch import BatchItem, JobRefusal, expected_transitions
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState
from control_plane.services.views import job_not_found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from control_plane.domain.job import Job
    from control_plane.domain.selector import Selector
    from control_plane.domain.update import UpdateSpec
    from control_plane.services.ports import Transaction
    from control_plane.services.telemetry import TelemetryHub

_NOT_ENDED = frozenset(JobState) - rules.ENDED
_LOOKED_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class BatchSubmission:
    """A caller's request for a batch; see `BatchUpdateParametersRequest`.

    Attributes:
        selector: Which jobs; without requirements: those of `jobs`.
        jobs: Ids.
    """

    selector: Selector
    jobs: tuple[str, ...]
    spec: UpdateSpec
    author: str
    request_id: str = ""
    best_effort: bool = False
    validate_only: bool = False
    trace_parent: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """Who takes an update.

    Attributes:
        admitted: Jobs that do.
        refusals: Why others do not, by job id.
        items: What it would do at each of them all, in the order of their ids.
    """

    admitted: Sequence[Job]
    refusals: Mapping[str, JobRefusal]
    items: Sequence[BatchItem]


def chosen(tx: Transaction, selector: Selector) -> list[str]:
    """Ids of the jobs that a selector means, as far as a look without locks can tell."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        chunk = tx.selectable_jobs(after=after, limit=_LOOKED_AT_ONCE, states=_NOT_ENDED)
        found += [job_id for job_id, labels in chunk if selector.matches(labels)]
        after = chunk.beyond
    return found


def judge(
    tx: Transaction,
    ids: Sequence[str],
    asked: BatchSubmission,
    telemetry: TelemetryHub,
    *,
    now: datetime,
    max_open: int,
) -> Judged:
    """Which jobs take the update.

    Args:
        tx: Has the jobs, and keeps them from others until its end.
        ids: Of the jobs that were chosen; they may have changed since.
        asked: What of them.
        telemetry: Tells how far they have come, and what is in force there.
        now: The server's time.
        max_open: Most updates of a job that may be pending or delivered.

    Raises:
        Refusal: If it is for nobody, or not for all and they were to take it together.
    """
    jobs = [job for job in tx.jobs_named(ids) if _is_meant(job, asked)]
    refusals = {job_id: job_not_found(job_id) for job_id in asked.jobs}
    admitted: list[Job] = []
    items: dict[str, BatchItem] = {}
    standings = telemetry.standings(tx, jobs)
    passed = ChangesThatPassed()
    for job in jobs:
        standing = standings[job.key]
        refusals.pop(job.id, None)
        try:
            check_acceptable(
                asked.spec,
                job,
                standing,
                author=asked.author,
                now=now,
                max_open=max_open,
                passed=passed,
            )
        except Refusal as refusal:
            refusals[job.id] = refusal
            continue
        admitted.append(job)
        expected = expected_transitions(asked.spec, job, standing.in_force)
        items[job.id] = BatchItem(job.id, transitions=expected)
    total = len(admitted) + len(refusals)
    if not total:
        raise _nobody(asked)
    if refusals and not (asked.best_effort and admitted):
        raise rules.not_admitted(refusals, total, best_effort=asked.best_effort)
    whys = {job_id: JobRefusal(why.reason, why.message) for job_id, why in refusals.items()}
    items |= {job_id: BatchItem(job_id, refusal=why) for job_id, why in whys.items()}
    return Judged(admitted, whys, [items[job_id] for job_id in sorted(items)])


def _is_meant(job: Job, asked: BatchSubmission) -> bool:
    """Whether a batch is for a job: it may have changed since it was chosen."""
    if asked.jobs:
        return True
    return job.state not in rules.ENDED and asked.selector.matches(job.selectable())


def _nobody(asked: BatchSubmission) -> Refusal:
    return Refusal(
        Reason.JOB_NOT_SELECTED,
        f"selector: {asked.selector} chooses no job that has not ended; list the jobs to see "
        "their labels",
        metadata={"selector": str(asked.selector)},
    )
