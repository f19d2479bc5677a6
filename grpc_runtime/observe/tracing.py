"""Traces of a service, by OpenTelemetry.

Calls that come with a W3C ``traceparent`` become spans of the caller's trace; those without begin
one. Where the spans go is said by OpenTelemetry's own environment variables, such as
``OTEL_EXPORTER_OTLP_ENDPOINT``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import grpc

from grpc_runtime.listen import ListenError

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    raise ListenError(
        f"traces are sent by OpenTelemetry's SDK, which is not installed ({error}); install it: "
        "pip install 'midcourse[otel]'"
    ) from error
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.context import Context

    from grpc_runtime.observing import FinishedCall

_PROPAGATOR = TraceContextTextMapPropagator()
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Which statuses are errors of a server's span.

Source: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
"""


@contextlib.asynccontextmanager
async def tracing(service: str, version: str) -> AsyncIterator[Tracer]:
    """Sends what is traced to a collector, on a thread of its own, while the block runs.

    What can not be sent is dropped, and logged by OpenTelemetry: nobody waits for it.

    Args:
        service: Name of the service, unless ``OTEL_SERVICE_NAME`` says another.
        version: Its version.

    Yields:
        What makes spans.
    """
    resource = Resource.create({"service.name": service, "service.version": version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield provider.get_tracer(service, version)
    finally:
        await asyncio.to_thread(provider.shutdown)


def parent(trace_parent: str) -> Context:
    """Returns the context of a caller's span.

    Args:
        trace_parent: A W3C ``traceparent``; what is none of it begins a new trace.
    """
    return _PROPAGATOR.extract({"traceparent": trace_parent})


class CallTraces:
    """Makes a span of every call that has ended."""

    def __init__(self, tracer: Tracer) -> None:
        """Takes what makes spans."""
        self._tracer = tracer

    def __call__(self, call: FinishedCall) -> None:
        """Makes a span of a call."""
        ended = time.time_ns()
        name = call.method.lstrip("/") if call.known else "unknown"
        span = self._tracer.start_span(
            name,
            context=parent(call.trace_parent),
            kind=SpanKind.SERVER,
            start_time=ended - int(call.duration * 1e9),
            attributes={
                "rpc.system": "grpc",
                "rpc.grpc.status_code": call.code.value[0],
                "midcourse.request_id": call.request_id,
            },
        )
        if call.code in _SERVER_FAULTS:
            span.set_status(Status(StatusCode.ERROR, call.reason or call.code.name))
        span.end(ended)
