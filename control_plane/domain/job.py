"""A training job: what is known of it, and how that changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from control_plane.domain.alike import alike
from control_plane.domain.errors import Reason, Refusal, invalid
from control_plane.domain.parameter import Change, ParameterSpec, Value
from control_plane.domain.update import ActionKind, Applied, Update

_JOB_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
MAX_LABELS = 64


class JobState(StrEnum):
    """What a job is doing, as far as is known."""

    PENDING = "pending"
    RUNNING = "running"
    STALLED = "stalled"
    PAUSED = "paused"
    LOST = "lost"
    FINISHED = "finished"
    FAILED = "failed"


LIVE_STATES = frozenset({JobState.RUNNING, JobState.STALLED, JobState.PAUSED})


class Progress(NamedTuple):
    """How far training has come; None: unknown.

    Attributes:
        step_time: When the newest step was done, in microseconds since 1970.
    """

    step: int
    max_steps: int | None = None
    epoch: float | None = None
    max_epochs: float | None = None
    steps_per_second: float | None = None
    step_time: int | None = None


class MetricPoint(NamedTuple):
    """The newest value of a metric.

    Attributes:
        step: Optimizer steps done.
        time: When it was measured, in microseconds since 1970.
    """

    name: str
    step: int
    value: float
    time: int


@dataclass(frozen=True, slots=True)
class ReadValue:
    """A parameter's value as read from the trainer, when it had done so many steps."""

    parameter: str
    group: str
    value: Value
    step: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The connection between the job's trainer and the control plane.

    Attributes:
        replica: The server that has the stream, or had it last.
        last_revision: The job's newest update when the stream ended; 0 while it is open.
    """

    epoch: int
    instance_id: str
    agent_id: str
    host: str
    trainer_pid: int
    agent_version: str
    connect_time: datetime
    last_seen_time: datetime
    connected: bool = True
    replica: str = ""
    last_revision: int = 0


@dataclass(frozen=True, slots=True)
class TrainerExit:
    """How a training process ended; None: unknown."""

    exit_code: int | None
    signal: int | None
    message: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Desired:
    """The newest accepted change of a parameter."""

    change: Change
    revision: int


@dataclass(frozen=True, slots=True)
class Effective:
    """A value as last confirmed; revision 0: the training script's own."""

    parameter: str
    group: str
    value: Value | None
    revision: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A training job. See `midcourse.control.v1.Job` for the fields.

    Attributes:
        key: The store's own number; 0 until stored.
        version: Counts changes; the etag.
        revision: Newest accepted revision.
        settled_revision: Newest revision up to which every update is settled.
        replay_floor: Updates up to this revision belong to finished earlier runs
            and are not applied again.
        label_edits: Labels that callers have set, or removed (None): their word counts, whatever
            the job's agent says of the same keys.
    """

    id: str
    uid: str
    create_time: datetime
    update_time: datetime
    key: int = 0
    version: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    method: str = ""
    state: JobState = JobState.PENDING
    state_message: str = ""
    parameters: tuple[ParameterSpec, ...] = ()
    actions: tuple[ActionKind, ...] = ()
    revision: int = 0
    settled_revision: int = 0
    replay_floor: int = 0
    desired: tuple[Desired, ...] = ()
    effective: tuple[Effective, ...] = ()
    session: SessionInfo | None = None
    exit: TrainerExit | None = None
    label_edits: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def etag(self) -> str:
        """Changes with every change of the job but its telemetry."""
        return f"{self.uid[:8]}-{self.version}"

    def selectable(self) -> dict[str, str]:
        """What selectors see of the job."""
        return seen_by_selectors(self.id, self.method, self.state, self.labels)

    def in_force(self) -> dict[tuple[str, str], Value]:
        """Known values in force, by (parameter, group)."""
        return {(e.parameter, e.group): e.value for e in self.effective if e.value is not None}

    def changed(self, now: datetime, **fields: Any) -> Job:
        """The job with some fields changed, and its change count and time moved on."""
        return alike(self, version=self.version + 1, update_time=now, **fields)


def seen_by_selectors(
    job_id: str, method: str, state: JobState, labels: Mapping[str, str]
) -> dict[str, str]:
    """What selectors see of a job: its labels, and beneath them job, method and state."""
    return {"job": job_id, "method": method, "state": state.value, **labels}


def check_job_id(job_id: str, field_path: str = "job_id") -> None:
    """Refuses an id that can not be part of a resource name."""
    if not _JOB_ID.fullmatch(job_id):
        raise invalid(
            field_path,
            f"got {job_id[:80]!r}, allowed: 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning and "
            "ending with a letter or digit",
        )


def check_labels(labels: Mapping[str, str], field_path: str = "labels") -> None:
    """Refuses labels that Kubernetes would refuse too.

    Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/
    """
    if len(labels) > MAX_LABELS:
        raise invalid(field_path, f"got {len(labels)} labels, at most {MAX_LABELS}")
    for key, value in labels.items():
        if not is_label_key(key):
            raise invalid(
                f"{field_path}[{key[:80]!r}]",
                "a label's key is [prefix/]name; the name has at most 63 of a-z, A-Z, 0-9, '-', "
                "'_' and '.', beginning and ending with a letter or digit; the prefix is a DNS "
                "name",
            )
        if not is_label_value(value):
            raise invalid(
                f"{field_path}[{key!r}]",
                f"got {value[:80]!r}; a label's value has at most 63 of a-z, A-Z, 0-9, '-', '_' "
                "and '.', beginning and ending with a letter or digit, or is empty",
            )


def is_label_key(key: str) -> bool:
    """Whether Kubernetes would take this as a label's key."""
    prefix, slash, name = key.rpartition("/")
    return bool(_LABEL_NAME.fullmatch(name)) and (
        not slash or bool(_LABEL_PREFIX.fullmatch(prefix))
    )


