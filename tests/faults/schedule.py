"""Which fault comes when: drawn from a seed, so that a course of faults can be had again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What can be done to a run."""

    KILL_REPLICA = "kill a replica"
    STOP_REPLICA = "stop a replica for a while"
    END_REPLICA = "end a replica in good order"
    FAILPOINT = "crash a replica at a failpoint"
    RESET = "reset a replica's connections"
    CLOSE = "close a replica's connections"
    CUT = "cut a connection at a message"
    FREEZE = "let nothing through to a replica for a while"
    DEAF = "lose what is said to and by a replica"
    HALF_DEAF = "lose what is said in one direction"
    TRICKLE = "let little through to a replica"
    CLOCK = "set a replica's clock"
    FULL = "give a replica no room on its disk"
    LOCK = "lock the database's file"
    READ_ONLY = "make the database read-only"
    RESTART_DATABASE = "restart the database"
    CRASH_DATABASE = "crash the database"
    KILL_BACKEND = "kill a process of the database"
    STOP_DATABASE = "stop a process of the database for a while"
    KILL_TRAINER = "kill a trainer and its agent"
    IMPOSTOR = "take a job's session away"


_EVERYWHERE = {
    FaultKind.KILL_REPLICA: 5,
    FaultKind.STOP_REPLICA: 2,
    FaultKind.END_REPLICA: 2,
    FaultKind.FAILPOINT: 5,
    FaultKind.RESET: 2,
    FaultKind.CLOSE: 2,
    FaultKind.CUT: 4,
    FaultKind.FREEZE: 2,
    FaultKind.DEAF: 1,
    FaultKind.HALF_DEAF: 2,
    FaultKind.TRICKLE: 1,
    FaultKind.CLOCK: 3,
    FaultKind.KILL_TRAINER: 3,
    FaultKind.IMPOSTOR: 3,
}
_WITH_SQLITE = {
    FaultKind.FULL: 2,
    FaultKind.LOCK: 1,
}
_WITH_POSTGRES = {
    FaultKind.READ_ONLY: 1,
    FaultKind.RESTART_DATABASE: 1,
    FaultKind.CRASH_DATABASE: 2,
    FaultKind.KILL_BACKEND: 2,
    FaultKind.STOP_DATABASE: 1,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault.

    Attributes:
        at: When it begins, in seconds.
        kind: What it is.
        target: Number of the replica or job, where it has one, and of whatever else there is to
            choose; to be taken modulo how many.
        lasting: For how long what is killed stays away, or what is stopped stands still.
    """

    at: float
    kind: FaultKind
    target: int
    lasting: float


def kinds(*, postgres: bool) -> dict[FaultKind, int]:
    """What can be done, and how often it is in comparison."""
    return _EVERYWHERE | (_WITH_POSTGRES if postgres else _WITH_SQLITE)


def schedule(seed: int, seconds: float, *, postgres: bool) -> list[Planned]:
    """Draws the faults of a run; each kind is there in a long one, none lasts beyond the end.

    Args:
        seed: The same seed gives the same faults.
        seconds: How long the run is.
        postgres: Whether there is a database server that can fail.
    """
    rng = random.Random(f"faults/{seed}")
    weights = kinds(postgres=postgres)
    planned: list[Planned] = []
    at = rng.uniform(0.1, 0.6)
    while True:
        lasting = min(rng.uniform(0.0, 1.5), seconds / 2)
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if at + lasting > seconds:
            return planned
        planned.append(Planned(at, kind, rng.randrange(1_000_000_000), lasting))
        at += rng.uniform(0.1, 1.3)
