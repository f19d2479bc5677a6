"""One session after another, with a back-off in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import grpc

from grpc_runtime.errors import StatusError
from grpc_runtime.logging import get_logger
from grpc_runtime.options import client_options
from midcourse.agent.v1 import session_pb2_grpc
from trainer_agent.agent.backoff import FullJitter
from trainer_agent.agent.refusals import SLOW_RETRY_SECONDS, Course, Refusal, judge

if TYPE_CHECKING:
    from trainer_agent.agent.session import Session, StreamEnd

_log = get_logger(__name__)

# A session that lasted so long shows that the control plane is well: the next comes soon.
_PROVEN_AFTER: Final = 5.0


class ConnectorEvents(Protocol):
    """What a connector tells the agent, and asks of it."""

    def refused(self, why: Refusal) -> None:
        """The control plane does not serve this agent, now or for good."""

    def trainer_connected(self) -> bool:
        """Tells whether the trainer talks to this agent."""


class Connector:
    """Keeps a session with the control plane."""

    def __init__(
        self,
        target: str,
        *,
        new_session: Callable[[], Session],
        events: ConnectorEvents,
        backoff: FullJitter | None = None,
    ) -> None:
        """Prepares to connect.

        Args:
            target: Address of the control plane.
            new_session: Makes the session for the next stream.
            events: Is told of refusals.
            backoff: Waits between attempts; None: the usual ones.
        """
        self._target = target
        self._new_session = new_session
        self._events = events
        self._backoff = backoff or FullJitter()
        self._session: Session | None = None

    @property
    def session(self) -> Session | None:
        """The session whose stream is open, or being opened; None: there is none."""
        return self._session

    async def run(self) -> None:
        """Serves one session after another; ends after a goodbye, or when there is no way back."""
        while True:
            started = time.monotonic()
            delay: float
            try:
                end = await self._serve_one()
            except StatusError as error:
                if time.monotonic() - started >= _PROVEN_AFTER:
                    self._backoff.reset()
                refusal = judge(error)
                _log.warning(
                    "session_failed",
                    control_plane=self._target,
                    code=error.code.name,
                    reason=error.reason,
                    message=error.message,
                    course=refusal.course.name,
                )
                if not self._go_on_after(refusal):
                    return
                slowly = refusal.course is Course.RETRY_SLOWLY
                delay = self._backoff.next_delay(
                    SLOW_RETRY_SECONDS if slowly else refusal.retry_delay
                )
            else:
                if end.said_goodbye:
                    return
                if end.reconnect_delay is not None:
                    self._backoff.reset()
                delay = self._backoff.next_delay(end.reconnect_delay)
            _log.info("reconnecting", control_plane=self._target, delay=round(delay, 3))
            await asyncio.sleep(delay)

    def _go_on_after(self, refusal: Refusal) -> bool:
        match refusal.course:
            case Course.RETRY:
                return True
            case Course.RETRY_SLOWLY:
                self._events.refused(refusal)
                return True
            case Course.SUPERSEDED:
                self._events.refused(refusal)
                return False
            case Course.FENCED:
                # Two agents of one trainer would fence one another for ever: the one that the
                # trainer talks to stays. If another process has the job, the server says so next.
                return self._events.trainer_connected()

    async def _serve_one(self) -> StreamEnd:
        # A channel for each: an old one would wait by a back-off of its own, without jitter.
        channel = grpc.aio.insecure_channel(
            self._target, options=[*client_options(), ("grpc.use_local_subchannel_pool", 1)]
        )
        self._session = self._new_session()
        try:
            return await self._session.run(session_pb2_grpc.AgentServiceStub(channel))
        finally:
            self._session = None
            await channel.close()
