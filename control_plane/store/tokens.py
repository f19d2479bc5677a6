"""Tokens. A secret is found by its digest; it is not stored itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache

from sqlalchemy import bindparam, delete, insert, or_, select, update

from control_plane.domain.access import Token
from control_plane.store.queries import Queries
from control_plane.store.schema import tokens
from grpc_runtime.sql.prepared import Prepared

_FIELDS = tuple(field.name for field in fields(Token))
_GIVEN = tuple(name for name in _FIELDS if name != "key")

_TOKEN = select(*(tokens.c[name] for name in _FIELDS))
_BY_ID = Prepared(_TOKEN.where(tokens.c.id == bindparam("id")))
_BY_DIGEST = Prepared(_TOKEN.where(tokens.c.digest == bindparam("digest")))
_INSERT = insert(tokens).values({name: bindparam(name) for name in (*_GIVEN, "digest")})
_REVOKE = Prepared(
    update(tokens)
    .where(tokens.c.key == bindparam("token_key"))
    .values(revoke_time=bindparam("revoke_time"))
)
_USED = Prepared(
    update(tokens)
    .where(
        tokens.c.key == bindparam("token_key"),
        or_(tokens.c.last_use_time.is_(None), tokens.c.last_use_time < bindparam("time")),
    )
    .values(last_use_time=bindparam("time"))
)
_ENDED = Prepared(
    select(tokens.c.id).where(
        or_(tokens.c.revoke_time.is_not(None), tokens.c.expire_time <= bindparam("now"))
    )
)
_LONG_ENDED = (
    select(tokens.c.key)
    .where(
        or_(tokens.c.revoke_time < bindparam("before"), tokens.c.expire_time < bindparam("before"))
    )
    .limit(bindparam("limit"))
)
_PRUNE = Prepared(delete(tokens).where(tokens.c.key.in_(_LONG_ENDED)))


@cache
def _page(*, active: bool, beyond: bool) -> Prepared:
    """Tokens, newest first; only those that are worth something, or beyond one in that order."""
    page = _TOKEN
    if active:
        page = page.where(
            tokens.c.revoke_time.is_(None),
            or_(tokens.c.expire_time.is_(None), tokens.c.expire_time > bindparam("active_at")),
        )
    if beyond:
        page = page.where(tokens.c.key < bindparam("beyond"))
    return Prepared(page.order_by(tokens.c.key.desc()).limit(bindparam("limit")))


class TokenQueries(Queries):
    """The part of a transaction that is about tokens."""

    def token(self, token_id: str) -> Token | None:
        """The token, or None."""
        return next((Token(*row) for row in _BY_ID.rows(self._connection, id=token_id)), None)

    def token_by_digest(self, digest: str) -> Token | None:
        """The token whose secret has that digest, or None."""
        rows = _BY_DIGEST.rows(self._connection, digest=digest)
        return next((Token(*row) for row in rows), None)

    def tokens(self, *, active_at: datetime | None, beyond: int | None, limit: int) -> list[Token]:
        """Tokens, newest first, beyond one in that order.

        Args:
            active_at: Only those that are worth something at that time; None: all.
            beyond: The key of the last one that is known.
            limit: How many.
        """
        values: dict[str, object] = {"limit": limit}
        if active_at is not None:
            values["active_at"] = active_at
        if beyond is not None:
            values["beyond"] = beyond
        page = _page(active=active_at is not None, beyond=beyond is not None)
        return [Token(*row) for row in page.rows(self._connection, **values)]

    def insert_token(self, token: Token, digest: str) -> Token:
        """Stores a new token and returns it with its key."""
        values = {name: getattr(token, name) for name in _GIVEN}
        self._connection.execute(_INSERT, {**values, "digest": digest})
        stored = self.token(token.id)
        assert stored is not None
        return stored

    def revoke_token(self, key: int, time: datetime) -> None:
        """Stores that a token was revoked."""
        _REVOKE.run(self._connection, token_key=key, revoke_time=time)

    def tokens_used(self, times: Mapping[int, datetime]) -> None:
        """Stores when tokens were last used, by their keys; never an earlier time for a later."""
        for key, time in sorted(times.items()):
            _USED.run(self._connection, token_key=key, time=time)

    def ended_tokens(self, now: datetime) -> set[str]:
        """Ids of the tokens that are revoked or expired."""
        return {row[0] for row in _ENDED.rows(self._connection, now=now)}

    def prune_tokens(self, before: datetime, limit: int) -> int:
        """Deletes at most `limit` tokens, those revoked or expired before a time.

        Returns:
            How many were deleted.
        """
        return _PRUNE.run(self._connection, before=before, limit=limit)
