"""What to record of the call that is being served, and of those that were refused."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import grpc

from grpc_runtime.audit.log import Entry
from grpc_runtime.audit.records import Asked, AuditRecord
from grpc_runtime.auth import current_call
from grpc_runtime.bearer import hide_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from grpc_runtime.audit.log import AuditLog
    from grpc_runtime.auth import Kept
    from grpc_runtime.observing import FinishedCall

_KEPT: Final = "audit"
_REFUSED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_NAMING_FIELDS: Final = ("name", "job", "parent")
_LATER: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Recorder:
    """Knows which requests change something, and how to put what they ask for."""

    def __init__(
        self,
        changes: Mapping[type[Any], Callable[[Any], Asked]],
        *,
        streams: Collection[type[Any]] = (),
    ) -> None:
        """Makes a recorder.

        Args:
            changes: Of each request that changes something, what it asks for. One that has a field
                ``validate_only`` that is set changes nothing.
            streams: Those of them that begin a stream: recorded when it begins, and not again
                for how it ends.
        """
        self._changes = changes
        self._streams = tuple(streams)

    def entry_now(self) -> Entry | None:
        """Returns what is to be recorded of the call that is being served; None: nothing."""
        call = current_call()
        if call is None:
            return None
        others = call.kept.others
        if _KEPT not in others:
            asked = self._asked(call.kept.request)
            others[_KEPT] = None
            if asked is not None:
                others[_KEPT] = Entry(
                    _record(
                        call.principal.name,
                        call.peer,
                        call.method,
                        asked,
                        grpc.StatusCode.OK,
                        "",
                        call.request_id,
                    )
                )
        entry: Entry | None = others[_KEPT]
        return entry

    def refused_calls(self, log: AuditLog) -> Callable[[FinishedCall], None]:
        """Returns an observer that records refused calls, and changes that did not come about."""

        def observe(call: FinishedCall) -> None:
            asked = None if _is_recorded(call.kept) else self._asked(call.request)
            is_change = asked is not None and not isinstance(call.request, self._streams)
            if call.code not in _REFUSED and not is_change:
                return
            record = _record(
                "" if call.principal is None else call.principal.name,
                call.peer,
                # Else it is whatever the caller has made up.
                call.method if call.known else "",
                asked or _about(call.request),
                call.code,
                call.reason,
                call.request_id,
            )
            log.refused(record, asyncio.get_running_loop().time())

        return observe

    def _asked(self, request: Any) -> Asked | None:
        describe = self._changes.get(type(request))
        if describe is None or getattr(request, "validate_only", False):
            return None
        return describe(request)


def _is_recorded(kept: Kept) -> bool:
    entry: Entry | None = kept.others.get(_KEPT)
    return entry is not None and entry.is_recorded


def _about(request: Any) -> Asked:
    """What a request that changes nothing is about."""
    for field in _NAMING_FIELDS:
        if name := getattr(request, field, ""):
            return Asked(str(name))
    return Asked()


def _record(
    principal: str,
    peer: str,
    method: str,
    asked: Asked,
    code: grpc.StatusCode,
    error_reason: str,
    request_id: str,
) -> AuditRecord:
    return AuditRecord(
        time=_LATER,
        principal=principal,
        peer=peer,
        method=method,
        # By mistake a secret may stand in any of these.
        resource=hide_secrets(asked.resource),
        summary=hide_secrets(asked.summary),
        reason=hide_secrets(asked.reason),
        code=code.name,
        error_reason=error_reason,
        request_id=hide_secrets(request_id),
    )
