"""What is measured and traced of a service, and where others can read it. All of it may be off."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.trace import Tracer
    from prometheus_client import CollectorRegistry

    from grpc_runtime.listen import Address
    from grpc_runtime.server import Service
    from grpc_runtime.service_settings import ServiceSettings


@dataclass(frozen=True, slots=True)
class Observation:
    """How a service is observed.

    Attributes:
        registry: Where metrics are registered; None: nobody reads them.
        metrics_address: Where they are read, with the port that was bound.
        tracer: Makes spans; None: nothing is traced.
    """

    registry: CollectorRegistry | None = None
    metrics_address: Address | None = None
    tracer: Tracer | None = None


@contextlib.asynccontextmanager
async def observing(
    settings: ServiceSettings, service: Service, name: str
) -> AsyncIterator[Observation]:
    """Has a service's calls measured and traced, as its settings say, while the block runs.

    Args:
        settings: ``metrics_listen`` and ``tracing`` of them.
        service: Not started yet.
        name: Its name in traces.

    Raises:
        ListenError: The address for metrics cannot be listened on, or a package is missing.
    """
    # Imported where they are wanted: who measures nothing need not load, or have, what it takes.
    async with contextlib.AsyncExitStack() as stack:
        registry = metrics_address = tracer = None
        if settings.metrics_listen:
            from grpc_runtime.observe.calls import CallMetrics
            from grpc_runtime.observe.endpoint import metrics_endpoint, process_registry

            registry = process_registry()
            service.observe(CallMetrics(registry))
            metrics_address = await stack.enter_async_context(
                metrics_endpoint(settings.metrics_listen, registry)
            )
        if settings.tracing:
            from grpc_runtime.observe.tracing import CallTraces, tracing

            tracer = await stack.enter_async_context(tracing(name, version("midcourse")))
            service.observe(CallTraces(tracer))
        yield Observation(registry, metrics_address, tracer)
