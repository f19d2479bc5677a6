"""`midcourse sessions`, `sessions show`, `rename` and `delete`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from control_plane.cli.analytics.groups import listing_group
from control_plane.cli.analytics.options import SessionArgument
from control_plane.cli.analytics.session import AnalyticsSession, analytics_verb


def _list_sessions(session: AnalyticsSession) -> None:
    """List the sessions; show, rename and delete them.

    The one used last comes first.
    """
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        listing = list(analytics.list_sessions(page_size=1_000))
    if session.output.is_json:
        session.output.message(analytics_pb2.ListSessionsResponse(sessions=listing))
    elif not listing:
        session.output.line("no sessions yet; `midcourse chat` begins one")
    else:
        from control_plane.cli.analytics import tables

        session.output.show(tables.sessions(listing, time.time()))


@analytics_verb
def show_session(session: AnalyticsSession, name: SessionArgument) -> None:
    """Print what was asked and answered, with calls of tools."""
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        if session.output.is_json:
            messages = list(analytics.list_messages(name))
            session.output.message(analytics_pb2.ListMessagesResponse(messages=messages))
            return
        from control_plane.cli.analytics import transcript

        found = analytics.get_session(name)
        transcript.show(session.output, found, analytics.list_messages(name), time.time())


@analytics_verb
def rename(
    session: AnalyticsSession,
    name: SessionArgument,
    title: Annotated[str, typer.Argument(metavar="TITLE", help="The new title.")],
) -> None:
    """Give a session another title."""
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        changed = analytics.update_session(name, title=title)
    if session.output.is_json:
        session.output.message(analytics_pb2.UpdateSessionResponse(session=changed))
    else:
        from control_plane.cli import printable
        from control_plane.cli.analytics.words import session_id

        title = printable.line(changed.title)
        session.output.line(
            f"{session_id(changed.name)} {f'is now {title}' if title else 'has no title now'}"
        )


@analytics_verb
def delete(session: AnalyticsSession, name: SessionArgument) -> None:
    """Delete a session with its messages. What it has cost stays on record."""
    from midcourse.analytics.v1 import analytics_pb2

    with session.connect() as analytics:
        analytics.delete_session(name)
    if session.output.is_json:
        session.output.message(analytics_pb2.DeleteSessionResponse())
    else:
        from control_plane.cli.analytics.words import session_id

        session.output.line(f"{session_id(name)} deleted")


sessions = listing_group(_list_sessions)
sessions.command("show")(show_session)
sessions.command("rename")(rename)
sessions.command("delete")(delete)
