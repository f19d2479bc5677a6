"""Prometheus metrics of the calls that a server answers.

Named as other gRPC servers name theirs (go-grpc-middleware), so that dashboards know them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

if TYPE_CHECKING:
    from grpc_runtime.observing import FinishedCall

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of buckets for what takes a millisecond or so."""

_UNKNOWN = "unknown"
_REFUSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED})


class CallMetrics:
    """Counts calls and the time they took, by method and status."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers the metrics."""
        self._handling = Histogram(
            "grpc_server_handling_seconds",
            "Seconds that calls took, to the end of streams.",
            ("grpc_service", "grpc_method", "grpc_code"),
            buckets=SECONDS,
            registry=registry,
        )
        self._strangers = Counter(
            "grpc_server_strangers",
            "Calls that were refused as they had no valid credentials, by the reason.",
            ("reason",),
            registry=registry,
        )

    def __call__(self, call: FinishedCall) -> None:
        """Counts a call that has ended."""
        service, method = _UNKNOWN, _UNKNOWN
        if call.known:  # else the name is the caller's, and there is no end of those
            _, service, method = call.method.split("/")
        self._handling.labels(service, method, call.code.name).observe(call.duration)
        if call.principal is None and call.code in _REFUSED:
            self._strangers.labels(call.reason).inc()
