"""Who a token belongs to: the control plane is asked, as it has made it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

import grpc

from analytics_service.threads import Threads
from control_plane.client import MidcourseError, UnauthenticatedError
from grpc_runtime.auth import Principal
from grpc_runtime.bearer import bearer_metadata
from grpc_runtime.errors import StatusError
from grpc_runtime.logging import get_logger
from midcourse.control.v1 import access_pb2

if TYPE_CHECKING:
    from control_plane.client import Client

_ROLE_PREFIX: Final = "ROLE_"
_SECONDS_TO_BEGIN: Final = 60.0

_log = get_logger(__name__)


class ControlPlaneTokens:
    """Tells the service who sent a token."""

    def __init__(
        self, plane: Client, threads: Threads, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Makes it.

        Args:
            plane: A client of the control plane, with no credentials of its own but a certificate.
            threads: Where it is asked.
            clock: Where the time comes from, in seconds.
        """
        self._plane = plane
        self._threads = threads
        self._clock = clock
        # Of tokens whose calls may be under way: who asks with them, and when that was last seen.
        self._seen: dict[str, tuple[Client, float]] = {}

    async def principal(self, secret: str) -> Principal:
        """Returns whose secret it is.

        Raises:
            StatusError: UNAUTHENTICATED, it is worth nothing; UNAVAILABLE, that can not be told
                now.
        """
        try:
            metadata = bearer_metadata(secret)
            plane = self._plane.with_metadata(metadata)
        except ValueError:  # it is not even text that can be sent; and it is not to be repeated
            raise StatusError(
                grpc.StatusCode.UNAUTHENTICATED,
                "the token that was sent is none: check it",
                reason="TOKEN_UNKNOWN",
            ) from None
        try:
            caller = await self._threads.run(plane.get_caller)
        except UnauthenticatedError as error:
            raise StatusError(
                grpc.StatusCode.UNAUTHENTICATED, error.message, reason=error.reason
            ) from error
        except MidcourseError as error:
            raise StatusError(
                grpc.StatusCode.UNAVAILABLE,
                f"the control plane has to say whose a token is, and did not: {error.message}",
                reason="CONTROL_PLANE_UNAVAILABLE",
                retry_delay=error.retry_delay or 1.0,
            ) from error
        if not caller.token:
            # It lets everybody in, and has not looked at the token.
            raise StatusError(
                grpc.StatusCode.UNAUTHENTICATED,
                "the control plane asks nobody for a token, so it can not say whose one is: run it"
                " with auth token too",
                reason="TOKEN_UNKNOWN",
            )
        credential = caller.token.removeprefix("tokens/")
        self._seen[credential] = plane, self._clock()
        role = access_pb2.Role.Name(caller.access.role).removeprefix(_ROLE_PREFIX).lower()
        return Principal(
            caller.principal,
            frozenset({role}),
            selector=caller.access.selector,
            only=tuple(caller.access.jobs),
            credential=credential,
        )

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        """Returns which of these tokens, by their ids, the control plane does not take any more."""
        now = self._clock()
        self._seen = {
            credential: (plane, seen)
            for credential, (plane, seen) in self._seen.items()
            if credential in credentials or now - seen < _SECONDS_TO_BEGIN
        }
        looked_at = [each for each in credentials if each in self._seen]
        good = await asyncio.gather(*(self._may_be_good(self._seen[each][0]) for each in looked_at))
        return {each for each, may_be in zip(looked_at, good, strict=True) if not may_be}

    async def _may_be_good(self, plane: Client) -> bool:
        """Tells whether the token that a client sends is not known to be worthless."""
        try:
            await self._threads.run(plane.get_caller)
        except UnauthenticatedError:
            return False
        except MidcourseError as error:  # the next look may tell
            _log.warning("cannot look whether a token is still good", error=error.message)
        return True
