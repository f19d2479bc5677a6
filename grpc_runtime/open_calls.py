"""Calls under way, and their end when the credentials behind them are taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import grpc

from grpc_runtime.errors import StatusError
from grpc_runtime.logging import get_logger

Ended = Callable[[Collection[str]], Awaitable[Collection[str]]]
"""Tells which of some credentials have become worthless."""

_LOOK_SECONDS: Final = 5.0

_log = get_logger(__name__)


class OpenCall:
    """A call under way.

    Attributes:
        cut: What it ends with, once its credentials are worthless; None: they are good.
    """

    __slots__ = ("_task", "cut")

    def __init__(self) -> None:
        """Describes the call that the running task serves."""
        self._task = asyncio.current_task()
        self.cut: StatusError | None = None

    def end(self) -> None:
        """Ends the call."""
        self.cut = StatusError(
            grpc.StatusCode.UNAUTHENTICATED,
            "the token of this call was revoked, or its time is over: use another one",
            reason="TOKEN_ENDED",
        )
        if self._task is not None:
            self._task.cancel()

    def was_cut(self) -> StatusError | None:
        """Returns what the call ends with if its cancellation was :meth:`end`, and takes it in."""
        if self.cut is not None and self._task is not None:
            self._task.uncancel()
        return self.cut


class OpenCalls:
    """The calls under way, by the credentials that were used for them."""

    def __init__(self) -> None:
        """Begins without any."""
        self._calls: dict[str, set[OpenCall]] = {}

    def enter(self, credential: str) -> OpenCall:
        """Notes that the running task begins to serve a call."""
        call = OpenCall()
        self._calls.setdefault(credential, set()).add(call)
        return call

    def leave(self, credential: str, call: OpenCall) -> None:
        """Notes that a call has ended."""
        calls = self._calls[credential]
        calls.discard(call)
        if not calls:
            del self._calls[credential]

    def end(self, credential: str) -> None:
        """Ends all calls of a credential."""
        for call in list(self._calls.get(credential, ())):
            call.end()

    async def watch(self, ended: Ended, *, seconds: float = _LOOK_SECONDS) -> None:
        """Looks every few seconds which calls have to end, for ever."""
        while True:
            await asyncio.sleep(seconds)
            if not self._calls:
                continue
            try:
                worthless = await ended(tuple(self._calls))
            except Exception as error:  # noqa: BLE001 - the next look may succeed
                _log.warning("cannot look whether tokens are still good", error=repr(error))
                continue
            for credential in worthless:
                self.end(credential)
