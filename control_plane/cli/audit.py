"""`midcourse audit`."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from control_plane.cli.sending import duration
from control_plane.cli.session import Session, verb


@verb
def audit(
    session: Session,
    principal: Annotated[
        str, typer.Option("--principal", "-p", metavar="PRINCIPAL", help="Only of this caller.")
    ] = "",
    resource: Annotated[
        str,
        typer.Option(
            "--resource",
            "-r",
            metavar="NAME",
            help="Only about this and what is below it: jobs/my-run, jobs/my-run/updates/3,"
            " batches/2, tokens/0123456789ab.",
        ),
    ] = "",
    since: Annotated[
        float | None,
        typer.Option(
            "--since",
            parser=duration,
            metavar="DURATION",
            help="Only so far back, such as 2h or 7d.",
        ),
    ] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="Only the newest so many.")] = 50,
) -> None:
    """Show who changed what and who was refused, newest first. For administrators."""
    from itertools import islice

    from midcourse.control.v1 import access_pb2

    with session.connect() as plane:
        records = plane.list_audit_records(
            principal=principal,
            resource=resource,
            start_time=None if since is None else timedelta(seconds=-since),
            page_size=min(last, 1_000),
        )
        found = list(islice(records, last))
    if session.output.is_json:
        session.output.message(access_pb2.ListAuditRecordsResponse(records=found))
    elif not found:
        session.output.line("nothing was recorded" if since is None else "nothing in that time")
    else:
        from control_plane.cli import audit_tables

        session.output.show(audit_tables.records(found))
