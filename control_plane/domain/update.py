"""An update's life: accepted, delivered, settled; each state change a pure function."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from control_plane.domain.alike import alike
from control_plane.domain.errors import Reason, Refusal, invalid
from control_plane.domain.parameter import Change, Value

MAX_REASON = 1_000
MAX_REQUEST_ID = 128
MAX_CHANGES = 64
MAX_CHECKPOINT = 4_096
GUARD = "guard"
"""Author of what a training process has changed by itself. No caller has this name."""


class UpdateState(StrEnum):
    """Where an update is in its life."""

    PENDING = "pending"
    DELIVERED = "delivered"
    APPLIED = "applied"
    REJECTED = "rejected"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


OPEN_STATES = frozenset({UpdateState.PENDING, UpdateState.DELIVERED})


class ActionKind(StrEnum):
    """Something to do once, at a boundary."""

    PAUSE = "pause"
    RESUME = "resume"
    SAVE_CHECKPOINT = "save_checkpoint"
    EVALUATE = "evaluate"
    STOP = "stop"
    ROLL_BACK = "roll_back"


class ExpiryCause(StrEnum):
    """Why an update expired."""

    DEADLINE = "deadline"
    MAX_STEP = "max_step"
    JOB_ENDED = "job_ended"


@dataclass(frozen=True, slots=True)
class Action:
    """An action; `checkpoint` is for roll back alone (empty: the newest)."""

    kind: ActionKind
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class UpdateSpec:
    """What a caller asks for. Steps are optimizer steps, counted from 1."""

    changes: tuple[Change, ...] = ()
    action: Action | None = None
    at_step: int | None = None
    max_step: int | None = None
    deadline: datetime | None = None
    reason: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """What a training process has changed by itself; see `midcourse.agent.v1.LocalUpdate`."""

    request_id: str
    spec: UpdateSpec


@dataclass(frozen=True, slots=True)
class Transition:
    """A parameter's value before and after; None: unknown."""

    parameter: str
    group: str
    old: Value | None
    new: Value | None


@dataclass(frozen=True, slots=True)
class Reading:
    """A parameter's value in force; None: unknown."""

    parameter: str
    group: str
    value: Value | None


@dataclass(frozen=True, slots=True)
class Applied:
    """In force; `step` is the first optimizer step that used the new values.

    `rolled_back_by` is the revision of the roll back that went back to before it; None: none did.
    """

    step: int
    transitions: tuple[Transition, ...] = ()
    apply_time: datetime | None = None
    instance_id: str = ""
    checkpoint: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    rolled_back_by: int | None = None
    op: Literal["applied"] = "applied"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Refused by the trainer; `step` is the number of optimizer steps done then."""

    reason: str
    message: str
    parameter: str = ""
    in_force: tuple[Reading, ...] = ()
    step: int = 0
    op: Literal["rejected"] = "rejected"


@dataclass(frozen=True, slots=True)
class Expired:
    """Not applied in time."""

    cause: ExpiryCause
    message: str
    op: Literal["expired"] = "expired"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Withdrawn before it was in force."""

    principal: str
    reason: str = ""
    op: Literal["cancelled"] = "cancelled"


Outcome = Applied | Rejected | Expired | Cancelled

