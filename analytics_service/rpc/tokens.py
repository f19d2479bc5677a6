"""Who a token belongs to: the control plane is asked, as it has made it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING

import grpc

from control_plane.client import MidcourseError, UnauthenticatedError
from grpc_runtime.auth import Principal
from grpc_runtime.bearer import bearer_metadata
from grpc_runtime.errors import StatusError
from midcourse.control.v1 import access_pb2

if TYPE_CHECKING:
    from control_plane.client import Client

_ROLE_PREFIX = "ROLE_"


class ControlPlaneTokens:
    """Tells the service who sent a token."""

    def __init__(self, plane: Client) -> None:
        """Takes a client of the control plane, with no credentials of its own but a certificate."""
        self._plane = plane

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
            caller = await asyncio.to_thread(plane.get_caller)
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
        role = access_pb2.Role.Name(caller.access.role).removeprefix(_ROLE_PREFIX).lower()
        return Principal(
            caller.principal,
            frozenset({role}),
            selector=caller.access.selector,
            only=tuple(caller.access.jobs),
            credential=caller.token.removeprefix("tokens/"),
        )

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        """Returns nothing: an answer ends by itself soon, and asks with the token as it goes."""
        return ()
