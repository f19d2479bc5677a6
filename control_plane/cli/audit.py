"""`midcourse audit`, and what it shares with `midcourse analytics audit`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from control_plane.cli.sending import duration
from control_plane.cli.session import Session, verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from control_plane.cli.output import Output
    from midcourse.control.v1 import access_pb2

PrincipalOption: TypeAlias = Annotated[
    str, typer.Option("--principal", "-p", metavar="PRINCIPAL", help="Only of this caller.")
]
SinceOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--since",
        parser=duration,
        metavar="DURATION",
        help="Only so far back, such as 2h or 7d.",
    ),
]
LastOption: TypeAlias = Annotated[
    int, typer.Option("--last", "-n", min=1, help="Only the newest so many.")
]
LAST = 50
_LARGEST_PAGE = 1_000


def resource_option(*examples: str) -> Any:
    """Returns the option that says what the records are to be about."""
    named = ", ".join(examples)
    return typer.Option(
        "--resource", "-r", metavar="NAME", help=f"Only about this and what is below it: {named}."
    )


def show_records(
    output: Output,
    listed: Callable[..., Iterable[access_pb2.AuditRecord]],
    response: Callable[..., Any],
    *,
    principal: str,
    resource: str,
    since: float | None,
    last: int,
) -> None:
    """Lists records and shows them.

    Args:
        output: Where to.
        listed: A client's ``list_audit_records``.
        response: The message that holds them in the service's API.
        principal: Only of this one; empty: of all.
        resource: Only about this; empty: whatever.
        since: Only so many seconds back; None: all.
        last: Only the newest so many.
    """
    from itertools import islice

    records = listed(
        principal=principal,
        resource=resource,
        start_time=None if since is None else datetime.now(UTC) - timedelta(seconds=since),
        page_size=min(last, _LARGEST_PAGE),
    )
    found = list(islice(records, last))
    if output.is_json:
        output.message(response(records=found))
    elif not found:
        what = " of that" if principal or resource else ""
        output.line(f"nothing{what} was recorded{'' if since is None else ' in that time'}")
    else:
        from control_plane.cli import audit_tables

        output.show(audit_tables.records(found))


@verb
def audit(
    session: Session,
    principal: PrincipalOption = "",
    resource: Annotated[
        str,
        resource_option("jobs/my-run", "jobs/my-run/updates/3", "batches/2", "tokens/0123456789ab"),
    ] = "",
    since: SinceOption = None,
    last: LastOption = LAST,
) -> None:
    """Show who changed what and who was refused, newest first. For administrators.

    The analytics service keeps records of its own: see 'midcourse analytics audit'.
    """
    from midcourse.control.v1 import access_pb2

    with session.connect() as plane:
        show_records(
            session.output,
            plane.list_audit_records,
            access_pb2.ListAuditRecordsResponse,
            principal=principal,
            resource=resource,
            since=since,
            last=last,
        )
