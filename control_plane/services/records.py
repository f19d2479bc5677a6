"""What passes between the use cases and the store, beside the values of the domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from control_plane.domain.job import MetricPoint, Progress, ReadValue
    from control_plane.domain.session import MetricColumn
    from control_plane.domain.update import UpdateState

T = TypeVar("T")
P = TypeVar("P")


class Page(list[T], Generic[T, P]):
    """The next of many things in an order: perhaps few or none of those that were looked at.

    Attributes:
        beyond: The place to go on beyond; None: this was the end.
    """

    def __init__(self, things: Iterable[T], beyond: P | None) -> None:
        """Has things, and where to go on."""
        super().__init__(things)
        self.beyond = beyond


class EventKind(StrEnum):
    """What happened to a job, durably."""

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Event:
    """A durable change, in the order of commits.

    Attributes:
        position: Grows with every event; 0 until stored.
        kind: What happened.
        job_id: To which job.
        job_uid: Which of the jobs that had this id.
        revision: The update that changed; None: none did.
        time: When.
    """

    kind: EventKind
    job_id: str
    job_uid: str
    revision: int | None
    time: datetime
    position: int = 0


class Telemetry(NamedTuple):
    """The newest progress and metrics of a job, as stored.

    Attributes:
        progress: How far training has come; None: unknown.
        metrics: The newest value of each.
        dropped_samples: Samples lost on the way here.
        readings: Newest values of parameters that were read since they were confirmed.
        epoch: The session that it comes from.
        seen_time: When anything was last heard; None: unknown.
    """

    progress: Progress | None
    metrics: tuple[MetricPoint, ...]
    dropped_samples: int
    readings: tuple[ReadValue, ...] = ()
    epoch: int = 0
    seen_time: datetime | None = None


class TelemetryBatch(NamedTuple):
    """What a job's telemetry brings to the store in one flush."""

    job_key: int
    run_number: int
    columns: Sequence[MetricColumn]
    latest: Telemetry


@dataclass(frozen=True, slots=True)
class Place:
    """Where an update stands among those of all jobs, in the order of their times."""

    time: datetime
    job_key: int
    revision: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """What tells whether an update is wanted: its state, its job, what selectors see of that."""

    place: Place
    state: UpdateState
    job_id: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Member:
    """A batch's update at one job."""

    job_id: str
    job_key: int
    revision: int

    @property
    def place(self) -> tuple[int, int]:
        """What `Transaction.updates_at` finds the update by."""
        return self.job_key, self.revision
