"""Whether a job takes an update: all the rules in one place, for one job and for many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from control_plane.domain.change_rules import check_changes
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job, check_accepts_updates, check_action
from control_plane.domain.parameter import ParameterSpec, Value
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


class ChangesThatPassed:
    """Remembers of one update with which capabilities and values its changes are allowed.

    Most jobs of a fleet offer the same, and need not be looked at one by one.
    """

    def __init__(self) -> None:
        """Begins with none."""
        # By the identity of the capabilities, which lasts as long as they are held here.
        self._known: dict[object, tuple[ParameterSpec, ...]] = {}

    def check(self, spec: UpdateSpec, job: Job, standing: Standing, author: str) -> None:
        """Refuses changes that the job's declared capabilities do not allow.

        Args:
            spec: What is asked for; always the same.
            job: Of whom.
            standing: How things are there.
            author: Who asks; always the same.

        Raises:
            Refusal: See `check_changes`.
        """
        like_this = (id(job.parameters), tuple(standing.in_force.items()))
        if like_this not in self._known:
            check_changes(
                spec.changes,
                job.parameters,
                in_force=standing.in_force,
                principal=author,
                force=spec.force,
            )
            self._known[like_this] = job.parameters


def check_acceptable(
    spec: UpdateSpec,
    job: Job,
    standing: Standing,
    *,
    author: str,
    now: datetime,
    max_open: int,
    passed: ChangesThatPassed | None = None,
) -> None:
    """Refuses an update that a job does not take.

    Args:
        spec: What is asked for.
        job: Of whom.
        standing: How things are there.
        author: Who asks.
        now: The server's time.
        max_open: Most updates of a job that may be pending or delivered.
        passed: What is known from other jobs of the same update.

    Raises:
        Refusal: Saying which rule was broken.
    """
    check_spec(spec, now=now, steps_done=standing.steps_done)
    check_accepts_updates(job)
    (passed or ChangesThatPassed()).check(spec, job, standing, author)
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
