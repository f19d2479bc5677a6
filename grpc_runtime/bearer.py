"""Bearer tokens: what a secret looks like, and who is told by one."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import TYPE_CHECKING, Final, Protocol

from grpc_runtime.auth import MissingCredentialsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from grpc_runtime.auth import Caller, Principal

SECRET_PREFIX: Final = "mc_"  # noqa: S105 - the public part
"""What every secret begins with, so that secret scanners find those that got lost."""

AUTHORIZATION: Final = "authorization"
"""Metadata key that carries the secret."""

_SECRET_BYTES: Final = 32
_SECRET: Final = re.compile(rf"{SECRET_PREFIX}[A-Za-z0-9_-]{{43}}")
_SCHEME: Final = "bearer "
_CACHE_SECONDS: Final = 2.0
_CACHE_SIZE: Final = 20_000


def new_secret() -> str:
    """Returns a new secret: ``mc_`` and 256 random bits."""
    return SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def hide_secrets(text: str) -> str:
    """Returns a text without the secrets in it; callers paste them where they should not."""
    return _SECRET.sub(f"{SECRET_PREFIX}…", text) if SECRET_PREFIX in text else text


def digest(secret: str) -> str:
    """Returns the SHA-256 of a secret, in hexadecimal.

    It is what is stored and looked up by. A secret has 256 random bits, so a slow hash would add
    nothing; and how long a look-up by digest takes says nothing about any secret.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def bearer_metadata(secret: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that carries a secret."""
    return ((AUTHORIZATION, f"Bearer {secret}"),)


class TokenVerifier(Protocol):
    """Knows the tokens."""

    async def principal(self, secret: str) -> Principal:
        """Returns whose secret it is.

        Raises:
            Exception: It is worth nothing; as UNAUTHENTICATED, once it is translated.
        """

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        """Returns which of these tokens, by their ids, have become worthless."""


class BearerAuthenticator:
    """Knows callers by the token that they send as ``authorization: Bearer SECRET``.

    Who was told from a secret is believed for two seconds: so long may a token that is revoked
    by another process still be taken. One that is revoked by this process is to be forgotten.
    Secrets that were good are looked at again however many strangers come from the same address.
    """

    verifies = True

    def __init__(
        self,
        verifier: TokenVerifier | None = None,
        *,
        cache_seconds: float = _CACHE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes an authenticator.

        Args:
            verifier: Knows the tokens; may be set before the first call too, as ``verifier``.
            cache_seconds: How long to remember whose a secret is.
            clock: Where the time comes from, in seconds.
        """
        self.verifier = verifier
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._known: dict[str, tuple[Principal, float]] = {}

    async def authenticate(self, caller: Caller) -> Principal:
        """Returns the caller's principal.

        Raises:
            MissingCredentialsError: No token was sent.
            Exception: The token is worth nothing, or the tokens can not be looked at.
        """
        secret = _secret(caller)
        key = digest(secret)
        known = self._known.get(key)
        now = self._clock()
        if known is not None and now < known[1]:
            return known[0]
        if known is None and caller.strangers is not None:
            raise caller.strangers
        try:
            principal = await self._require_verifier().principal(secret)
        except Exception:
            # Also where it could not be looked at: it is not known to be good any more.
            self._known.pop(key, None)
            raise
        # The last to be looked at is the last to be forgotten.
        self._known.pop(key, None)
        if len(self._known) >= _CACHE_SIZE:
            del self._known[next(iter(self._known))]
        # Counted from before it was looked at.
        self._known[key] = (principal, now + self._cache_seconds)
        return principal

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        """Returns which of these tokens, by their ids, have become worthless."""
        return await self._require_verifier().ended(credentials)

    def _require_verifier(self) -> TokenVerifier:
        if self.verifier is None:
            raise RuntimeError("a BearerAuthenticator needs a verifier before the first call")
        return self.verifier

    def forget(self, credential: str) -> None:
        """Looks anew at a token, given by its id, when it comes next."""
        stale = [key for key, (known, _) in self._known.items() if known.credential == credential]
        for key in stale:
            del self._known[key]


def _secret(caller: Caller) -> str:
    for key, value in caller.metadata:
        if key == AUTHORIZATION and isinstance(value, str):
            if value[: len(_SCHEME)].lower() != _SCHEME:
                break
            return value[len(_SCHEME) :].strip()
    raise MissingCredentialsError(
        "send a token as 'authorization: Bearer TOKEN'; Midcourse's own clients take it from"
        " MIDCOURSE_TOKEN_FILE or MIDCOURSE_TOKEN, and an administrator makes one with"
        " `midcourse token create`"
    )
