"""Many light jobs in one process."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, overload

from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.identity import check_job_id
from trainer_agent.simulate.channels import SharedChannels
from trainer_agent.simulate.job import LightJob, new_agent_id
from trainer_agent.simulate.spec import LightJobSpec

if TYPE_CHECKING:
    from types import TracebackType

    from trainer_agent.parameters import Value

CONNECTING_AT_ONCE: Final = 64
"""Sessions being opened at once while the jobs start: a server refuses thousands at once."""

_LOOK: Final = 0.01
_ENDING_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True)
class Totals:
    """What light jobs have come to together.

    Attributes:
        jobs: How many there are.
        started: How many have begun to train.
        connected: How many have a session right now.
        finished: How many have ended.
        paused: How many are held.
        steps: Steps done.
        applied: Updates applied.
        rejected: Updates rejected.
        other: Updates that expired or were withdrawn.
        sessions: Sessions opened, reconnects included.
    """

    jobs: int = 0
    started: int = 0
    connected: int = 0
    finished: int = 0
    paused: int = 0
    steps: int = 0
    applied: int = 0
    rejected: int = 0
    other: int = 0
    sessions: int = 0

    def __add__(self, more: Totals) -> Totals:
        return Totals(
            *(getattr(self, name) + getattr(more, name) for name in Totals.__dataclass_fields__)
        )


class LightJobs(Sequence[LightJob]):
    """Light jobs ``{prefix}-00000``, ``{prefix}-00001`` …, all alike but for their names and seeds.

    A context manager: inside of it all of them train and have a session.
    """

    def __init__(
        self,
        control_plane: str,
        count: int = 1,
        *,
        prefix: str = "light",
        first: int = 0,
        labels: Mapping[str, str] | None = None,
        method: str = "sft",
        step_time: float = 0.1,
        max_steps: int | None = None,
        report_every: float = 1.0,
        seed: int | None = None,
        values: Mapping[str, Value] | None = None,
        metrics: Sequence[str] | None = None,
        connections: int | None = None,
        ready_within: float = 60.0,
    ) -> None:
        """Prepares jobs.

        Args:
            control_plane: Its address.
            count: How many jobs.
            prefix: What their names begin with.
            first: Number of the first one, where several processes share the work.
            labels: Labels of all of them.
            method: Training method of all of them.
            step_time: Seconds that a step takes.
            max_steps: Steps until a job ends by itself; None: it does not.
            report_every: Seconds between two reported steps.
            seed: The same seed gives the same losses; None: different ones every time.
            values: What can be changed live, with what it begins with; None: the usual.
            metrics: What is reported with a step; None: all there is.
            connections: Connections that the sessions share; None: each has its own, as real
                agents have.
            ready_within: Seconds within which all have to have a session; for ``async with``.

        Raises:
            ValueError: Something of it can not be.
        """
        if count < 1:
            raise ValueError(f"there has to be at least one job, got {count}")
        if connections is not None and connections < 1:
            raise ValueError(f"there has to be at least one connection, got {connections}")
        check_job_id(f"{prefix}-{first + count - 1:05d}", "the name of a job")
        self._ready_within = ready_within
        self._channels = None if connections is None else SharedChannels(connections)
        self._changed = asyncio.Event()
        self._started = 0
        version, host = _version(), socket.gethostname()
        base = time.time_ns() if seed is None else seed
        optional: dict[str, Any] = {} if values is None else {"values": dict(values)}
        if metrics is not None:
            optional["metrics"] = tuple(metrics)
        self._jobs = [
            LightJob(
                LightJobSpec(
                    job_id=f"{prefix}-{number:05d}",
                    control_plane=control_plane,
                    labels=dict(labels or {}),
                    method=method,
                    step_time=step_time,
                    max_steps=max_steps,
                    report_every=report_every,
                    seed=f"{base}/{number}",
                    **optional,
                ),
                AgentIdentity(new_agent_id(), version, host),
                open_channel=None if self._channels is None else self._channels.open,
                changed=self._changed.set,
            )
            for number in range(first, first + count)
        ]

    @overload
    def __getitem__(self, index: int) -> LightJob: ...
    @overload
    def __getitem__(self, index: slice) -> list[LightJob]: ...
    def __getitem__(self, index: int | slice) -> LightJob | list[LightJob]:
        """Returns a job, or several."""
        return self._jobs[index]

    def __len__(self) -> int:
        """Returns how many jobs there are."""
        return len(self._jobs)

    def __iter__(self) -> Iterator[LightJob]:
        """Returns the jobs, one after the other."""
        return iter(self._jobs)

    def totals(self) -> Totals:
        """Returns what they have come to together."""
        return Totals(
            jobs=len(self._jobs),
            started=self._started,
            connected=sum(job.connected for job in self._jobs),
            finished=sum(job.finished for job in self._jobs),
            paused=sum(job.paused for job in self._jobs),
            steps=sum(job.step for job in self._jobs),
            applied=self._ended_so("applied"),
            rejected=self._ended_so("rejected"),
            other=self._ended_so("expired") + self._ended_so("withdrawn"),
            sessions=sum(job.sessions for job in self._jobs),
        )

    def _ended_so(self, result: str) -> int:
        return sum(job.counts.get(result, 0) for job in self._jobs)

    # ------------------------------------------------------------------------- beginning and end

    async def __aenter__(self) -> LightJobs:
        try:
            async with asyncio.timeout(self._ready_within):
                await self.start()
        except TimeoutError:
            trouble = next((job for job in self._jobs if not job.connected), self._jobs[0])
            await self.kill()
            raise TimeoutError(
                f"{self.totals().sessions} of {len(self)} light jobs had a session after "
                f"{self._ready_within:g} s; for instance {trouble!r}"
            ) from None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end()

    async def start(self) -> None:
        """Starts all, some at once, and waits until each has had a session."""
        waiting: list[LightJob] = []
        for job in self._jobs:
            while len(waiting) >= CONNECTING_AT_ONCE:
                await asyncio.sleep(_LOOK)
                waiting = [each for each in waiting if not each.sessions]
            job.start()
            waiting.append(job)
            self._started += 1
        while waiting:
            await asyncio.sleep(_LOOK)
            waiting = [each for each in waiting if not each.sessions]

    async def end(self, timeout: float = 5.0) -> None:
        """Ends all that have been started; tells the control plane so, within bounds.

        Args:
            timeout: Longest time for each to deliver what is left, in seconds.
        """
        room = asyncio.Semaphore(_ENDING_AT_ONCE)

        async def end(job: LightJob) -> None:
            async with room:
                await job.end(timeout)

        ends = [end(job) for job in self._jobs[: self._started]]
        errors = await asyncio.gather(*ends, return_exceptions=True)
        for error in errors:
            if error is not None:
                raise error

    async def kill(self) -> None:
        """Ends all at once, and tells nobody."""
        await asyncio.gather(*(job.kill() for job in self._jobs[: self._started]))

    # ------------------------------------------------------------------------------------ waiting

    async def until(self, condition: Callable[[], bool], timeout: float | None = 30.0) -> None:
        """Waits until something holds, which is looked at soon after something has changed.

        Args:
            condition: What has to hold.
            timeout: Longest wait, in seconds; None: for ever.

        Raises:
            TimeoutError: It does not hold by then; tells where the jobs stand.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK * 10):
                            await self._changed.wait()
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise TimeoutError(f"not within {timeout} s: {self.totals()}") from None

    async def connected(self, timeout: float = 30.0) -> None:
        """Waits until every job that has not ended has a session.

        Raises:
            TimeoutError: Not all have one by then.
        """
        await self.until(lambda: all(job.connected or job.finished for job in self._jobs), timeout)


def _version() -> str:
    try:
        return importlib.metadata.version("midcourse")
    except importlib.metadata.PackageNotFoundError:
        return ""  # run from a source tree that is not installed: unknown
