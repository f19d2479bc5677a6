"""A history: what was seen, in the order in which it was seen."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TypeVar

from tests.faults.lines import LINE, AnyRecord
from tests.faults.records import (
    Answered,
    Asked,
    Hello,
    InForce,
    Number,
    Record,
    StoredUpdate,
    TrainerBegan,
    TrainerEnded,
    TrainerSettled,
    Welcomed,
)

R = TypeVar("R", bound=Record)


class Recorder:
    """Keeps what is seen, and writes it to a file at once, line by line.

    Everybody who records does so on one thread: the order of the records is the order of what
    happened.
    """

    def __init__(self, path: Path) -> None:
        """Begins a history.

        Raises:
            OSError: The file can not be written.
        """
        self._file = path.open("wb", buffering=0)
        self._begun = time.monotonic()
        self.records: list[AnyRecord] = []
        self._numbers = count(1)

    def number(self) -> int:
        """A number for a call or a session, unlike all others."""
        return next(self._numbers)

    def add(self, record: AnyRecord) -> None:
        """Adds what was just seen."""
        stamped = replace(record, at=round(time.monotonic() - self._begun, 6))
        self.records.append(stamped)
        self._file.write(LINE.dump_json(stamped, exclude_defaults=False) + b"\n")

    def close(self) -> None:
        """Ends the history."""
        self._file.close()


@contextmanager
def recording(path: Path) -> Iterator[Recorder]:
    """Records into a file while the block runs."""
    recorder = Recorder(path)
    try:
        yield recorder
    finally:
        recorder.close()


@dataclass
class Trainer:
    """A training process, as it was seen."""

    job: str
    instance: str
    began: TrainerBegan | None = None
    settled: list[TrainerSettled] = field(default_factory=list)
    in_force: list[InForce] = field(default_factory=list)
    ended: TrainerEnded | None = None

    def has_applied(self, settled: TrainerSettled) -> bool:
        """Whether this says that it has applied something itself.

        Not what another process has done, of which it only tells: it is in its checkpoint, or was
        left to it. What is in its checkpoint, with the outcome still to come, counts as its own.
        """
        mine = settled.outcome.instance == self.instance or settled.revision in self.unverified
        return settled.outcome.result == "applied" and mine

    @cached_property
    def applied(self) -> list[TrainerSettled]:
        """What it says it applied, in the order in which it came into force; each once."""
        first = {s.revision: s for s in reversed(self.settled) if self.has_applied(s)}
        return sorted(first.values(), key=lambda s: (s.outcome.step, s.revision))

    def contains(self, revision: int) -> bool:
        """Whether the checkpoint that it began from has an update in force."""
        ranges = self.began.contains if self.began else ()
        return any(first <= revision <= last for first, last in ranges)

    @property
    def unverified(self) -> tuple[int, ...]:
        """What its checkpoint has in force besides, with the outcome still to come."""
        return self.began.unverified if self.began else ()

    @property
    def went_back(self) -> int:
        """Revision of the roll back that it comes from; 0: it comes from none."""
        return self.began.roll_back if self.began else 0

    def values(self) -> list[dict[str, Number | None]]:
        """All values, at the beginning and after each of `applied`."""
        now: dict[str, Number | None] = dict(self.began.values) if self.began else {}
        states = [now]
        for each in self.applied:
            now = now | {move.parameter: move.new for move in each.outcome.moves}
            states.append(now)
        return states


class History:
    """What was seen, with what validators look up in it."""

    def __init__(self, records: Iterable[AnyRecord]) -> None:
        self.records = list(records)

    @classmethod
    def load(cls, path: Path) -> History:
        """Reads a recorded history.

        Raises:
            OSError: The file can not be read.
            pydantic.ValidationError: A line is no record.
        """
        with path.open("rb") as lines:
            return cls(LINE.validate_json(line) for line in lines)

    def of(self, kind: type[R]) -> list[R]:
        """Records of one kind."""
        return [record for record in self.records if isinstance(record, kind)]

    @cached_property
    def asked(self) -> dict[int, Asked]:
        """Requests, by the number of the call."""
        return {record.call: record for record in self.of(Asked)}

    @cached_property
    def answers(self) -> list[tuple[Asked, Answered]]:
        """Requests that were answered OK, with the answers."""
        return [(self.asked[a.call], a) for a in self.of(Answered) if a.call in self.asked]

    @cached_property
    def requests(self) -> dict[tuple[str, int], Asked]:
        """What was asked for first that an update was the answer to, by job and revision."""
        found: dict[tuple[str, int], Asked] = {}
        for asked, answered in self.answers:
            if asked.method != "cancel":
                for job, revision in answered.revisions.items():
                    found.setdefault((job, revision), asked)
        return found

    @cached_property
    def stored(self) -> dict[tuple[str, int], StoredUpdate]:
        """Updates in the store, by job and revision."""
        return {(record.job, record.revision): record for record in self.of(StoredUpdate)}

    @cached_property
    def hellos(self) -> dict[int, Hello]:
        """Sessions, by their numbers."""
        return {record.session: record for record in self.of(Hello)}

    def job_of(self, session: int) -> str:
        """The job of a session; empty: it is not known."""
        hello = self.hellos.get(session)
        return hello.job if hello is not None else ""

    @cached_property
    def epochs(self) -> dict[int, int]:
        """Epochs of the sessions that were welcomed."""
        return {record.session: record.epoch for record in self.of(Welcomed)}

    @cached_property
    def trainers(self) -> list[Trainer]:
        """Training processes, in the order in which they began."""
        found: dict[str, Trainer] = {}

        def of(record: TrainerBegan | TrainerSettled | InForce | TrainerEnded) -> Trainer:
            return found.setdefault(record.instance, Trainer(record.job, record.instance))

        for record in self.records:
            match record:
                case TrainerBegan():
                    of(record).began = record
                case TrainerSettled():
                    of(record).settled.append(record)
                case InForce():
                    of(record).in_force.append(record)
                case TrainerEnded():
                    of(record).ended = record
                case _:
                    pass
        return list(found.values())

    def applied_by(self, trainer: Trainer) -> Trainer:
        """A training process with all that it applied, also where only those after it say so."""
        told = [
            each
            for other in self.trainers
            if other.job == trainer.job
            for each in other.settled
            if each.outcome.instance == trainer.instance or each.revision in trainer.unverified
        ]
        return replace(trainer, settled=[*trainer.settled, *told])

    @cached_property
    def trainer(self) -> dict[str, Trainer]:
        """Training processes by their instance ids."""
        return {each.instance: each for each in self.trainers}

    @cached_property
    def newest(self) -> dict[str, Trainer]:
        """The newest training process of each job."""
        return {each.job: each for each in self.trainers}

    @cached_property
    def updates_of(self) -> dict[str, list[StoredUpdate]]:
        """Updates in the store by job, oldest first; as often as they are there."""
        found: defaultdict[str, list[StoredUpdate]] = defaultdict(list)
        for record in sorted(self.of(StoredUpdate), key=lambda update: update.revision):
            found[record.job].append(record)
        return found
