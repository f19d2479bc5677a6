"""`midcourse metrics`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.cli.completion import complete_metric
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.jobs import JobArgument
from control_plane.cli.session import Session, verb

if TYPE_CHECKING:
    from control_plane.client import Client
    from midcourse.control.v1 import control_pb2

_ROWS = 20


@verb
def metrics(
    session: Session,
    job: JobArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME...]",
            help="Metrics, such as loss learning_rate; by default all.",
            autocompletion=complete_metric,
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            "-n",
            min=1,
            help=f"Only the newest so many samples; by default {_ROWS} in a table, all in a plot"
            " or JSON.",
        ),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the course, with applied updates marked.")
    ] = False,
) -> None:
    """Show the course of metrics as a table or a plot."""
    from midcourse.control.v1 import control_pb2, update_pb2

    wanted = list(dict.fromkeys(names or []))
    if plot and session.output.is_json:
        raise typer.BadParameter("--plot is for people and -o json for programs; give one of them")
    as_table = not plot and not session.output.is_json
    with session.connect(job) as plane:
        found = plane.query_metrics(job, wanted, last=last or (_ROWS if as_table else 0))
        found.sort(key=lambda s: wanted.index(s.name) if s.name in wanted else -1)
        _check(plane, job, wanted, found)
        applied = list(plane.list_updates(job, states=[update_pb2.UPDATE_STATE_APPLIED]))
    if session.output.is_json:
        session.output.message(control_pb2.QueryMetricsResponse(series=found))
    elif not found:
        session.output.line("no metrics yet")
    elif plot:
        from control_plane.cli.plot import draw

        console = session.output.console()
        width = console.width if console.is_terminal else min(console.width, 100)
        for line in draw(found, applied, width=width, colour=console.color_system is not None):
            session.output.write(line)
    else:
        from control_plane.cli import courses

        session.output.show(courses.samples(found, applied), "", courses.statistics(found))


def _check(
    plane: Client, job: str, wanted: Sequence[str], found: Sequence[control_pb2.Series]
) -> None:
    """Makes sure that every metric asked for is there.

    Raises:
        CommandError: The job has others, but not these.
    """
    missing = [name for name in wanted if name not in {series.name for series in found}]
    if not missing:
        return
    known = sorted(metric.name for metric in plane.get_job(job).metrics)
    if known and not set(missing) <= set(known):
        unknown = ", ".join(name for name in missing if name not in known)
        close = difflib.get_close_matches(missing[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
        raise CommandError(f"the job has no metric {unknown}; {hint}", ExitCode.NOT_FOUND)
