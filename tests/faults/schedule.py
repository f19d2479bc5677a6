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
    RESTART_DATABASE = "restart the database"
    CRASH_DATABASE = "crash the database"
    KILL_BACKEND = "kill a process of the database"
    KILL_TRAINER = "kill a trainer and its agent"
    IMPOSTOR = "take a job's session away"


_EVERYWHERE = {
    FaultKind.KILL_REPLICA: 5,
    FaultKind.STOP_REPLICA: 2,
    FaultKind.END_REPLICA: 2,
    FaultKind.KILL_TRAINER: 2,
    FaultKind.IMPOSTOR: 3,
}
_WITH_POSTGRES = {
    FaultKind.RESTART_DATABASE: 1,
    FaultKind.CRASH_DATABASE: 2,
    FaultKind.KILL_BACKEND: 2,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault.

    Attributes:
        at: When it begins, in seconds.
        kind: What it is.
        target: Number of the replica or job, where it has one; to be taken modulo how many.
        lasting: For how long what is killed stays away, or what is stopped stands still.
    """

    at: float
    kind: FaultKind
    target: int
    lasting: float


def schedule(seed: int, seconds: float, *, postgres: bool) -> list[Planned]:
    """Draws the faults of a run; each kind is there in a long one, none lasts beyond the end.

    Args:
        seed: The same seed gives the same faults.
        seconds: How long the run is.
        postgres: Whether there is a database server that can fail.
    """
    rng = random.Random(f"faults/{seed}")
    weights = _EVERYWHERE | (_WITH_POSTGRES if postgres else {})
    planned: list[Planned] = []
    at = rng.uniform(0.3, 1.0)
    while True:
        lasting = rng.uniform(0.0, 1.5)
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if at + lasting > seconds:
            return planned
        planned.append(Planned(at, kind, rng.randrange(1_000_000), lasting))
        at += rng.uniform(0.3, 1.7)
