"""Callers with names and roles, for services that ask who calls."""

from __future__ import annotations

import grpc

from analytics_service.client import AsyncClient
from grpc_runtime.auth import Caller, Principal
from grpc_runtime.errors import StatusError


class Names:
    """Believes what a caller says of itself: `name`, or `name*role`."""

    verifies = True

    async def authenticate(self, caller: Caller) -> Principal:
        said = dict(caller.metadata).get("authorization", "")
        assert isinstance(said, str)
        name, _, role = said.partition("*")
        if not name:
            raise StatusError(grpc.StatusCode.UNAUTHENTICATED, "nobody", reason="NOBODY")
        return Principal(name, frozenset({role or "viewer"}))


def named(client: AsyncClient, name: str) -> AsyncClient:
    """The client, in the name of somebody."""
    return client.with_metadata([("authorization", name)])
