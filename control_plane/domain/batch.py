"""One change for many jobs: what a batch is, and what becomes of it at each job. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from control_plane.domain.change_effects import LEARNING_RATE, coupled_factor, moves
from control_plane.domain.errors import Reason, Refusal, Violation, invalid
from control_plane.domain.job import Job, JobState
from control_plane.domain.names import job_name
from control_plane.domain.parameter import (
    Change,
    Coupling,
    Kind,
    MultiplyChange,
    ParameterSpec,
    SetChange,
    Value,
)
from control_plane.domain.update import (
    OPEN_STATES,
    Applied,
    Cancelled,
    Expired,
    Rejected,
    Transition,
    Update,
    UpdateSpec,
    UpdateState,
    fingerprint,
)

MAX_JOBS = 10_000
NAMED_IN_ERRORS = 20
"""Refused jobs that an error names; of the others it tells the number."""

ENDED = frozenset({JobState.FINISHED, JobState.FAILED})
"""Jobs in these states are not chosen by a selector."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One update each for many jobs. See `midcourse.control.v1.Batch` for the fields.

    Attributes:
        key: The store's own number, and the {batch} of its name; 0 until stored.
        digest: Of everything that makes one request differ from another.
        total: Jobs that were chosen.
        refused: Jobs among them that have no update, as it was not valid there.
        ended: How many updates ended in which state, as counted once none was open; None: not
            counted yet.
    """

    spec: UpdateSpec
    selector: str
    best_effort: bool
    author: str
    request_id: str
    digest: str
    create_time: datetime
    total: int = 0
    refused: int = 0
    ended: Mapping[UpdateState, int] | None = None
    key: int = 0


@dataclass(frozen=True, slots=True)
class JobRefusal:
    """Why a job has no update, or why it is not in force."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class BatchItem:
    """What becomes of a batch at one job. See `midcourse.control.v1.BatchItem`.

    None and empty: there is none, or it is unknown.
    """

    job_id: str
    revision: int | None = None
    state: UpdateState | None = None
    transitions: tuple[Transition, ...] = ()
    step: int | None = None
    refusal: JobRefusal | None = None

    @property
    def is_open(self) -> bool:
        """Whether its update can still be applied."""
        return self.state in OPEN_STATES


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Jobs by what became of their update; those that were deleted since are in `total` alone."""

    total: int
    refused: int
    states: Mapping[UpdateState, int]

    @property
    def open(self) -> int:
        """Updates that can still be applied."""
        return sum(self.states.get(state, 0) for state in OPEN_STATES)


def check_targets(selector: str, jobs: Sequence[str]) -> None:
    """Refuses a choice of jobs that is none, too large or says something twice.

    Raises:
        Refusal: Naming the field.
    """
    if bool(selector.strip()) == bool(jobs):
        got = "both" if jobs else "neither"
        raise invalid(
            "selector",
            f"got {got} selector and jobs, allowed: one of them; the selector 'job' chooses all",
        )
    if len(jobs) > MAX_JOBS:
        raise invalid("jobs", f"got {len(jobs)}, at most {MAX_JOBS}; send several batches")
    seen: set[str] = set()
    for index, job_id in enumerate(jobs):
        if job_id in seen:
            raise invalid(f"jobs[{index}]", f"got {job_name(job_id)} twice; name each job once")
        seen.add(job_id)


def digest_of(spec: UpdateSpec, selector: str, jobs: Iterable[str], *, best_effort: bool) -> str:
    """A digest of everything that makes one request differ from another."""
    content = (fingerprint(spec), selector, sorted(jobs), best_effort)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def check_same(existing: Batch, digest: str) -> None:
    """Refuses a request id that was used for something else.

    Raises:
        Refusal: REQUEST_ID_REUSED.
    """
    if existing.digest != digest:
        raise Refusal(
            Reason.REQUEST_ID_REUSED,
            f"request_id {existing.request_id!r} was used for batches/{existing.key} with other "
            "content; use a new request_id for a new request",
            metadata={"batch": f"batches/{existing.key}"},
        )


def not_admitted(refusals: Mapping[str, Refusal], total: int, *, best_effort: bool) -> Refusal:
    """Why nothing was sent to anybody: one refusal out of those of the jobs.

    Its reason is theirs where they have all the same one.

    Args:
        refusals: Why, by job id; at least one.
        total: Jobs that were chosen.
        best_effort: Whether what is valid would have been sent.
    """
    reasons = {refusal.reason for refusal in refusals.values()}
    reason = reasons.pop() if len(reasons) == 1 else Reason.BATCH_REFUSED
    named = sorted(refusals)[:NAMED_IN_ERRORS]
    violations = [Violation(job_name(job_id), refusals[job_id].message) for job_id in named]
    more = len(refusals) - len(named)
    if more:
        violations.append(Violation("jobs", f"and {more} more"))
    first = f"{job_name(named[0])}: {refusals[named[0]].message}"
    some_take_it = len(refusals) < total and not best_effort
    advice = "; best_effort leaves those out that do not take it" if some_take_it else ""
    return Refusal(
        reason,
        f"nothing was sent: {len(refusals)} of {total} jobs do not take it{advice}; {first}",
        violations=violations,
        metadata={"refused": str(len(refusals)), "total": str(total)},
        retry_delay=max((r.retry_delay or 0.0 for r in refusals.values()), default=0.0) or None,
    )


def item_of(update: Update, expected: tuple[Transition, ...] = ()) -> BatchItem:
    """What has become of a batch at the job of an update.

    Args:
        update: The job's update.
        expected: What it would change, while it is open.
    """
    transitions: tuple[Transition, ...] = ()
    step: int | None = None
    refusal: JobRefusal | None = None
    match update.outcome:
        case None:
            transitions = expected
        case Applied():
            transitions = update.outcome.transitions
            # Step 0 stands for one that nobody knows.
            step = update.outcome.step or None
        case Rejected(reason=reason, message=message):
            refusal = JobRefusal(reason, message)
        case Expired(cause=cause, message=message):
            refusal = JobRefusal(cause.upper(), message)
        case Cancelled():
            pass
    return BatchItem(update.job_id, update.revision, update.state, transitions, step, refusal)


def expected_transitions(
    spec: UpdateSpec, job: Job, in_force: Mapping[tuple[str, str], Value]
) -> tuple[Transition, ...]:
    """What an update would change, as far as it follows from the values in force.

    Each change sees what those before it did. A value that does not follow is None: that of a
    schedule, of a ramp's first step, of a product with something unknown, also with a batch size
    that another one has moved.
    """
    specs = {known.name: known for known in job.parameters}
    found: dict[tuple[str, str], Transition] = {}
    now = dict(in_force)

    def note(key: tuple[str, str], new: Value | None) -> None:
        found[key] = Transition(*key, in_force.get(key), new)
        for moved in [other for other in now if moves(key, other)]:
            del now[moved]
        if new is not None:
            now[key] = new

    for change in spec.changes:
        key = (change.parameter, change.group)
        coupled = isinstance(change, SetChange) and change.coupling is not Coupling.NONE
        factor = coupled_factor(change, now) if isinstance(change, SetChange) and coupled else None
        note(key, _expected(change, now.get(key), specs.get(change.parameter)))
        if coupled:
            rate = (LEARNING_RATE, "")
            note(rate, _scaled(now.get(rate), factor))
    return tuple(found.values())


def _expected(change: Change, old: Value | None, spec: ParameterSpec | None) -> Value | None:
    match change:
        case SetChange(mode="set" | "hold"):
            return change.value
        case MultiplyChange() if spec is not None and spec.kind is Kind.NUMBER:
            return _scaled(old, change.factor)
        case _:
            return None


def _scaled(value: Value | None, factor: float | None) -> float | None:
    if value is None or factor is None or isinstance(value, bool | str):
        return None
    return value * factor
