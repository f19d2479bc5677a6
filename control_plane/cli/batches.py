"""`midcourse batches` and `batch`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from control_plane.cli.sending import ReasonOption
from control_plane.cli.session import Session, verb


@verb
def list_batches(
    session: Session,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="Only the newest so many.")] = 20,
) -> None:
    """List changes that were sent to many jobs, newest first."""
    from itertools import islice

    from midcourse.control.v1 import control_pb2

    with session.connect() as plane:
        found = list(islice(plane.list_batches(page_size=min(last, 1000)), last))
    if session.output.is_json:
        session.output.message(control_pb2.ListBatchesResponse(batches=found))
    elif not found:
        session.output.line("no batches yet that you may see")
    else:
        from control_plane.cli import fleet_tables

        session.output.show(fleet_tables.batches(found, time.time()))


@verb
def batch(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="BATCH", help="Its number.")],
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Wait until all of it is settled.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Withdraw what is not in force yet.")
    ] = False,
    reason: ReasonOption = "",
) -> None:
    """Show what became of a change that was sent to many jobs.

    With --watch, the exit code tells whether it is in force everywhere.
    """
    from control_plane.cli import fleet
    from control_plane.cli.fleet_progress import Followed, counts
    from midcourse.control.v1 import control_pb2

    if not name.removeprefix("batches/").isdecimal():
        raise typer.BadParameter(f"got {name!r}, which is no number of a batch")
    if reason and not cancel:
        raise typer.BadParameter("--reason is why to --cancel; give both")
    with session.connect() as plane:
        withdrawn = plane.cancel_batch(name, reason=reason) if cancel else None
        if watch:
            fleet.follow(session, plane, name, None)
            return
        if withdrawn is not None:
            if session.output.is_json:
                session.output.message(control_pb2.CancelBatchResponse(batch=withdrawn))
            else:
                session.output.line(f"{withdrawn.name}: {counts(withdrawn.progress)}")
            return
        followed = Followed(session, plane, name, None)
        followed.look()
    found, items = followed.batch, followed.items()
    if session.output.is_json:
        answer = control_pb2.BatchUpdateParametersResponse(batch=found, items=items)
        session.output.message(answer)
        return
    from control_plane.cli import fleet_tables

    session.output.show(fleet_tables.batches([found], time.time()), "")
    session.output.show(fleet_tables.items(found.spec, items))
