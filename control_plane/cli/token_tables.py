"""Tokens in words and tables, out of the API's messages."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from control_plane.cli import describe
from control_plane.cli import format as fmt
from control_plane.cli.fitting import FittingTable
from midcourse.control.v1 import access_pb2

_SHORT: Final = timedelta(days=2)


def role(of: access_pb2.Access) -> str:
    """Returns a role's name; a dash where there is none, or it is not known here."""
    if of.role not in access_pb2.Role.values() or of.role == access_pb2.ROLE_UNSPECIFIED:
        return fmt.UNKNOWN
    return access_pb2.Role.Name(of.role).removeprefix("ROLE_").lower()


def scope(of: access_pb2.Access) -> str:
    """Returns with which jobs: "all jobs", "jobs a, b*", "jobs with team=nlp"."""
    named = f" {', '.join(of.jobs)}" if of.jobs else ""
    labelled = f" with {of.selector}" if of.selector else ""
    return f"jobs{named}{labelled}" if named or labelled else "all jobs"


def access(of: access_pb2.Access) -> str:
    """Returns what a caller may do: "operator, jobs with team=nlp"."""
    return f"{role(of)}, {scope(of)}"


def summary(token: access_pb2.Token) -> str:
    """Returns who may do what, and until when."""
    until = "for ever"
    if token.HasField("expire_time"):
        until = f"until {_end(token)}"
    return f"{token.principal}, {access(token.access)}, {until}"


def tokens(listing: Iterable[access_pb2.Token], now: float) -> FittingTable:
    """Returns the table of tokens."""
    columns = ("TOKEN", "PRINCIPAL", "ROLE", "JOBS", "STATE", "LAST USED", "MADE BY", "FOR")
    table = FittingTable(
        *columns,
        wrap={"PRINCIPAL": 12, "JOBS": 16, "STATE": 12, "FOR": 12},
        leave_out=("MADE BY", "LAST USED", "FOR"),
        say_so=True,
    )
    for token in listing:
        table.add_row(
            token.name.removeprefix("tokens/"),
            token.principal,
            role(token.access),
            scope(token.access),
            _state(token, now),
            _ago(token, "last_use_time", now),
            token.creator or fmt.UNKNOWN,
            token.description,
        )
    return table


def _state(token: access_pb2.Token, now: float) -> str:
    if token.HasField("revoke_time"):
        return f"revoked {_ago(token, 'revoke_time', now)}"
    if not token.HasField("expire_time"):
        return "for ever"
    word = "expired" if describe.seconds(token.expire_time) <= now else "expires"
    return f"{word} {_ago(token, 'expire_time', now)}"


def _ago(token: access_pb2.Token, field: str, now: float) -> str:
    if not token.HasField(field):  # type: ignore[arg-type]  # a name of a field
        return "never"
    return fmt.age(now - describe.seconds(getattr(token, field)))


def _end(token: access_pb2.Token) -> str:
    """Returns the day, and of a token that is short-lived the time too."""
    end = token.expire_time.ToDatetime()
    if end - token.create_time.ToDatetime() > _SHORT:
        return end.date().isoformat()
    return f"{end:%Y-%m-%d %H:%M:%S} UTC"
