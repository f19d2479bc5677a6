"""Whether a job takes an update: all the rules in one place, for one job and for many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from control_plane.domain.change_rules import check_changes
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job, check_accepts_updates, check_action
from control_plane.domain.parameter import Value
from control_plane.domain.update import UpdateSpec, check_spec


@dataclass(frozen=True, slots=True)
class Standing:
    """What an update of a job is judged by, beside the job itself.

    Attributes:
        in_force: Newest known values, by (parameter, group).
        steps_done: Optimizer steps done; None: unknown.
        open_updates: Updates that are not in force yet.
    """

    in_force: Mapping[tuple[str, str], Value]
    steps_done: int | None
    open_updates: int


def check_acceptable(
    spec: UpdateSpec,
    job: Job,
    standing: Standing,
    *,
    author: str,
    now: datetime,
    max_open: int,
) -> None:
    """Refuses an update that a job does not take.

    Args:
        spec: What is asked for.
        job: Of whom.
        standing: How things are there.
        author: Who asks.
        now: The server's time.
        max_open: Most updates of a job that may be pending or delivered.

    Raises:
        Refusal: Saying which rule was broken.
    """
    check_spec(spec, now=now, steps_done=standing.steps_done)
    check_accepts_updates(job)
    check_changes(
        spec.changes,
        job.parameters,
        in_force=standing.in_force,
        principal=author,
        force=spec.force,
    )
    if spec.action is not None:
        check_action(job, spec.action.kind)
    if standing.open_updates >= max_open:
        raise Refusal(
            Reason.TOO_MANY_PENDING,
            f"job {job.id!r} has {max_open} updates that are not in force yet, the "
            "most allowed; wait for some, or cancel some",
            metadata={"limit": str(max_open)},
            retry_delay=1.0,
        )
