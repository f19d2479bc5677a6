"""Prometheus metrics of a control plane."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.update import Applied, Update, UpdateState
from control_plane.services.passing import PassingStore
from grpc_runtime.observe.calls import SECONDS

if TYPE_CHECKING:
    from control_plane.services.ports import Store, Transaction
    from control_plane.services.sessions import SessionService
    from control_plane.services.telemetry import TelemetryHub
    from control_plane.services.watch import WatchService

T = TypeVar("T")

_UPDATE_SECONDS = (*SECONDS, 30.0, 60.0, 300.0, 1_800.0, 7_200.0)
"""A step of a large model takes a minute, and an update may wait for a later step or an epoch."""


class UpdateMetrics:
    """Counts updates, and how long they took to be in force."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers the metrics."""
        self._updates = Counter(
            "midcourse_updates",
            "Updates that came to a state: pending when accepted, then the final ones.",
            ("state",),
            registry=registry,
        )
        self._seconds = Histogram(
            "midcourse_update_seconds",
            "Seconds from an update's acceptance to the confirmation that it is in force.",
            buckets=_UPDATE_SECONDS,
            registry=registry,
        )
        for state in UpdateState:
            if state is not UpdateState.DELIVERED:
                self._updates.labels(state.value)  # there from the start, as 0

    def __call__(self, update: Update) -> None:
        """Counts an update that was accepted or settled."""
        self._updates.labels(update.state.value).inc()
        if isinstance(update.outcome, Applied) and update.settle_time is not None:
            self._seconds.observe((update.settle_time - update.create_time).total_seconds())


class MeasuredStore(PassingStore):
    """A store whose work is timed."""

    def __init__(self, store: Store, registry: CollectorRegistry) -> None:
        """Stands before a store; the metrics are registered."""
        super().__init__(store)
        self._seconds = Histogram(
            "midcourse_store_seconds",
            "Seconds that transactions took, the wait for their turn and the commit included.",
            ("kind",),
            buckets=SECONDS,
            registry=registry,
        )
        self._waiting = Gauge(
            "midcourse_store_transactions",
            "Transactions that run or wait for their turn.",
            ("kind",),
            registry=registry,
        )
        self._failed = Counter(
            "midcourse_store_failures",
            "Transactions that the database did not do.",
            ("kind",),
            registry=registry,
        )
        for kind in ("read", "write"):
            self._failed.labels(kind)  # there from the start, as 0

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` in a transaction; returns its result after the commit."""
        with self._measured("write"):
            return await self._store.write(work)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs `work` on a consistent view of what is committed. It must not write."""
        with self._measured("read"):
            return await self._store.read(work)

    @contextlib.contextmanager
    def _measured(self, kind: str) -> Iterator[None]:
        waiting = self._waiting.labels(kind)
        waiting.inc()
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            if _is_failure(error):
                self._failed.labels(kind).inc()
            raise
        finally:
            waiting.dec()
            self._seconds.labels(kind).observe(time.perf_counter() - begun)


def _is_failure(error: Exception) -> bool:
    """Whether it is the database's, and not a refusal by the rules."""
    return not isinstance(error, Refusal) or error.reason is Reason.STORE_UNAVAILABLE


class Levels:
    """What the parts of a server hold at the moment that somebody asks. A Prometheus collector."""

    def __init__(
        self, sessions: SessionService, telemetry: TelemetryHub, watches: WatchService
    ) -> None:
        """Takes the parts; nothing is counted but when asked."""
        self._sessions = sessions
        self._telemetry = telemetry
        self._watches = watches

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics. Runs on the thread that answers the request for them."""
        levels: dict[str, tuple[str, Any]] = {
            "midcourse_sessions": ("Streams of agents.", self._sessions.count),
            "midcourse_session_queue": (
                "Messages that wait to be sent to agents.",
                self._sessions.queued,
            ),
            "midcourse_watches": ("Watches of jobs.", self._watches.count),
            "midcourse_samples_waiting": (
                "Samples of metrics that wait for the store.",
                self._telemetry.waiting,
            ),
        }
        for name, (text, value) in levels.items():
            yield GaugeMetricFamily(name, text, value)
        yield CounterMetricFamily(
            "midcourse_samples", "Samples of metrics taken in.", self._telemetry.taken
        )
        yield CounterMetricFamily(
            "midcourse_samples_dropped",
            "Samples that agents had to drop, as they say.",
            self._telemetry.dropped,
        )
