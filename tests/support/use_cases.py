"""The control plane's use cases on a real store, with a clock that tests move; no server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job, Progress
from control_plane.domain.session import Heartbeat, MetricColumn, Phase
from control_plane.domain.update import Update, UpdateSpec
from control_plane.services.agent_session import AgentSession, Received
from control_plane.services.batches import BatchService
from control_plane.services.bus import LocalBus
from control_plane.services.history import HistoryQuery, HistoryService
from control_plane.services.jobs import JobService
from control_plane.services.metrics import MetricsService
from control_plane.services.outbox import Delivery, ServerMessage, Welcome
from control_plane.services.ports import Store, Transaction
from control_plane.services.records import Event
from control_plane.services.session_parts import SessionLimits
from control_plane.services.sessions import SessionService
from control_plane.services.telemetry import TelemetryHub
from control_plane.services.updates import Submission, UpdateService
from control_plane.services.upkeep import Retention, Upkeep
from control_plane.services.watch import WatchService
from control_plane.store import open_store
from tests.support.domain_values import NOW, hello

T = TypeVar("T")
M = TypeVar("M", bound=ServerMessage)

MICROS = int(NOW.timestamp() * 1e6)
"""When samples are taken, unless said otherwise."""


async def eventually(condition: Callable[[], T | None], what: str, seconds: float = 20.0) -> T:
    """Waits until a condition gives something true, and returns it."""
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        if result := condition():
            return result
        await asyncio.sleep(0.002)  # between two looks
    raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")


@dataclass
class Clock:
    """A time that stands until it is moved."""

    now: datetime = NOW
    passed: float = 0.0

    def __call__(self) -> datetime:
        return self.now

    def steady(self) -> float:
        return self.passed

    def advance(self, seconds: float) -> None:
        self.passed += seconds
        self.set(seconds)

    def set(self, seconds: float) -> None:
        """Somebody sets it forward, or back, in no time."""
        self.now += timedelta(seconds=seconds)


@dataclass
class FailingStore:
    """A store that can be away; while `held` is set, writes wait."""

    inner: Store
    away: bool = False
    writes: int = 0
    refused: int = 0
    held: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.held.set()

    async def write(self, work: Callable[[Transaction], T]) -> T:
        self._check()
        self.writes += 1
        await self.held.wait()
        return await self.inner.write(work)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        self._check()
        return await self.inner.read(work)

    @property
    def replica(self) -> str:
        return self.inner.replica

    @property
    def is_shared(self) -> bool:
        return self.inner.is_shared

    async def follow(self, heard: Callable[[Sequence[Event] | None], None]) -> None:
        await self.inner.follow(heard)

    async def close(self) -> None:
        await self.inner.close()

    def _check(self) -> None:
        if self.away:
            self.refused += 1
            raise Refusal(Reason.STORE_UNAVAILABLE, "the disk is full", retry_delay=0.1)


class UseCases:
    """All of them, on one store."""

    def __init__(self, store: Store, clock: Clock, **options: Any) -> None:
        self.store = FailingStore(store)
        self.clock = clock
        self.bus = LocalBus()
        self.telemetry = TelemetryHub(
            self.store,
            clock,
            flush_interval=options.pop("flush_interval", 0.0),
            max_pending_samples=options.pop("max_pending_samples", 1_000),
            steady=clock.steady,
        )
        max_open = options.pop("max_open_updates", 100)
        retention = options.pop("retention", Retention(None, None))
        self.limits = SessionLimits(**options)
        self.sessions = SessionService(self.store, clock, self.bus, self.telemetry, self.limits)
        self.jobs = JobService(self.store, clock, self.bus, self.telemetry, self.sessions.connected)
        self.updates = UpdateService(
            self.store, clock, self.bus, self.telemetry, max_open_updates=max_open
        )
        self.batches = BatchService(
            self.store, clock, self.bus, self.telemetry, max_open_updates=max_open
        )
        self.history = HistoryService(self.store)
        self.metrics = MetricsService(self.store, self.telemetry)
        self.watches = WatchService(self.store, self.bus, self.jobs, self.telemetry)
        self.upkeep = Upkeep(self.store, clock, self.sessions, self.updates, self.jobs, retention)

    # Shorthands.

    async def drain(self) -> None:
        """What a server does when it begins to shut down."""
        self.bus.drain()
        await self.sessions.drain()

    async def session(self, *args: Any, **kwargs: Any) -> AgentSession:
        """Opens a session with `hello(*args, **kwargs)`, whose number is 1."""
        return await self.sessions.open(1, hello(*args, **kwargs))

    async def submit(self, spec: UpdateSpec, job_id: str = "j", **fields: Any) -> Update:
        author = fields.pop("author", "ops")
        return await self.updates.submit(Submission(job_id, spec, author, **fields))

    async def job(self, job_id: str = "j") -> Job:
        """The job as stored."""
        job = await self.store.read(lambda tx: tx.job(job_id))
        assert job is not None
        return job

    async def update(self, revision: int, job_id: str = "j") -> Update:
        return await self.updates.get(job_id, revision)

    async def states(self, job_id: str = "j") -> list[str]:
        """States of all updates, in the order of their revisions."""
        page = await self.updates.list(
            job_id, HistoryQuery(newest_first=False), beyond=None, limit=1_000
        )
        assert [u.revision for u in page.updates] == list(range(1, len(page.updates) + 1))
        return [update.state.value for update in page.updates]


@contextlib.asynccontextmanager
async def use_cases(
    database: Path, clock: Clock | None = None, **options: Any
) -> AsyncIterator[UseCases]:
    """The use cases on a database; what is written is there for the next ones on it."""
    store = await open_store(database)
    try:
        yield UseCases(store, clock or Clock(), **options)
    finally:
        await store.close()


async def refusal(awaitable: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await awaitable
    return refused.value


async def said(session: AgentSession) -> list[ServerMessage]:
    """What a session has to say by now, without waiting; it is gone from its outbox then."""
    outbox = session.outbox
    messages = []
    while outbox._messages or outbox._acknowledged is not None:
        messages.append(await outbox.get())
    return messages


def only(messages: list[ServerMessage], kind: type[M]) -> list[M]:
    """The messages of one kind."""
    return [message for message in messages if isinstance(message, kind)]


async def delivered(session: AgentSession) -> list[int]:
    """Revisions that a session delivers by now."""
    return [d.update.revision for d in only(await said(session), Delivery)]


async def welcome(session: AgentSession) -> Welcome:
    """The first message of a session."""
    first = await asyncio.wait_for(session.outbox.get(), 5)
    assert isinstance(first, Welcome)
    return first


class Talk:
    """An agent's side of a session at the use cases: numbers its messages."""

    def __init__(self, session: AgentSession, number: int = 1) -> None:
        self.session = session
        self.number = number

    def next(self) -> int:
        self.number += 1
        self.session.begin(self.number)
        return self.number

    async def receive_all(self) -> list[int]:
        """Answers every delivery with "received", which is stored then; returns the revisions."""
        deliveries = only(await said(self.session), Delivery)
        for each in deliveries:
            await self.session.reply(self.next(), each.nonce, each.update.revision, Received())
        acks = self.session._acks
        await eventually(lambda: self.number not in {*acks._open} - {*acks._done}, "all is stored")
        return [each.update.revision for each in deliveries]


def heartbeat(
    step: int | None = None,
    phase: Phase = Phase.TRAINING,
    *,
    readings: tuple[Any, ...] = (),
    dropped: int = 0,
    **metrics: list[float],
) -> Heartbeat:
    """Progress up to a step; each metric's last value was measured at it."""
    columns = tuple(
        MetricColumn(
            name,
            list(range((step or 0) - len(values) + 1, (step or 0) + 1)),
            values,
            [MICROS + i for i in range(len(values))],
        )
        for name, values in metrics.items()
    )
    progress = None if step is None else Progress(step)
    return Heartbeat(progress, phase, columns, dropped, readings)
