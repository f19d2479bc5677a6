"""Many runs, several at once, each in a process that has servers and a database to itself."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

import structlog

from tests.faults.engagement import NotSettledError, Setup, engage
from tests.faults.history import History, recording
from tests.faults.records import Missed, StoredJob, StoredUpdate
from tests.faults.report import begun, done, lacking, late_lies, unexpected
from tests.faults.validators import validate
from tests.support.postgres import PostgresServer


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one run.

    Attributes:
        setup: What it was like.
        seconds: What it took.
        faults: How often each fault was there.
        missed: How often one was tried besides, and met nothing.
        late_lies: How often an older session has told a lie.
        updates: Updates in the store at the end, by state.
        begun: Training processes, by how they began.
        troubles: What must not be, in words; empty: all is well.
        history: Where the history lies; None: it was thrown away, as all is well.
    """

    setup: Setup
    seconds: float
    faults: Counter[str]
    missed: Counter[str]
    late_lies: int
    updates: Counter[str]
    begun: Counter[str]
    troubles: tuple[str, ...]
    history: Path | None


@dataclass
class Tally:
    """What came of many runs."""

    runs: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    late_lies: int = 0
    updates: Counter[str] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)
    bad: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Adds one more."""
        self.runs += 1
        self.seconds += result.seconds
        self.faults += result.faults
        self.missed += result.missed
        self.late_lies += result.late_lies
        self.updates += result.updates
        self.begun += result.begun
        if result.troubles:
            self.bad.append(result)


def campaign(
    setups: Iterable[Setup], output: Path, *, at_once: int, end: float | None, keep: bool
) -> Iterator[Result]:
    """Has runs, and yields what came of each as it ends.

    Args:
        setups: What they are like; drawn from as they are begun.
        output: Where histories are written.
        at_once: How many at a time.
        end: Moment of the monotonic clock at which no more are begun; None: as many as there are.
        keep: Keep the histories of those too that went well.
    """
    coming = iter(setups)
    with ProcessPoolExecutor(
        at_once, multiprocessing.get_context("spawn"), initializer=prepare
    ) as pool:
        running: set[Future[Result]] = set()
        try:
            while True:
                while len(running) < at_once and (end is None or time.monotonic() < end):
                    setup = next(coming, None)
                    if setup is None:
                        break
                    running.add(pool.submit(have_run, setup, output, keep=keep))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            for each in running:
                each.cancel()


def history_of(setup: Setup, output: Path) -> Path:
    """Where the history of a run is written."""
    return output / f"{'postgresql' if setup.postgres else 'sqlite'}-{setup.seed}.jsonl"


def have_run(setup: Setup, output: Path, *, keep: bool) -> Result:
    """Has one run in this process, and checks it."""
    start = time.monotonic()
    path = history_of(setup, output)
    troubles: list[str] = []
    with recording(path) as recorder:
        try:
            _runner().run(engage(setup, recorder, _postgres() if setup.postgres else None))
        except NotSettledError as error:
            troubles.append(f"not settled: {error}")
        except Exception:  # noqa: BLE001 - told with what else there is to tell
            # Perhaps the run's own fault: it is looked at, and does not end the others.
            troubles.append(traceback.format_exc())
    history = History(recorder.records)
    if any(history.of(StoredJob)):  # else nobody has looked into the store
        troubles += map(str, validate(history))
    troubles += (f"nobody should see: {failed}" for failed in unexpected(history))
    if not troubles:
        troubles += lacking(history)
    if not troubles and not keep:
        path.unlink()
    return Result(
        setup,
        time.monotonic() - start,
        done(history),
        Counter(fault.fault for fault in history.of(Missed)),
        late_lies(history),
        Counter(update.state for update in history.of(StoredUpdate)),
        begun(history),
        tuple(troubles),
        path if troubles or keep else None,
    )


@cache
def _runner() -> asyncio.Runner:
    """The one of this process: gRPC clings to the first loop that it sees."""
    return asyncio.Runner()


@cache
def _postgres() -> PostgresServer:
    """The one of this process."""
    server = PostgresServer()
    Finalize(None, server.end, exitpriority=10)
    return server


def prepare() -> None:
    """Prepares a process that has runs."""
    # What agents say of each reconnect is of no use here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
