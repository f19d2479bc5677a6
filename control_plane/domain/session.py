"""The rules of a session: who is served, which messages count, what has to be sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import LIVE_STATES, Job, JobState, Progress, TrainerExit
from control_plane.domain.parameter import ParameterSpec
from control_plane.domain.update import (
    ActionKind,
    Applied,
    Expired,
    LocalUpdate,
    Reading,
    Rejected,
)

PROTOCOL_VERSION = 1

_UNDECIDED_SECONDS = 2.0
"""Much less than it takes for a job to be lost, and much more than a Hello takes."""


class Phase(StrEnum):
    """What a trainer is doing, as its agent says."""

    UNKNOWN = "unknown"
    TRAINING = "training"
    STALLED = "stalled"
    PAUSED = "paused"
    FINISHED = "finished"
    EXITED = "exited"


_STATE_OF_PHASE = {
    Phase.UNKNOWN: JobState.RUNNING,
    Phase.TRAINING: JobState.RUNNING,
    Phase.STALLED: JobState.STALLED,
    Phase.PAUSED: JobState.PAUSED,
    Phase.FINISHED: JobState.FINISHED,
    Phase.EXITED: JobState.FAILED,
}


def state_after(current: JobState, phase: Phase) -> JobState:
    """The job's state once its trainer is in a phase.

    A process that ends after training reached its end has not failed.
    """
    if phase is Phase.EXITED and current is JobState.FINISHED:
        return current
    return _STATE_OF_PHASE[phase]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The trainer gave an update back before it was in force."""


@dataclass(frozen=True, slots=True)
class TrainerOutcome:
    """How an update ended in the trainer; `rolled_back`: the run went back to before it since."""

    revision: int
    result: Applied | Rejected | Expired | Withdrawn
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class FullState:
    """What a training process stands at.

    `in_force` has (first, last) pairs, both included; `newest_revision` is the highest that it has
    ever been given.
    """

    parameters: tuple[ParameterSpec, ...] = ()
    actions: tuple[ActionKind, ...] = ()
    in_force: tuple[tuple[int, int], ...] = ()
    held: frozenset[int] = frozenset()
    outcomes: tuple[TrainerOutcome, ...] = ()
    progress: Progress | None = None
    phase: Phase = Phase.UNKNOWN
    local_updates: tuple[LocalUpdate, ...] = ()
    newest_revision: int = 0

    @property
    def newest_known(self) -> int:
        """Highest revision that the process has been given, as far as it says; 0: none."""
        known = (
            self.newest_revision,
            *self.held,
            *(last for _, last in self.in_force),
            *(outcome.revision for outcome in self.outcomes),
        )
        return max(known)


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of an agent. See `midcourse.agent.v1.Hello`."""

    protocol_version: int
    job_id: str
    instance_id: str
    agent_id: str
    labels: dict[str, str]
    method: str = ""
    agent_version: str = ""
    host: str = ""
    trainer_pid: int = 0
    start_step: int = 0
    state: FullState = FullState()


class MetricColumn(NamedTuple):
    """Samples of one metric; the columns have the same length. Times in microseconds.

    Such as this come by the thousand each second, and a frozen dataclass takes five times as
    long to make.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    times: Sequence[int]


class Heartbeat(NamedTuple):
    """Progress and metrics since the last one.

    Attributes:
        patient: It need not be acknowledged by itself: together with a later message will do.
    """

    progress: Progress | None
    phase: Phase
    metrics: tuple[MetricColumn, ...] = ()
    dropped_samples: int = 0
    readings: tuple[Reading, ...] = ()
    patient: bool = False

    @property
    def samples(self) -> int:
        """How many samples it has, of all metrics."""
        count = 0
        for column in self.metrics:
            count += len(column.steps)
        return count


@dataclass(frozen=True, slots=True)
class TrainerFault:
    """Midcourse's own code failed in the training process; training goes on."""

    component: str
    message: str


