"""What the parties of a run saw, as plain records: one line of JSON each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Number = int | float

# --------------------------------------------------------------------------- parts of records


@dataclass(frozen=True, slots=True)
class Change:
    """One change that was asked for: `value` is the new value, or the factor."""

    parameter: str
    op: Literal["set", "multiply"]
    value: Number


@dataclass(frozen=True, slots=True)
class Move:
    """A parameter's value before and after; None: unknown."""

    parameter: str
    old: Number | None
    new: Number | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an update ended.

    Attributes:
        result: What became of it; "withdrawn" is a trainer's word, "cancelled" the store's.
        instance: The training process that applied it; empty: none did, or it is unknown.
        step: First optimizer step that used it, where it was applied.
        moves: What it changed, where it was applied.
        reason: Why, where it was not applied.
        checkpoint: Where its action has saved one, or gone back to.
    """

    result: Literal["applied", "rejected", "expired", "withdrawn", "cancelled"]
    instance: str = ""
    step: int = 0
    moves: tuple[Move, ...] = ()
    reason: str = ""
    checkpoint: str = ""


# ------------------------------------------------------------------------------------ callers


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Anything that was seen.

    Attributes:
        at: Seconds since the history began. What comes later in a history was seen later.
    """

    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Record):
    """A caller is about to send a request, or to send it again.

    Attributes:
        call: Number of the attempt.
        to: Address that it goes to.
        action: What to do besides; empty: nothing.
        checkpoint: What to roll back to; empty: the newest.
        deadline: After this time it must not be applied, in seconds since 1970; None: no limit.
        revision: The update to cancel.
    """

    kind: Literal["asked"] = "asked"
    caller: str
    call: int
    to: str
    method: Literal["update", "batch", "cancel"]
    jobs: tuple[str, ...]
    request_id: str = ""
    changes: tuple[Change, ...] = ()
    action: str = ""
    checkpoint: str = ""
    at_step: int | None = None
    max_step: int | None = None
    deadline: float | None = None
    expected_revision: int | None = None
    revision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Record):
    """A caller has an answer that says OK.

    Attributes:
        revisions: The updates, by job.
        state: Where a single update stands.
        batch: Name of the batch.
    """

    kind: Literal["answered"] = "answered"
    call: int
    revisions: dict[str, int]
    state: str = ""
    batch: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Record):
    """A caller has an error; some of them leave open whether the request was carried out."""

    kind: Literal["failed"] = "failed"
    call: int
    code: str
    reason: str


# ----------------------------------------------------------------------------------- watchers


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchBegan(Record):
    """A watcher begins, or goes on after a position; `job`: of this one only."""

    kind: Literal["watch_began"] = "watch_began"
    watcher: str
    to: str
    job: str = ""
    position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Record):
    """A watcher was told something; within a snapshot there is no position."""

    kind: Literal["watched"] = "watched"
    watcher: str
    event: Literal["snapshot", "created", "modified", "deleted", "bookmark"]
    position: int | None = None
    job: str = ""
    revision: int | None = None
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEnded(Record):
    """A watch ended, and with what."""

    kind: Literal["watch_ended"] = "watch_ended"
    watcher: str
    code: str
    reason: str


# ------------------------------------------------------------------------------------- agents


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Record):
    """An agent begins a session. `impostor`: it is no agent, but says what one has said before."""

    kind: Literal["hello"] = "hello"
    session: int
    to: str
    job: str
    instance: str
    impostor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcomed(Record):
    """The control plane serves the session."""

    kind: Literal["welcomed"] = "welcomed"
    session: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered(Record):
    """A session brought an update."""

    kind: Literal["delivered"] = "delivered"
    session: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Record):
    """A session is about to say how an update ended, in the message of this number."""

    kind: Literal["told"] = "told"
    session: int
    number: int
    revision: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged(Record):
    """A session was told that its messages up to this number are on disk."""

    kind: Literal["acknowledged"] = "acknowledged"
    session: int
    number: int


# ----------------------------------------------------------------------------------- trainers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerBegan(Record):
    """A training process begins, with these values in force.

    Attributes:
        checkpoint: What it goes on from; empty: from nothing.
        contains: Revisions that are in force there, as pairs of first and last.
        unverified: Revisions that are in force there as well, the outcome of which is this
            process's to tell: `values` are those from before them.
        saved_by: The training process that saved it; empty: it is not known.
        saved: The values that were in force when it was saved, whatever it says of updates.
        roll_back: Revision of the roll back that it comes from; 0: it comes from none.
    """

    kind: Literal["trainer_began"] = "trainer_began"
    job: str
    instance: str
    values: dict[str, Number]
    checkpoint: str = ""
    contains: tuple[tuple[int, int], ...] = ()
    unverified: tuple[int, ...] = ()
    saved_by: str = ""
    saved: dict[str, Number] = field(default_factory=dict)
    roll_back: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettled(Record):
    """A training process says how an update ended."""

    kind: Literal["trainer_settled"] = "trainer_settled"
    job: str
    instance: str
    revision: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce(Record):
    """Looking at a training process from outside, other values were in force than before.

    Attributes:
        step: Steps done, where it is looked at after each of them; None: it is not.
    """

    kind: Literal["in_force"] = "in_force"
    job: str
    instance: str
    values: dict[str, Number]
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed(Record):
    """A training process was told that how these updates ended is on disk."""

    kind: Literal["confirmed"] = "confirmed"
    job: str
    instance: str
    revisions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Record):
    """A training process has saved a checkpoint."""

    kind: Literal["saved"] = "saved"
    job: str
    instance: str
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerEnded(Record):
    """A training process was killed, or looked at for the last time."""

    kind: Literal["trainer_ended"] = "trainer_ended"
    job: str
    instance: str
    values: dict[str, Number]


# --------------------------------------------------------------------------- what was done to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Record):
    """How the run was set up; the first record."""

    kind: Literal["run"] = "run"
    database: str
    replicas: int
    jobs: int
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault(Record):
    """Something is about to be broken, or mended."""

    kind: Literal["fault"] = "fault"
    fault: str
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed(Record):
    """A fault that was tried has broken nothing, as what it was to meet did not come."""

    kind: Literal["missed"] = "missed"
    fault: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet(Record):
    """Faults and requests have ended; all updates are settled, and these watchers are told so."""

    kind: Literal["quiet"] = "quiet"
    position: int
    watchers: tuple[str, ...]


# ---------------------------------------------------------------------------- the store at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob(Record):
    """A job, with its newest revision and the epoch of its newest session.

    Attributes:
        floor: Up to this revision its updates belong to runs that had finished.
    """

    kind: Literal["stored_job"] = "stored_job"
    job: str
    revision: int
    epoch: int
    floor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUpdate(Record):
    """An update; `reapplied` are further applications, after a run went back.

    Attributes:
        rolled_back_by: Revision of the roll back that took the last application away; None: none.
    """

    kind: Literal["stored_update"] = "stored_update"
    job: str
    revision: int
    request_id: str
    state: str
    changes: tuple[Change, ...]
    batch: str = ""
    action: str = ""
    outcome: Outcome | None = None
    reapplied: tuple[Outcome, ...] = ()
    rolled_back_by: int | None = None


OPEN = ("pending", "delivered")
"""States of an update that has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch(Record):
    """A batch."""

    kind: Literal["stored_batch"] = "stored_batch"
    batch: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent(Record):
    """An event of the record that watches read."""

    kind: Literal["stored_event"] = "stored_event"
    position: int
    event: Literal["created", "modified", "deleted"]
    job: str
    revision: int | None = None
