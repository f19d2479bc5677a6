"""One call while it is being served: what is known of it, and what is told of it at its end."""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from grpc_runtime.auth import Caller, Kept, Principal
from grpc_runtime.errors import REQUEST_ID_KEY, StatusError
from grpc_runtime.limits import TOO_MANY_STRANGERS
from grpc_runtime.logging import get_logger
from grpc_runtime.observing import FinishedCall

if TYPE_CHECKING:
    from grpc_runtime.open_calls import OpenCall
    from grpc_runtime.reading import Reader

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")
_SERVER_FAULTS = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
)
# Probes and tools call these all the time; nobody reads about it. Nor about the calls of strangers
# beyond so many: that there are some is logged now and then.
_QUIET_PREFIXES = ("/grpc.health.", "/grpc.reflection.")
_LOGGED_METHOD_LENGTH = 200
_TRACE_PARENT_KEY = "traceparent"
# Version 00 of https://www.w3.org/TR/trace-context/: others begin alike, but nobody sends them yet.
_TRACE_PARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_log = get_logger(__name__)


class ServedCall:
    """What is known of a call while it is being served.

    Attributes:
        method: Its full name.
        known: Whether there is such a method.
        peer: Where it comes from.
        kept: What handlers leave for those who are told of the call.
        principal: Who calls; None: not known yet.
        opened: Its place among the open calls of its credential; None: it has none.
        is_counted: Whether it counts among the calls of its principal.
        request_id: The caller's, or ours.
        trace_parent: The trace that it belongs to; empty: to none.
    """

    __slots__ = (
        "_context",
        "_metadata",
        "_raw",
        "_read",
        "_started",
        "is_counted",
        "kept",
        "known",
        "method",
        "opened",
        "peer",
        "principal",
        "request_id",
        "trace_parent",
    )

    def __init__(
        self,
        details: grpc.HandlerCallDetails,
        context: Any,
        read: Reader,
        raw: bytes | None,
        known: bool = True,
    ) -> None:
        """Begins to serve it.

        Args:
            details: Its method and metadata.
            context: grpc's, of the call.
            read: Reads the request.
            raw: The request; None: there is a stream of them, which the handler reads.
            known: Whether there is such a method.
        """
        self._started = time.perf_counter()
        self._context = context
        self._metadata = details.invocation_metadata
        self.method = details.method
        self.known = known
        self.peer = _peer(context)
        self._read = read
        self._raw = raw
        self.is_counted = False
        self.kept = Kept()
        self.principal: Principal | None = None
        self.opened: OpenCall | None = None
        self.request_id = _request_id(self._metadata)
        given = _text(self._metadata, _TRACE_PARENT_KEY)
        self.trace_parent = given if _TRACE_PARENT.fullmatch(given) else ""
        context.set_trailing_metadata(((REQUEST_ID_KEY, self.request_id),))
        structlog.contextvars.bind_contextvars(request_id=self.request_id)

    def caller(self, strangers: StatusError | None) -> Caller:
        """Returns what an authenticator looks at; `strangers`: why no stranger may try now."""
        return Caller(
            self.method, self._metadata, self.peer, self._context.auth_context(), strangers
        )

    def take(self) -> Any:
        """Reads the request, once.

        Raises:
            StatusError: INVALID_ARGUMENT, it can not be read.
        """
        assert self._raw is not None, "the requests of a stream are read by its handler"
        raw, self._raw = self._raw, None
        self.kept.request = self._read(raw)
        return self.kept.request

    def finished(self, code: grpc.StatusCode, error: StatusError | None) -> FinishedCall:
        """Returns what is told of the call at its end."""
        request = self.kept.request
        # What was refused unread is looked at, but not so that this would harm anybody else.
        if self._raw is not None and (error is None or error.reason != TOO_MANY_STRANGERS):
            request = self._read.glance(self._raw)
        return FinishedCall(
            method=self.method,
            known=self.known,
            principal=self.principal,
            peer=self.peer,
            request_id=self.request_id,
            code=code,
            reason="" if error is None else error.reason,
            message="" if error is None else error.message,
            trace_parent=self.trace_parent,
            duration=time.perf_counter() - self._started,
            request=request,
            kept=self.kept,
        )

    def log(
        self,
        code: grpc.StatusCode,
        *,
        error: StatusError | None = None,
        fault: BaseException | None = None,
    ) -> None:
        """Logs the call's one event; with the traceback where the server is at fault."""
        method = self.method
        event: dict[str, Any] = {
            "method": method[:_LOGGED_METHOD_LENGTH],
            "code": code.name,
            "duration_ms": round((time.perf_counter() - self._started) * 1000, 3),
            "peer": self.peer,
            "principal": None if self.principal is None else self.principal.name,
        }
        if error is not None:
            event.update(reason=error.reason, error=error.message)
        if code in _SERVER_FAULTS:
            _log.error("rpc", exc_info=fault, **event)
        elif method.startswith(_QUIET_PREFIXES) or event.get("reason") == TOO_MANY_STRANGERS:
            _log.debug("rpc", **event)
        else:
            _log.info("rpc", **event)


def _peer(context: Any) -> str:
    try:
        peer: str = context.peer()
    except UnicodeDecodeError:  # seen with grpc: https://github.com/grpc/grpc/issues/25400
        return "unknown"
    return peer


def _request_id(metadata: Any) -> str:
    given = _text(metadata, REQUEST_ID_KEY)
    return given if _SANE_REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _text(metadata: Any, wanted: str) -> str:
    """Returns the first value of a key; empty: there is none, or it is no text."""
    for key, value in metadata:
        if key == wanted:
            return value if isinstance(value, str) else ""
    return ""
