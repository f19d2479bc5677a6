"""Who may call which method: deny by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from grpc_runtime.auth import ADMIN
from grpc_runtime.errors import StatusError
from grpc_runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from grpc_runtime.auth import Principal

ANYBODY: Final = frozenset({"anybody"})
"""Roles of a method that is open to calls without credentials."""

ANY_CALLER: Final = frozenset({"any caller"})
"""Roles of a method that every caller may call who is known."""

# Probes have no credentials, and all they learn is whether the server is up.
_HEALTH: Final = "/grpc.health.v1.Health/"
# What reflection tells is no secret, but nothing that strangers need either.
_REFLECTION: Final = ("/grpc.reflection.v1.", "/grpc.reflection.v1alpha.")

_log = get_logger(__name__)


class Policy:
    """Roles by method. A method without an entry is for nobody, administrators neither.

    Health checks are open to anybody; reflection is for every caller who is known.
    """

    def __init__(self, methods: Mapping[str, Collection[str]]) -> None:
        """Makes a policy.

        Args:
            methods: The roles that may call a method (full name, such as
                ``/package.Service/Method``), or :data:`ANYBODY` or :data:`ANY_CALLER`. ``admin``
                is among the roles of every method that has any.
        """
        self._methods = {
            name: frozenset(roles) | ({ADMIN} if roles else frozenset())
            for name, roles in methods.items()
        }

    def roles(self, method: str) -> frozenset[str] | None:
        """Returns who may call a method; None: nothing is said about it."""
        if method.startswith(_HEALTH):
            return ANYBODY
        if method.startswith(_REFLECTION):
            return ANY_CALLER
        return self._methods.get(method)

    def is_open(self, method: str) -> bool:
        """Tells whether a method may be called without credentials."""
        return (self.roles(method) or frozenset()) >= ANYBODY

    def check(self, principal: Principal, method: str) -> None:
        """Makes sure that a caller may call a method.

        Raises:
            StatusError: PERMISSION_DENIED, saying which roles may.
        """
        roles = self.roles(method)
        if roles is None:
            _log.error("a method has no policy: nobody may call it", method=method)
            raise StatusError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{method} has no policy, so nobody may call it: the server has to be mended",
                reason="NO_POLICY",
            )
        if roles >= ANYBODY or roles >= ANY_CALLER or not roles.isdisjoint(principal.roles):
            return
        has = " and ".join(sorted(principal.roles)) or "none"
        raise StatusError(
            grpc.StatusCode.PERMISSION_DENIED,
            f"{method.rpartition('/')[2]} is for the role {' or '.join(sorted(roles))};"
            f" {principal.name!r} has the role {has}; ask an administrator for credentials of"
            " such a role",
            reason="ROLE_REQUIRED",
            metadata={"allowed": ",".join(sorted(roles)), "role": has},
        )