_STATE_OF: dict[type[Outcome], UpdateState] = {
    Applied: UpdateState.APPLIED,
    Rejected: UpdateState.REJECTED,
    Expired: UpdateState.EXPIRED,
    Cancelled: UpdateState.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Update:
    """An accepted update of a job. See `midcourse.control.v1.Update` for the fields."""

    job_id: str
    revision: int
    spec: UpdateSpec
    author: str
    request_id: str
    create_time: datetime
    batch: str = ""
    state: UpdateState = UpdateState.PENDING
    deliver_time: datetime | None = None
    settle_time: datetime | None = None
    cancel_request: Cancelled | None = None
    outcome: Outcome | None = None
    reapplied: tuple[Applied, ...] = ()
    trace_parent: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it can still be applied for the first time."""
        return self.state in OPEN_STATES

    @property
    def last_applied(self) -> Applied | None:
        """Its newest application; None: there is none."""
        if self.reapplied:
            return self.reapplied[-1]
        return self.outcome if isinstance(self.outcome, Applied) else None

    @property
    def rolled_back_by(self) -> int | None:
        """Revision of the roll back that took its newest application away; None: none did."""
        last = self.last_applied
        return None if last is None else last.rolled_back_by

    @property
    def is_wanted(self) -> bool:
        """Whether what it asks for is to be in force: it may come to be, or is and stayed."""
        return self.is_open or (self.state is UpdateState.APPLIED and self.rolled_back_by is None)

    @property
    def is_guards(self) -> bool:
        """Whether the training process has made it by itself."""
        return self.author == GUARD


def check_spec(
    spec: UpdateSpec, *, now: datetime, steps_done: int | None, field_path: str = "spec"
) -> None:
    """Refuses a spec that makes no sense by itself, whatever the job's parameters.

    Args:
        spec: What is asked for.
        now: The server's time.
        steps_done: Optimizer steps that the job has done; None: unknown.
        field_path: Path of `spec` in the request.

    Raises:
        Refusal: Naming the field.
    """
    if not spec.changes and spec.action is None:
        raise invalid(f"{field_path}.changes", "got none; an update needs a change or an action")
    if len(spec.changes) > MAX_CHANGES:
        raise invalid(f"{field_path}.changes", f"got {len(spec.changes)}, at most {MAX_CHANGES}")
    if len(spec.reason) > MAX_REASON:
        raise invalid(
            f"{field_path}.reason", f"got {len(spec.reason)} characters, at most {MAX_REASON}"
        )
    if spec.action is not None:
        check_checkpoint(spec.action, f"{field_path}.action")
    if spec.deadline is not None and spec.deadline <= now:
        raise invalid(
            f"{field_path}.deadline",
            f"got {spec.deadline.isoformat()}, but it is {now.isoformat()} already",
            reason=Reason.DEADLINE_IN_PAST,
        )
    if spec.at_step is not None and spec.at_step < 1:
        raise invalid(f"{field_path}.apply_at.step", f"got {spec.at_step}, steps count from 1")
    last = spec.max_step if spec.max_step is not None else spec.at_step
    first = spec.at_step if spec.at_step is not None else 1
    if last is not None and last < first:
        raise invalid(
            f"{field_path}.apply_at.max_step", f"got {last}, at least apply_at.step ({first})"
        )
    if last is not None and steps_done is not None and last <= steps_done:
        name = "max_step" if spec.max_step is not None else "step"
        raise invalid(
            f"{field_path}.apply_at.{name}",
            f"got {last}, but the job has done {steps_done} steps; "
            f"the first step that can still change is {steps_done + 1}",
            reason=Reason.STEP_IN_PAST,
        )


def check_checkpoint(action: Action, field_path: str) -> None:
    """Refuses a checkpoint that can be no path. Whether there is such a one only its host knows."""
    text = action.checkpoint
    if len(text) > MAX_CHECKPOINT or not text.isprintable() or text != text.strip():
        raise invalid(
            f"{field_path}.roll_back.checkpoint",
            f"got {text[:80]!r} ({len(text)} characters), allowed: a path of at most "
            f"{MAX_CHECKPOINT} printable characters without blanks around it, or nothing for the "
            "newest checkpoint",
        )


def check_author(author: str) -> None:
    """Refuses a caller who goes by the name of the guard.

    Raises:
        Refusal: NOT_ALLOWED.
    """
    if author == GUARD:
        raise Refusal(
            Reason.NOT_ALLOWED,
            f"{GUARD!r} stands for what training processes change by themselves, and no caller "
            "may go by that name; use another one",
        )


def as_happened(local: LocalUpdate) -> UpdateSpec:
    """What a training process says that it has done, as the spec of an update.

    It has happened, so it is not judged by what would be refused of a caller, and no time limit
    is left that could keep it from being told.

    Raises:
        Refusal: If it can not be told at all.
    """
    spec = local.spec
    check_request_id(local.request_id, "local_update.request_id")
    if not spec.changes and spec.action is None:
        raise invalid("local_update.spec.changes", "got none; a change or an action is needed")
    if len(spec.changes) > MAX_CHANGES:
        raise invalid(
            "local_update.spec.changes", f"got {len(spec.changes)}, at most {MAX_CHANGES}"
        )
    return replace(spec, reason=spec.reason[:MAX_REASON], deadline=None, max_step=None)


def redelivered(update: Update) -> bool:
    """Whether an applied update is sent to a training process whose lineage lacks it.

    Its changes are: they are still wanted, unless the run was rolled back to before them. An action
    was done once, for all time; an update that is nothing else is not sent, and with one that
    changes something as well the trainer sees from its state that the action is not to be repeated.
    """
    return bool(update.spec.changes) and update.is_wanted


_REQUEST_ID = re.compile(r"[\x21-\x7e]+")


def check_request_id(request_id: str, field_path: str = "request_id") -> None:
    """Refuses a request id that is too long or has odd characters."""
    if len(request_id) > MAX_REQUEST_ID or not _REQUEST_ID.fullmatch(request_id):
        raise invalid(
            field_path,
            f"got {request_id[:40]!r} ({len(request_id)} characters), allowed: at most "
            f"{MAX_REQUEST_ID} printable ASCII characters without spaces",
        )


def fingerprint(spec: UpdateSpec) -> str:
    """A digest of everything that makes one request differ from another."""
    # Of one moment there are datetimes with several texts, depending on their zone.
    deadline = spec.deadline.astimezone(UTC).isoformat() if spec.deadline is not None else ""
    return hashlib.sha256(repr((replace(spec, deadline=None), deadline)).encode()).hexdigest()


def answer_again(existing: Update, spec: UpdateSpec) -> Update:
    """The first answer, for a request id that was used before.

    Raises:
        Refusal: If the content differs.
    """
    if fingerprint(existing.spec) != fingerprint(spec):
        raise Refusal(
            Reason.REQUEST_ID_REUSED,
            f"request_id {existing.request_id!r} was used for revision {existing.revision} with "
            "other content; use a new request_id for a new request",
            violations=[],
            metadata={"revision": str(existing.revision)},
        )
    return existing


def check_revision(expected: int | None, current: int) -> None:
    """Compare-and-set: refuses unless the expected revision is the current one.

    Raises:
        Refusal: Naming the current revision.
    """
    if expected is not None and expected != current:
        raise Refusal(
            Reason.REVISION_MISMATCH,
            f"expected_revision is {expected}, but the job stands at revision {current}; "
            "read the job and decide again",
            metadata={"current_revision": str(current)},
        )


def deliver(update: Update, now: datetime) -> Update:
    """The agent has it. Idempotent; a settled update stays as it is."""
    if update.state is not UpdateState.PENDING:
        return update
    return alike(update, state=UpdateState.DELIVERED, deliver_time=now)


def settle(update: Update, outcome: Outcome, now: datetime) -> Update:
    """The update ends. A final state never changes: a later application is put beside it.

    The same outcome again (the wire is at least once) changes nothing.
    """
    if update.is_open:
        return alike(
            update,
            state=_STATE_OF[type(outcome)],
            outcome=outcome,
            settle_time=now,
            deliver_time=update.deliver_time
            or (None if isinstance(outcome, Expired | Cancelled) else now),
        )
    if not isinstance(outcome, Applied):
        return update
    known = (update.outcome, *update.reapplied)
    same = any(
        isinstance(a, Applied) and (a.instance_id, a.step) == (outcome.instance_id, outcome.step)
        for a in known
    )
    return update if same else replace(update, reapplied=(*update.reapplied, outcome))


def request_cancel(
    update: Update, by: Cancelled, now: datetime, *, trainer_may_have_it: bool
) -> Update:
    """Withdraws an update: at once where nobody can have it, else by asking the trainer.

    Raises:
        Refusal: If it is settled already, or has happened already.
    """
    if update.is_guards:
        raise Refusal(
            Reason.NOT_ALLOWED,
            f"revision {update.revision} is a change that the training process has made by itself "
            "already, and can not be cancelled; to go back, send a new update",
        )
    if not update.is_open:
        raise Refusal(
            Reason.UPDATE_SETTLED,
            f"revision {update.revision} is {update.state.upper()} already and can not be "
            "cancelled; to go back, send a new update",
            metadata={"state": update.state.upper()},
        )
    if not trainer_may_have_it:
        return settle(update, by, now)
    return update if update.cancel_request else replace(update, cancel_request=by)
