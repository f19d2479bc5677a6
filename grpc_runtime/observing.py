"""What is told of every call when it has ended, for audit records and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

    from grpc_runtime.auth import Kept, Principal


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """A call that has ended.

    Attributes:
        method: Full method name, such as ``/package.Service/Method``, as the caller sent it.
        known: Whether the server has that method; the names of others are the caller's words.
        principal: Who called; None: that could not be told.
        peer: gRPC's name of the other end.
        request_id: Id of the call, as in the log.
        code: Status of the answer.
        reason: Reason from the error catalogue; empty: it went well, or none was named.
        message: What the caller was told; empty: it went well.
        trace_parent: The caller's ``traceparent`` (W3C Trace Context), as it was sent; empty: none.
        duration: Seconds from its begin to its end.
        request: The request message, also of a call that was refused; with a stream of requests
            the one that its handler has noted; None: there is none, or it can not be read.
        kept: What was kept of it while it was served.
    """

    method: str
    known: bool
    principal: Principal | None
    peer: str
    request_id: str
    code: grpc.StatusCode
    reason: str
    message: str
    trace_parent: str
    duration: float
    request: Any
    kept: Kept


CallObserver = Callable[[FinishedCall], None]
"""Is told once of every call, on the event loop, right before its status is sent; must not block.
What it raises is logged and changes nothing for the caller."""
