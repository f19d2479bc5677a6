"""The client's calls about callers and tokens; all but ``get_caller`` is for administrators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from control_plane._client.requests import duration, timestamp
from grpc_runtime.client.call import Call, unary_call
from midcourse.control.v1 import access_pb2 as pb
from midcourse.control.v1.access_pb2_grpc import AccessServiceStub

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from control_plane._client.roles import RoleName
    from grpc_runtime.client.aio import AsyncTransport
    from grpc_runtime.client.transport import Transport

ROLES: Final[dict[RoleName, pb.Role.ValueType]] = {
    "viewer": pb.ROLE_VIEWER,
    "operator": pb.ROLE_OPERATOR,
    "agent": pb.ROLE_AGENT,
    "admin": pb.ROLE_ADMIN,
}


def _get_caller() -> Call[pb.GetCallerResponse]:
    return unary_call(
        AccessServiceStub,
        lambda stub: stub.GetCaller,
        pb.GetCallerRequest(),
        lambda response: response,
    )


def _create_token(
    principal: str,
    role: RoleName,
    selector: str,
    jobs: Iterable[str],
    description: str,
    lifetime: float | None,
    *,
    validate_only: bool,
) -> Call[pb.CreateTokenResponse]:
    return unary_call(
        AccessServiceStub,
        lambda stub: stub.CreateToken,
        pb.CreateTokenRequest(
            principal=principal,
            access=pb.Access(role=ROLES[role], selector=selector, jobs=jobs),
            description=description,
            lifetime=None if lifetime is None else duration(lifetime),
            validate_only=validate_only,
        ),
        lambda response: response,
        repeatable=False,  # there would be two
    )


def _list_tokens(page_size: int, *, show_inactive: bool) -> Call[Sequence[pb.Token]]:
    return unary_call(
        AccessServiceStub,
        lambda stub: stub.ListTokens,
        pb.ListTokensRequest(show_inactive=show_inactive, page_size=page_size),
        lambda response: response.tokens,
    )


def _revoke_token(name: str) -> Call[pb.Token]:
    return unary_call(
        AccessServiceStub,
        lambda stub: stub.RevokeToken,
        pb.RevokeTokenRequest(name=name if "/" in name else f"tokens/{name}"),
        lambda response: response.token,
    )


def _list_audit_records(
    principal: str,
    resource: str,
    start_time: datetime | timedelta | None,
    end_time: datetime | None,
    page_size: int,
) -> Call[Sequence[pb.AuditRecord]]:
    return unary_call(
        AccessServiceStub,
        lambda stub: stub.ListAuditRecords,
        pb.ListAuditRecordsRequest(
            principal=principal,
            resource=resource,
            start_time=None if start_time is None else timestamp(start_time),
            end_time=None if end_time is None else timestamp(end_time),
            page_size=page_size,
        ),
        lambda response: response.records,
    )


class AccessCalls:
    """Who the caller is, the tokens, and the record of who changed what."""

    _transport: Transport

    def get_caller(self) -> pb.GetCallerResponse:
        """Returns who this client is for the server, and what it may do.

        Raises:
            UnauthenticatedError: The server does not know.
        """
        return self._transport.run(_get_caller())

    def create_token(
        self,
        principal: str,
        role: RoleName,
        *,
        selector: str = "",
        jobs: Iterable[str] = (),
        description: str = "",
        lifetime: float | None = None,
        validate_only: bool = False,
    ) -> pb.CreateTokenResponse:
        """Makes a token; its ``secret`` is in the answer, and can not be asked for again.

        Args:
            principal: Who is to use it.
            role: What it allows.
            selector: Only with jobs that this label selector matches.
            jobs: Only with these: ids, or beginnings of ids followed by ``*``. An agent's must
                name some.
            description: What it is for.
            lifetime: Seconds that it is good for; None: 90 days; 0: for ever.
            validate_only: Check only; make nothing.

        Raises:
            InvalidArgumentError: One of these is not allowed.
            PermissionDeniedError: This client is no administrator.
        """
        call = _create_token(
            principal, role, selector, jobs, description, lifetime, validate_only=validate_only
        )
        return self._transport.run(call)

    def list_tokens(self, *, show_inactive: bool = False, page_size: int = 0) -> Iterator[pb.Token]:
        """Returns tokens, newest first, without their secrets, fetched page by page.

        Args:
            show_inactive: Those too that are revoked or expired.
            page_size: Tokens to fetch at a time; 0: the server's choice.

        Raises:
            PermissionDeniedError: This client is no administrator.
        """
        return self._transport.run_pages(_list_tokens(page_size, show_inactive=show_inactive))

    def revoke_token(self, name: str) -> pb.Token:
        """Makes a token worthless at once; returns it as it is then.

        Args:
            name: Its resource name, ``tokens/…``, or the part after the slash.

        Raises:
            NotFoundError: There is no such token.
            PermissionDeniedError: This client is no administrator.
        """
        return self._transport.run(_revoke_token(name))

    def list_audit_records(
        self,
        *,
        principal: str = "",
        resource: str = "",
        start_time: datetime | timedelta | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> Iterator[pb.AuditRecord]:
        """Returns who changed what and who was refused, newest first, fetched page by page.

        Args:
            principal: Only of this one.
            resource: Only about this and what is below it, such as ``jobs/my-run``.
            start_time: Only at or after this time; or so long from now.
            end_time: Only before this time.
            page_size: Records to fetch at a time; 0: the server's choice.

        Raises:
            PermissionDeniedError: This client is no administrator.
        """
        call = _list_audit_records(principal, resource, start_time, end_time, page_size)
        return self._transport.run_pages(call)


class AsyncAccessCalls:
    """As :class:`AccessCalls`, awaitable."""

    _transport: AsyncTransport

    async def get_caller(self) -> pb.GetCallerResponse:
        """As :meth:`Client.get_caller`."""
        return await self._transport.run(_get_caller())

    async def create_token(
        self,
        principal: str,
        role: RoleName,
        *,
        selector: str = "",
        jobs: Iterable[str] = (),
        description: str = "",
        lifetime: float | None = None,
        validate_only: bool = False,
    ) -> pb.CreateTokenResponse:
        """As :meth:`Client.create_token`."""
        call = _create_token(
            principal, role, selector, jobs, description, lifetime, validate_only=validate_only
        )
        return await self._transport.run(call)

    def list_tokens(
        self, *, show_inactive: bool = False, page_size: int = 0
    ) -> AsyncIterator[pb.Token]:
        """As :meth:`Client.list_tokens`, to be iterated over with ``async for``."""
        return self._transport.run_pages(_list_tokens(page_size, show_inactive=show_inactive))

    async def revoke_token(self, name: str) -> pb.Token:
        """As :meth:`Client.revoke_token`."""
        return await self._transport.run(_revoke_token(name))

    def list_audit_records(
        self,
        *,
        principal: str = "",
        resource: str = "",
        start_time: datetime | timedelta | None = None,
        end_time: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[pb.AuditRecord]:
        """As :meth:`Client.list_audit_records`, to be iterated over with ``async for``."""
        call = _list_audit_records(principal, resource, start_time, end_time, page_size)
        return self._transport.run_pages(call)