def is_label_value(value: str) -> bool:
    """Whether Kubernetes would take this as a label's value."""
    return value == "" or bool(_LABEL_NAME.fullmatch(value))


def check_accepts_updates(job: Job) -> None:
    """Refuses updates for a job that can not take any.

    A failed or lost job takes them: it may come back, and then they are due.
    """
    if job.state is JobState.FINISHED:
        raise Refusal(
            Reason.JOB_FINISHED,
            f"job {job.id!r} has finished training; there is nothing left to change",
            metadata={"state": job.state.upper()},
        )
    if not job.parameters and not job.actions:
        raise Refusal(
            Reason.JOB_NOT_STARTED,
            f"job {job.id!r} has not said yet what can be changed; "
            "send the update once its trainer has shown itself",
            metadata={"state": job.state.upper()},
        )


def check_action(job: Job, kind: ActionKind) -> None:
    """Refuses an action that the job's trainer does not offer."""
    if kind not in job.actions:
        offered = ", ".join(job.actions) or "none"
        raise invalid(
            "spec.action",
            f"got {kind}, actions that this job offers: {offered}",
            reason=Reason.OPERATION_UNSUPPORTED,
        )


def trainer_may_have(job: Job, update: Update) -> bool:
    """Whether an open update may have reached the job's trainer.

    Then only the trainer can say what becomes of it. What was accepted while no
    stream was open has reached nobody, and a process that is gone applies nothing.
    """
    session = job.session
    if session is None or job.state in (JobState.FINISHED, JobState.FAILED):
        return False
    return session.connected or update.revision <= session.last_revision


def with_desired(desired: Iterable[Desired], update: Update) -> tuple[Desired, ...]:
    """What is desired once an update is accepted: its changes take the older ones' places.

    A change of all groups takes the place of those of single groups too.
    """
    kept = list(desired)
    for change in update.spec.changes:
        kept = [
            d
            for d in kept
            if d.change.parameter != change.parameter or (change.group not in ("", d.change.group))
        ]
        kept.append(Desired(change, update.revision))
    return tuple(kept)


def with_effective(job: Job, update: Update, applied: Applied) -> tuple[Effective, ...]:
    """What is in force once an update is applied.

    A value for the whole and values for its groups do not stand beside each other:
    where all of the one are told anew, the other goes.
    """
    values = {(e.parameter, e.group): e for e in job.effective}
    groups = {spec.name: set(spec.groups) for spec in job.parameters}
    for parameter in {t.parameter for t in applied.transitions}:
        told = {t.group for t in applied.transitions if t.parameter == parameter}
        if "" in told or groups.get(parameter, set()) <= told:
            values = {key: e for key, e in values.items() if key[0] != parameter}
    for t in applied.transitions:
        values[t.parameter, t.group] = Effective(
            t.parameter, t.group, t.new, update.revision, applied.step
        )
    return tuple(values[key] for key in sorted(values))