@dataclass(frozen=True, slots=True)
class TrainerEvent:
    """Something happened to the trainer.

    Attributes:
        phase: What it is doing from now on; UNKNOWN: unchanged.
        message: The same in words.
        exit: How the process ended, where it did.
        fault: What of ours failed, where it did.
        time: When, by the training host's clock.
    """

    phase: Phase
    message: str
    time: datetime
    exit: TrainerExit | None = None
    fault: TrainerFault | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A training process of a job: its number, and the step that it began at."""

    number: int
    instance_id: str
    start_step: int
    superseded: bool = False


def check_protocol(version: int) -> None:
    """Refuses an agent that speaks another protocol.

    Raises:
        Refusal: Naming both versions, and what to upgrade.
    """
    if version != PROTOCOL_VERSION:
        older = "the agent" if version < PROTOCOL_VERSION else "this server"
        raise Refusal(
            Reason.PROTOCOL_VERSION_UNSUPPORTED,
            f"the agent speaks version {version} of the session protocol, this server version "
            f"{PROTOCOL_VERSION}; upgrade {older}, the older one",
            metadata={"supported": str(PROTOCOL_VERSION), "got": str(version)},
        )


def check_instance(hello: Hello, runs: Iterable[Run], job: Job, *, is_open: bool) -> None:
    """Refuses a training process whose place another one has taken.

    The newest process of a job is served. Were the older one let back in, the two
    would take the job from each other for ever. One that ended before anybody heard of it is older
    than one that trains. While that one has no stream, it may be on its way back, or have died
    without a word: the job is lost soon then, and the other one is heard.

    Args:
        hello: What the process's agent says.
        runs: The job's processes so far.
        job: The job.
        is_open: Whether the job's stream is open, to whichever server.

    Raises:
        Refusal: Naming the process that is served: INSTANCE_SUPERSEDED for good,
            INSTANCE_UNDECIDED for now.
    """
    known = [run for run in runs if run.instance_id == hello.instance_id]
    too_late = hello.state.phase is Phase.EXITED and job.state in LIVE_STATES and not known
    if any(run.superseded for run in known) or (too_late and is_open):
        raise superseded(job)
    if too_late:
        raise Refusal(
            Reason.INSTANCE_UNDECIDED,
            f"job {job.id!r} was run by {_served_by(job)}, which is not connected; whether this "
            "process came after it shows once it is back, or taken for lost",
            retry_delay=_UNDECIDED_SECONDS,
        )


def superseded(job: Job) -> Refusal:
    """The refusal for a training process whose place another one has taken."""
    return Refusal(
        Reason.INSTANCE_SUPERSEDED,
        f"job {job.id!r} is now run by {_served_by(job)}; this process is not steered any more. "
        "If both are meant to run, give them different job ids",
        metadata={"instance_id": job.session.instance_id if job.session else ""},
    )


def _served_by(job: Job) -> str:
    by = job.session
    return f"process {by.trainer_pid} on {by.host} (instance {by.instance_id})" if by else "another"


def fenced(job_id: str, epoch: int, current: int) -> Refusal:
    """The refusal for whatever an older epoch says."""
    return Refusal(
        Reason.SESSION_FENCED,
        f"session epoch {epoch} of job {job_id!r} has been replaced by epoch {current}",
        metadata={"epoch": str(epoch), "current_epoch": str(current)},
    )


def begins_anew(job: Job, hello: Hello) -> bool:
    """Whether this is a new run of a finished job rather than its continuation.

    What was applied in the finished run is then no business of the new one. A run
    that died, or that goes on from a checkpoint, is continued: there the
    checkpoint decides.
    """
    return (
        job.state is JobState.FINISHED
        and job.session is not None
        and hello.instance_id != job.session.instance_id
        and hello.start_step == 0
        and not hello.state.in_force
    )


def contains(ranges: Iterable[tuple[int, int]], number: int) -> bool:
    """Whether a number lies in one of the (first, last) pairs."""
    return any(first <= number <= last for first, last in ranges)


class Allowance:
    """So many at once, and one more after each interval."""

    __slots__ = ("_counted", "_left", "_most", "_seconds_each")

    def __init__(self, at_once: int, seconds_each: float, now: datetime) -> None:
        """Begins full."""
        self._most = float(at_once)
        self._seconds_each = seconds_each
        self._left = self._most
        self._counted = now

    def take(self, now: datetime) -> bool:
        """Takes one; returns whether there was one."""
        passed = max(0.0, (now - self._counted).total_seconds())
        self._left = min(self._most, self._left + passed / self._seconds_each)
        self._counted = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class MessageNumbers:
    """Checks that an agent's messages are numbered without gaps.

    Messages after a gap count all the same, since each stands for itself; but the
    server asks for full state, because something is missing.
    """

    __slots__ = ("last",)

    def __init__(self, first: int) -> None:
        """Begins with the number of the Hello."""
        self.last = first

    def accept(self, number: int) -> bool:
        """Takes the next number; returns whether there was a gap before it.

        Raises:
            Refusal: If the number was there before.
        """
        if number <= self.last:
            raise Refusal(
                Reason.SEQUENCE_REGRESSED,
                f"message number {number} came after {self.last}; numbers only grow",
                metadata={"expected": str(self.last + 1), "got": str(number)},
            )
        gap = number != self.last + 1
        self.last = number
        return gap
