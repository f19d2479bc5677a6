"""Against a loop that polls: every ten steps it reads its settings from a SQLite database.

Steps take 100 ms. Those of the loops that poll are waits and nothing else, as for a GPU, so that
several of them run side by side at no cost; what they read is committed with fsync, by another
connection, at a time that has nothing to do with their steps. Ours is a real Trainer, and while the
others poll, what its agent takes at ten steps a second is looked at.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from midcourse.control.v1 import control_pb2 as api
from midcourse.control.v1 import update_pb2
from midcourse.control.v1.control_pb2_grpc import ControlPlaneServiceStub
from tests.bench.live_update import JOB, NOTES, steered_run
from tests.bench.noting import read
from tests.bench.report import Row, percentile
from tests.bench.scale_load import cpu_seconds, rss_kilobytes

STEP_SECONDS = 0.1
STEPS_PER_POLL = 10
LOOPS = 8
GOAL_TIMES = 100
GOAL_AGENT_MEGABYTES = 60
GOAL_AGENT_PERCENT = 1


@dataclass
class PollingLoop:
    """A training loop without training, that reads its setting every ten steps."""

    path: Path
    job: int
    end: threading.Event
    taken: list[float] = field(default_factory=list)
    asked: int = 0
    """When the setting that it has not got yet was asked for, in nanoseconds; 0: it has it."""

    def run(self) -> None:
        """Trains until the end."""
        in_force = 0
        begun = time.monotonic() + random.uniform(0, STEP_SECONDS * STEPS_PER_POLL)
        with closing(sqlite3.connect(self.path, timeout=30)) as database:
            step = 0
            while not self.end.wait(max(0.0, begun + step * STEP_SECONDS - time.monotonic())):
                step += 1
                if step % STEPS_PER_POLL:
                    continue
                query = "SELECT value FROM settings WHERE job = ?"
                (value,) = database.execute(query, (self.job,)).fetchone()
                if value != in_force:
                    in_force = value
                    self.taken.append((time.time_ns() - self.asked) / 1e6)
                    self.asked = 0


def measure_polling(path: Path, seconds: float) -> list[float]:
    """Milliseconds from a call until the loop has what was asked for, and uses it."""
    end = threading.Event()
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE settings (job INTEGER PRIMARY KEY, value INTEGER)")
        database.executemany("INSERT INTO settings VALUES (?, 0)", [(job,) for job in range(LOOPS)])
        loops = [PollingLoop(path, job, end) for job in range(LOOPS)]
        threads = [threading.Thread(target=loop.run, daemon=True) for loop in loops]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds
        number = 0
        while time.monotonic() < until:
            time.sleep(random.uniform(0, 2 * STEP_SECONDS))
            free = [loop for loop in loops if not loop.asked]
            if free:
                loop, number = random.choice(free), number + 1
                loop.asked = time.time_ns()
                database.execute("UPDATE settings SET value = ? WHERE job = ?", (number, loop.job))
        end.set()
        for thread in threads:
            thread.join()
    return [each for loop in loops for each in loop.taken]


def measure_ours(
    stub: ControlPlaneServiceStub, notes: Path, count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds from a call until the trainer has been given it, and until it uses it."""
    calls, applied = [], []
    for number in range(count):
        time.sleep(random.uniform(0, STEP_SECONDS))
        request = api.UpdateParametersRequest(job=f"jobs/{JOB}")
        change = request.spec.changes.add(parameter="learning_rate")
        change.set.value.number = 1e-3 if number % 2 else 2e-3
        calls.append(time.time_ns())
        revision = stub.UpdateParameters(request).update.revision
        wait = api.WaitUpdateRequest(name=f"jobs/{JOB}/updates/{revision}")
        update = stub.WaitUpdate(wait, timeout=30).update
        assert update.state == update_pb2.UPDATE_STATE_APPLIED, update
        applied.append((update.applied.apply_time.ToNanoseconds() - calls[-1]) / 1e6)
    given = [at for at, name in read(notes) if name == "agent.passed_on"]
    arrived = [(next(at for at in given if at > called) - called) / 1e6 for called in calls]
    return arrived, applied


def rows(directory: Path, *, quick: bool) -> Iterator[Row]:
    """The rows of the comparison with polling."""
    with steered_run(directory, str(STEP_SECONDS), noting=True) as run:
        used, begun = cpu_seconds(run.agent), time.monotonic()
        polled = measure_polling(directory / "settings.db", 8 if quick else 60)
        share = (cpu_seconds(run.agent) - used) / (time.monotonic() - begun)
        resident = rss_kilobytes(run.agent) / 1e3
        arrived, applied = measure_ours(run.stub, directory / NOTES, 25 if quick else 200)
    yield Row("agent process, resident memory", "MB", None, resident, GOAL_AGENT_MEGABYTES)
    yield Row(
        "agent process, processor time at 10 steps a second",
        "% of a core",
        None,
        share * 100,
        GOAL_AGENT_PERCENT,
        "with a heartbeat a second",
    )
    peer = percentile(polled, 50)
    yield Row(
        "new value is with the trainer, steps of 100 ms, p50",
        "ms",
        None,
        percentile(arrived, 50),
        peer / GOAL_TIMES,
        f"polling every ten steps: {peer / percentile(arrived, 50):,.0f} × longer; "
        f"goal {GOAL_TIMES} ×",
        peer,
    )
    yield Row(
        "new value is applied, steps of 100 ms, p50",
        "ms",
        None,
        percentile(applied, 50),
        None,
        f"both wait for the end of a step: {peer / percentile(applied, 50):.3g} × sooner",
        peer,
    )
