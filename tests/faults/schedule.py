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
    DISK_FAILS = "have a replica's disk fail"
    DISK_FULL = "fill a replica's disk"
    LOCK = "lock the database's file"
    DATABASE_FULL = "fill the database's disk"
    READ_ONLY = "make the database read-only"
    RESTART_DATABASE = "restart the database"
    CRASH_DATABASE = "crash the database"
    KILL_BACKEND = "kill a process of the database"
    STOP_DATABASE = "stop a process of the database for a while"
    KILL_TRAINER = "kill a trainer and its agent"
    IMPOSTOR = "take a job's session away"
    KILL_PROCESS = "kill a training process"
    STOP_PROCESS = "stop a training process for a while"
    KILL_AGENT = "kill an agent"
    STOP_AGENT = "stop an agent for a while"


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
    FaultKind.DISK_FAILS: 2,
    FaultKind.DISK_FULL: 3,
    FaultKind.LOCK: 1,
}
_WITH_POSTGRES = {
    FaultKind.DATABASE_FULL: 2,
    FaultKind.READ_ONLY: 1,
    FaultKind.RESTART_DATABASE: 1,
    FaultKind.CRASH_DATABASE: 2,
    FaultKind.KILL_BACKEND: 2,
    FaultKind.STOP_DATABASE: 1,
}
_WITH_PROCESSES = {
    FaultKind.KILL_PROCESS: 5,
    FaultKind.STOP_PROCESS: 6,
    FaultKind.KILL_AGENT: 4,
    FaultKind.STOP_AGENT: 6,
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


def kinds(*, postgres: bool, processes: bool = False) -> dict[FaultKind, int]:
    """What can be done, and how often it is in comparison."""
    there = _EVERYWHERE | (_WITH_POSTGRES if postgres else _WITH_SQLITE)
    return there | _WITH_PROCESSES if processes else there


def schedule(
    seed: int, seconds: float, *, postgres: bool, processes: bool = False
) -> list[Planned]:
    """Draws the faults of a run; each kind is there in a long one, none lasts beyond the end.

    Args:
        seed: The same seed gives the same faults.
        seconds: How long the run is.
        postgres: Whether there is a database server that can fail.
        processes: Whether there are training processes and agents that can.
    """
    rng = random.Random(f"faults/{seed}")
    weights = kinds(postgres=postgres, processes=processes)
    planned: list[Planned] = []
    at = rng.uniform(0.1, 0.6)
    while True:
        lasting = min(rng.uniform(0.0, 1.5), seconds / 2)
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if at + lasting > seconds:
            return planned
        planned.append(Planned(at, kind, rng.randrange(1_000_000_000), lasting))
        at += rng.uniform(0.1, 1.3)
