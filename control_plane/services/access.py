"""Use case: tokens. They are made, looked at, revoked, and told from their secrets."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from control_plane.domain.access import Access, Token, check_usable, new_token
from control_plane.domain.errors import Reason, Refusal

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.services.ports import Clock, Store, Transaction

_log: FilteringBoundLogger = structlog.get_logger(__name__)

_WRITE_SECONDS = 30.0
_USE_RESOLUTION = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Secrets:
    """How secrets are made, and told again.

    Attributes:
        new: Makes one.
        digest: What is stored of one, and looked for.
    """

    new: Callable[[], str]
    digest: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class TokenPage:
    """A page of tokens; `next_beyond` is the key to go on beyond, or None at the end."""

    tokens: tuple[Token, ...]
    next_beyond: int | None


class TokenService:
    """Makes, lists, revokes and recognizes tokens."""

    def __init__(self, store: Store, clock: Clock, secrets: Secrets) -> None:
        """Takes its parts.

        Args:
            store: Durable state, as everybody may see it.
            clock: The time.
            secrets: How secrets are made and told again.
        """
        self._store = store
        self._clock = clock
        self._secrets = secrets
        self._used: dict[int, datetime] = {}
        self._on_revoked: list[Callable[[str], None]] = []

    def on_revoked(self, callback: Callable[[str], None]) -> None:
        """Has a callback told of tokens that are revoked here, by their ids."""
        self._on_revoked.append(callback)

    async def create(
        self,
        principal: str,
        access: Access,
        *,
        description: str = "",
        lifetime: timedelta | None = None,
        creator: str,
        validate_only: bool = False,
    ) -> tuple[Token, str]:
        """Makes a token.

        Args:
            principal: Who is to use it.
            access: What it allows.
            description: What it is for.
            lifetime: How long it is good; None: 90 days; zero: for ever.
            creator: Who makes it.
            validate_only: Check only; make nothing.

        Returns:
            The token and its secret, which is nowhere else; empty with `validate_only`.

        Raises:
            Refusal: If one of these is not allowed.
        """
        token = new_token(
            uuid.uuid4().hex[:12],
            principal,
            access,
            description=description,
            creator=creator,
            lifetime=lifetime,
            now=self._clock(),
        )
        if validate_only:
            return token, ""
        secret = self._secrets.new()
        digest = self._secrets.digest(secret)
        return await self._store.write(lambda tx: tx.insert_token(token, digest)), secret

    async def list(self, *, show_inactive: bool, beyond: int | None, limit: int) -> TokenPage:
        """A page of tokens, newest first."""
        active_at = None if show_inactive else self._clock()
        found = await self._store.read(
            lambda tx: tx.tokens(active_at=active_at, beyond=beyond, limit=limit + 1)
        )
        # Uses are written down only now and then: here one knows of the newest.
        page = tuple(
            replace(token, last_use_time=self._used.get(token.key, token.last_use_time))
            for token in found[:limit]
        )
        return TokenPage(page, page[-1].key if len(found) > limit else None)

    async def revoke(self, token_id: str) -> Token:
        """Makes a token worthless; one that is revoked already stays as it is.

        Raises:
            Refusal: TOKEN_NOT_FOUND.
        """
        now = self._clock()

        def work(tx: Transaction) -> Token:
            token = tx.token(token_id)
            if token is None:
                raise Refusal(
                    Reason.TOKEN_NOT_FOUND,
                    f"there is no token {token_id!r}; list the tokens to see their names",
                )
            if token.revoke_time is None:
                token = replace(token, revoke_time=now)
                tx.revoke_token(token.key, now)
            return token

        token = await self._store.write(work)
        for callback in self._on_revoked:
            callback(token.id)
        return token

    async def recognize(self, secret: str) -> Token:
        """The token of a secret.

        Raises:
            Refusal: TOKEN_UNKNOWN, TOKEN_REVOKED or TOKEN_EXPIRED.
        """
        digest = self._secrets.digest(secret)
        now = self._clock()
        token = check_usable(await self._store.read(lambda tx: tx.token_by_digest(digest)), now)
        if token.last_use_time is None or now - token.last_use_time >= _USE_RESOLUTION:
            self._used[token.key] = now
        return token

    async def ended(self, ids: Collection[str]) -> set[str]:
        """Which of these tokens have become worthless."""
        now = self._clock()
        worthless = await self._store.read(lambda tx: tx.ended_tokens(now))
        return worthless.intersection(ids)

    async def run(self) -> None:
        """Writes down now and then which tokens were used, until cancelled."""
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            try:
                await self.write_uses()
            except Refusal as refusal:
                if refusal.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                _log.warning("the use of tokens is written down later", error=refusal.message)

    async def write_uses(self) -> None:
        """Stores when tokens were last used, for all that were since the last time."""
        used = dict(self._used)
        if not used:
            return
        await self._store.write(lambda tx: tx.tokens_used(used))
        for key, time in used.items():
            if self._used.get(key) == time:
                del self._used[key]
