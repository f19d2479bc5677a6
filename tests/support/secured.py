"""A control plane that asks who calls, and callers with tokens."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from control_plane.domain.access import Access, Role
from grpc_runtime.bearer import bearer_metadata
from tests.support.plane import RunningPlane, running_plane

# Tests that try out what strangers get are many strangers.
_SETTINGS = {"auth": "token", "max_strangers_per_second": 100_000.0}

Metadata = tuple[tuple[str, str], ...]


class SecuredPlane:
    """A control plane with auth token."""

    def __init__(self, running: RunningPlane) -> None:
        self.running = running
        self.plane = running.plane

    async def token(
        self,
        role: str,
        *,
        jobs: Sequence[str] = (),
        selector: str = "",
        lifetime: timedelta | None = None,
        principal: str = "",
    ) -> tuple[str, str]:
        """The name and the secret of a new token."""
        token, secret = await self.plane.tokens.create(
            principal or f"a-{role}",
            Access(Role(role), selector, tuple(jobs)),
            lifetime=lifetime,
            creator="test",
        )
        return token.name, secret

    async def caller(self, role: str, **scope: Any) -> Metadata:
        """What a new caller sends along."""
        _, secret = await self.token(role, **scope)
        return bearer_metadata(secret)


@contextlib.asynccontextmanager
async def secured_plane(database: Path, **settings: Any) -> AsyncIterator[SecuredPlane]:
    """Serves on a free port while the block runs."""
    async with running_plane(database, **{**_SETTINGS, **settings}) as running:
        yield SecuredPlane(running)
