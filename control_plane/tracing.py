"""Traces of updates: from their acceptance to the step that uses them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, Status, StatusCode

from control_plane.domain.update import Applied, Rejected, Update, UpdateState
from grpc_runtime.observe.tracing import parent

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


class UpdateTraces:
    """Makes a span of every update that is settled, within the trace of the call that sent it."""

    def __init__(self, tracer: Tracer) -> None:
        """Takes what makes spans."""
        self._tracer = tracer

    def __call__(self, update: Update) -> None:
        """Makes a span of an update that is settled; of others, nothing."""
        if update.settle_time is None:
            return
        span = self._tracer.start_span(
            "update",
            context=parent(update.trace_parent),
            kind=SpanKind.CONSUMER,
            start_time=_nanoseconds(update.create_time),
            attributes={
                "midcourse.job": update.job_id,
                "midcourse.revision": update.revision,
                "midcourse.author": update.author,
                "midcourse.state": update.state.value,
            },
        )
        if update.deliver_time is not None:
            span.add_event("delivered", timestamp=_nanoseconds(update.deliver_time))
        outcome = update.outcome
        if isinstance(outcome, Applied):
            span.set_attribute("midcourse.step", outcome.step)
            if outcome.apply_time is not None:  # by the clock of the training host
                span.add_event("applied", timestamp=_nanoseconds(outcome.apply_time))
        elif isinstance(outcome, Rejected):
            span.set_attribute("midcourse.reason", outcome.reason)
        if update.state is not UpdateState.APPLIED:
            span.set_status(Status(StatusCode.ERROR, update.state.value))
        span.end(_nanoseconds(update.settle_time))


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1e6) * 1_000
