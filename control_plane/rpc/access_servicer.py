"""AccessService: who the caller is, the tokens, and the record of changes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from control_plane.domain.access import Access, Role, Token, parse_token_name
from control_plane.domain.errors import invalid
from grpc_runtime.audit import convert
from grpc_runtime.auth import Principal, current_principal
from grpc_runtime.convert import seconds_of
from grpc_runtime.paging import page_size, read_token, write_token
from midcourse.control.v1 import access_pb2 as pb
from midcourse.control.v1 import access_pb2_grpc

if TYPE_CHECKING:
    from datetime import datetime

    import grpc

    from control_plane.services.access import TokenService
    from grpc_runtime.audit.log import AuditLog

    Context = grpc.aio.ServicerContext[Any, Any]

_ROLES: Final = {
    pb.ROLE_VIEWER: Role.VIEWER,
    pb.ROLE_OPERATOR: Role.OPERATOR,
    pb.ROLE_AGENT: Role.AGENT,
    pb.ROLE_ADMIN: Role.ADMIN,
}
_NUMBERS: Final = {role.value: number for number, role in _ROLES.items()}


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """Converts requests, calls one use case each, converts the answers."""

    def __init__(self, tokens: TokenService, audit: AuditLog) -> None:
        """Takes the use cases."""
        self._tokens = tokens
        self._audit = audit

    async def GetCaller(
        self, request: pb.GetCallerRequest, context: Context
    ) -> pb.GetCallerResponse:
        """Returns who the caller is and what it may do."""
        principal = current_principal()
        role = next(iter(principal.roles), "")
        return pb.GetCallerResponse(
            principal=principal.name,
            access=pb.Access(
                role=_NUMBERS.get(role, pb.ROLE_UNSPECIFIED),
                selector=principal.selector,
                jobs=principal.only,
            ),
            token=f"tokens/{principal.credential}" if principal.credential else "",
        )

    async def CreateToken(
        self, request: pb.CreateTokenRequest, context: Context
    ) -> pb.CreateTokenResponse:
        """Makes a token. Its secret is shown this once."""
        lifetime = None
        if request.HasField("lifetime"):
            lifetime = timedelta(seconds=seconds_of(request.lifetime, "lifetime"))
        token, secret = await self._tokens.create(
            request.principal,
            _access_of(request.access),
            description=request.description,
            lifetime=lifetime,
            creator=current_principal().name,
            validate_only=request.validate_only,
        )
        return pb.CreateTokenResponse(token=token_message(token), secret=secret)

    async def ListTokens(
        self, request: pb.ListTokensRequest, context: Context
    ) -> pb.ListTokensResponse:
        """Lists tokens, without their secrets, newest first."""
        query = f"tokens|{request.show_inactive}"
        beyond = read_token(request.page_token, query)
        page = await self._tokens.list(
            show_inactive=request.show_inactive,
            beyond=beyond if isinstance(beyond, int) else None,
            limit=page_size(request.page_size),
        )
        return pb.ListTokensResponse(
            tokens=[token_message(token) for token in page.tokens],
            next_page_token=write_token(page.next_beyond, query),
        )

    async def RevokeToken(
        self, request: pb.RevokeTokenRequest, context: Context
    ) -> pb.RevokeTokenResponse:
        """Makes a token worthless at once."""
        token = await self._tokens.revoke(parse_token_name(request.name))
        return pb.RevokeTokenResponse(token=token_message(token))

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: Context
    ) -> pb.ListAuditRecordsResponse:
        """Lists the record of changes and of refused calls, newest first."""
        fields = await convert.page(self._audit, request, pb.AuditRecord)
        return pb.ListAuditRecordsResponse(**fields)


class Tokens:
    """Tells the server who sent a token."""

    def __init__(self, tokens: TokenService) -> None:
        """Takes the use case."""
        self._tokens = tokens

    async def principal(self, secret: str) -> Principal:
        """Returns whose secret it is.

        Raises:
            Refusal: It is worth nothing.
        """
        token = await self._tokens.recognize(secret)
        access = token.access
        return Principal(
            token.principal,
            frozenset({access.role.value}),
            selector=access.selector,
            only=access.jobs,
            credential=token.id,
        )

    async def ended(self, credentials: Collection[str]) -> Collection[str]:
        """Returns which of these tokens, by their ids, have become worthless."""
        return await self._tokens.ended(credentials)


def _access_of(access: pb.Access) -> Access:
    role = _ROLES.get(access.role)
    if role is None:
        raise invalid(
            "access.role",
            f"got {access.role}, allowed: "
            + ", ".join(f"{number} ({role})" for number, role in _ROLES.items()),
        )
    return Access(role, access.selector, tuple(access.jobs))


def token_message(token: Token) -> pb.Token:
    """A token in the API's terms."""
    message = pb.Token(
        name=token.name,
        principal=token.principal,
        access=pb.Access(
            role=_NUMBERS[token.access.role.value],
            selector=token.access.selector,
            jobs=token.access.jobs,
        ),
        description=token.description,
        creator=token.creator,
    )
    times: dict[str, datetime | None] = {
        "create_time": token.create_time,
        "expire_time": token.expire_time,
        "revoke_time": token.revoke_time,
        "last_use_time": token.last_use_time,
    }
    for field, time in times.items():
        if time is not None:
            getattr(message, field).FromDatetime(time)
    return message
