"""What each kind of fault does; whatever it breaks is mended when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from grpc_runtime import failpoints
from tests.faults.callers import Servers
from tests.faults.cluster import Cluster, Replica
from tests.faults.impostor import pretend
from tests.faults.process_job import ProcessJob
from tests.faults.proxy import Cut, Direction, Place, Trickle
from tests.faults.records import Fault, Missed
from tests.faults.schedule import FaultKind, Planned
from tests.faults.trainers import RecordedJob

READY_SECONDS = 60.0
OFFSETS = (-7_200.0, -3_600.0, -90.0, 90.0, 3_600.0, 7_200.0)
"""By how many seconds clocks are set forward or back."""
SERVER_POINTS = tuple(
    name for name in failpoints.POINTS if name.partition(".")[0] in {"commit", "wakeup", "session"}
)


class Breaker:
    """Breaks parts of a run.

    Args:
        cluster: The servers.
        servers: Connections to them.
        jobs: The light jobs, by name.
        processes: The jobs that are processes.
        kept: Those of which nobody withdraws updates.
        start_job: Starts a job anew.
        end: Moment of the monotonic clock at which there are to be no faults any more.
    """

    def __init__(
        self,
        cluster: Cluster,
        servers: Servers,
        jobs: Mapping[str, RecordedJob],
        processes: Sequence[ProcessJob],
        kept: frozenset[str],
        start_job: Callable[[str], None],
        end: float,
    ) -> None:
        self._cluster = cluster
        self._servers = servers
        self._jobs = jobs
        self._processes = processes
        self._kept = sorted(kept)
        self._start_job = start_job
        self._end = end

    async def run(self, planned: Planned) -> None:
        """Breaks one thing, and mends it."""
        replica = self._cluster.whole_replica(planned.target)
        rng = random.Random(planned.target)
        match planned.kind:
            case FaultKind.RESTART_DATABASE | FaultKind.CRASH_DATABASE:
                self._note(planned)
                crash = planned.kind is FaultKind.CRASH_DATABASE
                number = signal.SIGQUIT if crash else signal.SIGINT
                await self._cluster.restart_postgres(number, planned.lasting)
            case FaultKind.KILL_BACKEND:
                self._note(planned)
                self._has_met(planned, await self._cluster.kill_backend(planned.target))
            case FaultKind.STOP_DATABASE:
                self._note(planned)
                stopped = await self._cluster.stop_backend(planned.target, planned.lasting)
                self._has_met(planned, stopped)
            case FaultKind.READ_ONLY:
                self._note(planned)
                async with self._cluster.read_only_database():
                    await asyncio.sleep(planned.lasting)
            case FaultKind.DATABASE_FULL:
                self._note(planned)
                async with self._cluster.full_database():
                    await asyncio.sleep(planned.lasting)
            case FaultKind.LOCK:
                self._note(planned)
                async with self._cluster.locked_database():
                    await asyncio.sleep(planned.lasting)
            case FaultKind.KILL_TRAINER:
                job = self._job(planned, sorted(self._jobs))
                if not job.finished and not job.went_back:
                    self._note(planned, job.job_id)
                    await job.kill()
                    await asyncio.sleep(planned.lasting)
                    self._start_job(job.job_id)
            case FaultKind.KILL_PROCESS:
                process = self._process(planned)
                self._note(planned, process.job_id)
                self._has_met(planned, process.kill(planned.lasting))
            case FaultKind.KILL_AGENT:
                process = self._process(planned)
                self._note(planned, process.job_id)
                self._has_met(planned, process.signal_agent(signal.SIGKILL))
            case FaultKind.STOP_PROCESS | FaultKind.STOP_AGENT:
                process = self._process(planned)
                self._note(planned, process.job_id)
                agent = planned.kind is FaultKind.STOP_AGENT
                with process.standing_still(agent=agent) as stands_still:
                    self._has_met(planned, stands_still)
                    await asyncio.sleep(planned.lasting)
            case FaultKind.IMPOSTOR:
                job = self._job(planned, self._kept)
                if job.ear is not None and job.ear.hello is not None:
                    self._note(planned, job.job_id)
                    several = len(self._cluster.replicas) > 1
                    stop = several and planned.lasting > 0.7 and not replica.fault.locked()
                    still = _alone_and_standing_still(replica) if stop else None
                    to = replica.address
                    lied = await pretend(job, job.ear.hello, to, self._servers, still)
                    self._has_met(planned, lied)
            case FaultKind.CUT:
                direction, place = rng.choice(list(Direction)), rng.choice(list(Place))
                cut = Cut(direction, rng.randint(1, 6), place, rng.random() < 0.5)
                self._note(planned, f"{replica.address}: {cut}")
                replica.proxy.cuts.append(cut)
                await asyncio.sleep(planned.lasting)
                self._has_met(planned, cut not in replica.proxy.cuts)
                with contextlib.suppress(ValueError):
                    replica.proxy.cuts.remove(cut)
            case FaultKind.CLOCK:
                offset = rng.choice(OFFSETS)
                self._note(planned, f"{replica.address}: {offset:+g} s")
                replica.clock.set(offset)
                await asyncio.sleep(planned.lasting)
                replica.clock.set(0.0)
            case _:
                async with replica.fault:
                    if time.monotonic() <= self._end:  # else the fault before took long
                        await self._break_replica(planned, replica, rng)

    async def _break_replica(self, planned: Planned, replica: Replica, rng: random.Random) -> None:
        lasting, proxy = planned.lasting, replica.proxy
        if planned.kind is FaultKind.FAILPOINT:
            await self._crash(planned, replica, rng)
            return
        self._note(planned, replica.address)
        match planned.kind:
            case FaultKind.KILL_REPLICA | FaultKind.END_REPLICA:
                killed = planned.kind is FaultKind.KILL_REPLICA
                await replica.end(signal.SIGKILL if killed else signal.SIGTERM)
                await asyncio.sleep(lasting)
                await replica.restart(READY_SECONDS)
            case FaultKind.STOP_REPLICA:
                with _standing_still(replica):
                    await asyncio.sleep(lasting)
            case FaultKind.RESET | FaultKind.CLOSE:
                await proxy.end_all(reset=planned.kind is FaultKind.RESET)
            case FaultKind.FREEZE:
                async with proxy.frozen():
                    await asyncio.sleep(lasting)
            case FaultKind.DEAF:
                async with proxy.deaf(*Direction):
                    await asyncio.sleep(lasting)
            case FaultKind.HALF_DEAF:
                async with proxy.deaf(rng.choice(list(Direction))):
                    await asyncio.sleep(lasting)
            case FaultKind.TRICKLE:
                async with proxy.slow(Trickle(rng.randint(1, 200), rng.uniform(0.001, 0.02))):
                    await asyncio.sleep(lasting)
            case FaultKind.DISK_FAILS:
                with replica.no_room():
                    await asyncio.sleep(lasting)
            case FaultKind.DISK_FULL:
                with replica.full_disk():
                    await asyncio.sleep(lasting)
            case other:
                raise AssertionError(f"nothing is known of this fault: {other}")

    async def _crash(self, planned: Planned, replica: Replica, rng: random.Random) -> None:
        spec = f"{rng.choice(SERVER_POINTS)}=crash@{rng.randint(1, 12)}"
        self._note(planned, f"{replica.address}: {spec}")
        self._has_met(planned, await replica.crash(spec, 0.5 + planned.lasting))
        replica.kill()
        await replica.restart(READY_SECONDS)

    def _job(self, planned: Planned, names: list[str]) -> RecordedJob:
        return self._jobs[names[planned.target % len(names)]]

    def _process(self, planned: Planned) -> ProcessJob:
        return self._processes[planned.target % len(self._processes)]

    def _note(self, planned: Planned, target: str = "") -> None:
        self._servers.recorder.add(Fault(fault=planned.kind.value, target=target))

    def _has_met(self, planned: Planned, something: bool) -> None:
        if not something:
            self._servers.recorder.add(Missed(fault=planned.kind.value))


@contextlib.asynccontextmanager
async def _alone_and_standing_still(replica: Replica) -> AsyncIterator[None]:
    async with replica.fault:
        with _standing_still(replica):
            yield


@contextlib.contextmanager
def _standing_still(replica: Replica) -> Iterator[None]:
    replica.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        replica.signal(signal.SIGCONT)
