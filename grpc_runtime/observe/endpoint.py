"""An HTTP port where Prometheus reads a service's metrics."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric

from grpc_runtime.listen import Address, AddressError, ListenError
from grpc_runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from prometheus_client.registry import Collector

_log = get_logger(__name__)


class Concurrency:
    """How much a process does at once. A Prometheus collector."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Takes the loop whose tasks are counted; they are when somebody asks."""
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics. Runs on the thread that answers the request for them."""
        tasks = len(asyncio.all_tasks(self._loop))
        yield GaugeMetricFamily("python_asyncio_tasks", "Tasks of the event loop.", tasks)
        yield GaugeMetricFamily(
            "process_threads", "Threads that Python knows of.", threading.active_count()
        )


def process_registry() -> CollectorRegistry:
    """Returns a registry with what can be told of any process: memory, files, CPU, tasks.

    Raises:
        RuntimeError: No event loop is running.
    """
    registry = CollectorRegistry()
    registry.register(Concurrency(asyncio.get_running_loop()))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


@contextlib.asynccontextmanager
async def metrics_endpoint(address: str, registry: Collector) -> AsyncIterator[Address]:
    """Serves a registry over HTTP, on a thread of its own, while the block runs.

    Whoever can reach the port can read it: what is served names methods, states and counts, and no
    job, caller or value.

    Args:
        address: ``host:port``; port 0 lets the system choose.
        registry: What to serve.

    Yields:
        The address with the port that was bound.

    Raises:
        ListenError: It is no such address, or cannot be listened on.
    """
    asked = Address.parse(address)
    if asked.port is None:
        raise AddressError(f"metrics are served over HTTP, for which {address!r} has no host:port")
    try:
        server, thread = start_http_server(asked.port, asked.host, registry)
    except OSError as error:
        raise ListenError(f"cannot serve metrics on {asked}: {error.strerror}") from error
    bound = asked.with_port(server.server_port)
    _log.info("serving metrics", address=str(bound))
    try:
        yield bound
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)
