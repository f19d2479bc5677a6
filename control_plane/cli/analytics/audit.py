"""`midcourse analytics audit`."""

from __future__ import annotations

from typing import Annotated

from control_plane.cli.analytics.session import AnalyticsSession, analytics_verb
from control_plane.cli.audit import (
    LAST,
    LastOption,
    PrincipalOption,
    SinceOption,
    resource_option,
    show_records,
)


@analytics_verb
def audit(
    session: AnalyticsSession,
    principal: PrincipalOption = "",
    resource: Annotated[
        str, resource_option("sessions/ID", "sessions/ID/messages/2", "budgets")
    ] = "",
    since: SinceOption = None,
    last: LastOption = LAST,
) -> None:
    """Show who asked what was changed and who was refused, newest first. For administrators."""
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as client:
        show_records(
            session.output,
            client.list_audit_records,
            analytics_pb2.ListAuditRecordsResponse,
            principal=principal,
            resource=resource,
            since=since,
            last=last,
        )
