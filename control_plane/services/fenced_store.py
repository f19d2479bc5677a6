"""The store as one session uses it: fenced by its epoch, and patient while the store is away."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, TypeVar

import structlog

from control_plane.domain.access import outside
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.session import fenced, superseded
from control_plane.services.bus import JOBS, updates_topic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from control_plane.domain.job import Job
    from control_plane.services.admission import Admission
    from control_plane.services.ports import Transaction
    from control_plane.services.session_parts import SessionParts

T = TypeVar("T")

FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 2.0

_log: FilteringBoundLogger = structlog.get_logger(__name__)


def tell_nobody(*_what: object) -> None:
    """Takes the place of what a session is told by, once it has ended.

    The session holds whoever tells it: free of each other, they wait for no collector of garbage.
    """


class FencedStore:
    """The store as one session uses it, for as long as that is the one that is served.

    Attributes:
        job_id: The job.
        job_key: Its key: a job that is deleted and made anew has another one.
        instance_id: The training process.
        epoch: The session.
        listens_since: When the session last began to listen, in steady seconds; not while it waits
            for the store.
    """

    __slots__ = (
        "_parts",
        "_scope",
        "_waiting",
        "epoch",
        "instance_id",
        "job_id",
        "job_key",
        "listens_since",
    )

    def __init__(self, parts: SessionParts, admission: Admission) -> None:
        """Begins with what the store said of the session."""
        self._parts = parts
        # Of the agent that is being served here and now; its writes are done elsewhere.
        self._scope = parts.scope_now()
        self._waiting = 0
        self.job_id = admission.job.id
        self.job_key = admission.job.key
        self.instance_id = admission.run.instance_id
        self.epoch = admission.job.session.epoch if admission.job.session else 0
        self.listens_since = parts.telemetry.steady()

    def job(self, tx: Transaction) -> Job:
        """The job, if this session is still the one that is served.

        Raises:
            Refusal: SESSION_FENCED, INSTANCE_SUPERSEDED, JOB_DELETED, or OUT_OF_SCOPE if it is
                not among the agent's jobs any more: somebody has changed its labels.
        """
        job = tx.job(self.job_id)
        if job is None or job.key != self.job_key:
            raise Refusal(Reason.JOB_DELETED, f"job {self.job_id!r} was deleted by an operator")
        session = job.session
        if session is not None and session.instance_id != self.instance_id:
            raise superseded(job)
        if session is None or session.epoch != self.epoch:
            raise fenced(self.job_id, self.epoch, session.epoch if session else 0)
        if not self._scope.is_everything and not self._scope.has(job.id, job.selectable()):
            raise outside(job.id, self._scope)
        return job

    async def write(self, work: Callable[[Transaction, Job], T]) -> T:
        """Runs `work` of the job in a transaction; returns its result after the commit."""
        result = await self.patiently(
            lambda: self._parts.store.write(lambda tx: work(tx, self.job(tx)))
        )
        self.notify()
        return result

    async def write_joined(self, work: Callable[[Transaction, Job], T]) -> T:
        """Like `write`, together with what other sessions write at the same time."""
        return await self.patiently(lambda: self.ask(work))

    def ask(self, work: Callable[[Transaction, Job], T]) -> asyncio.Future[T]:
        """Has `work` run soon, once, together with what other sessions write."""
        return self._parts.writes.ask(self.job_id, lambda tx: work(tx, self.job(tx)))

    def notify(self) -> None:
        """Tells that something of the job has been written."""
        self._parts.bus.notify(updates_topic(self.job_id))
        self._parts.bus.notify(JOBS)

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call that may be made again, once the store is there.

        The stream stays meanwhile; what the agent says then waits in the stream, and in
        the agent, both of which are bounded.
        """
        try:
            return await call()
        except Refusal as refusal:
            if refusal.reason is not Reason.STORE_UNAVAILABLE:
                raise
            _log.warning("a session waits for the store", job=self.job_id, error=refusal.message)
        with self.deaf():
            bound = FIRST_RETRY_SECONDS
            while True:
                await asyncio.sleep(random.uniform(0.5, 1) * bound)  # noqa: S311 - spreads the load, no secret
                bound = min(2 * bound, LONGEST_RETRY_SECONDS)
                try:
                    return await call()
                except Refusal as refusal:
                    if refusal.reason is not Reason.STORE_UNAVAILABLE:
                        raise

    @property
    def is_deaf(self) -> bool:
        """Whether the session does not listen at present, so that silence means nothing."""
        return self._waiting > 0

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """While the block runs, the session does not listen."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            self.listens_since = self._parts.telemetry.steady()
