"""One session after another, with a back-off in between."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import grpc

from grpc_runtime.client.credentials import Credentials, CredentialsError
from grpc_runtime.client.knocking import nobody_listens
from grpc_runtime.client.target import addresses_of, proxy_options
from grpc_runtime.client.trouble import connection_trouble
from grpc_runtime.errors import StatusError
from grpc_runtime.logging import get_logger
from grpc_runtime.options import client_options
from midcourse.agent.v1 import session_pb2_grpc
from trainer_agent.agent.backoff import FullJitter
from trainer_agent.agent.refusals import SLOW_RETRY_SECONDS, Course, Refusal, judge

if TYPE_CHECKING:
    from trainer_agent.agent.session import Session, StreamEnd

_log = get_logger(__name__)

_CONNECT_MILLISECONDS: Final = 3_000
# A session that lasted so long shows that the control plane is well: the next comes soon.
_PROVEN_AFTER: Final = 5.0

CREDENTIALS_UNUSABLE: Final = "CREDENTIALS_UNUSABLE"
"""Reason that a trainer is told where this side's own credentials can not be used."""


OpenChannel = Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]]
"""Opens a channel to an address, for one session."""


@contextlib.asynccontextmanager
async def own_channel(
    target: str, credentials: Credentials | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a connection that nobody shares.

    Args:
        target: Address of the control plane.
        credentials: What to connect with; their files are read anew each time. None: what the
            environment says.

    Raises:
        CredentialsError: They can not be used.
    """
    credentials = Credentials.from_environment() if credentials is None else credentials
    credentials.check_for(target)
    # An older channel would wait by a back-off of its own, without jitter.
    options = [
        *client_options(),
        *proxy_options(target),
        ("grpc.use_local_subchannel_pool", 1),
        # How long to wait for a host that swallows packets: another one may answer.
        ("grpc.min_reconnect_backoff_ms", _CONNECT_MILLISECONDS),
    ]
    secure = credentials.channel_credentials()
    channel = (
        grpc.aio.insecure_channel(target, options=options)
        if secure is None
        else grpc.aio.secure_channel(target, secure, options=options)
    )
    try:
        yield channel
    finally:
        await channel.close()


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
        open_channel: OpenChannel | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Prepares to connect.

        Args:
            target: Address of the control plane; of several, ``a:50051,b:50051``, it uses one,
                and goes on to the next where that does not serve it.
            new_session: Makes the session for the next stream.
            events: Is told of refusals.
            backoff: Waits between attempts; None: the usual ones.
            open_channel: Opens the channel of each session; None: :func:`own_channel`.
            credentials: What to connect with; None: what the environment says.
        """
        self._targets = addresses_of(target)
        # Each agent begins with another, so that the replicas share them.
        self._attempt = random.randrange(len(self._targets))  # noqa: S311 - no secret
        self._new_session = new_session
        self._events = events
        self._backoff = backoff or FullJitter()
        self._credentials = credentials or Credentials.from_environment()
        self._open_channel = open_channel or partial(own_channel, credentials=self._credentials)
        self._knocks = open_channel is None
        self._found_nobody = False
        self._session: Session | None = None

    @property
    def target(self) -> str:
        """The address in use, or the one that is tried next."""
        return self._targets[self._attempt % len(self._targets)]

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
                    control_plane=self.target,
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
            self._attempt += 1
            _log.info("reconnecting", control_plane=self.target, delay=round(delay, 3))
            await asyncio.sleep(delay)

    def _explained(self, error: StatusError) -> StatusError:
        """Returns an error with what is likely wrong, where gRPC only says that it failed."""
        if error.reason or error.code is not grpc.StatusCode.UNAVAILABLE:
            return error
        trouble = connection_trouble(error.message, secure=self._credentials.is_secure)
        if not trouble:
            return error
        return StatusError(error.code, f"{error.message}: {trouble}", reason="")

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
        self._session = self._new_session()
        try:
            metadata = self._credentials.metadata()
            if self._knocks and self._found_nobody and await nobody_listens(self.target):
                raise StatusError(
                    grpc.StatusCode.UNAVAILABLE, f"nobody listens at {self.target}", reason=""
                )
            async with self._open_channel(self.target) as channel:
                stub = session_pb2_grpc.AgentServiceStub(channel)
                return await self._session.run(stub, metadata)
        except CredentialsError as error:
            raise StatusError(
                grpc.StatusCode.UNAUTHENTICATED, str(error), reason=CREDENTIALS_UNUSABLE
            ) from error
        except StatusError as error:
            self._found_nobody = error.code is grpc.StatusCode.UNAVAILABLE and not error.reason
            raise self._explained(error) from error
        finally:
            self._session = None
