"""`midcourse watch`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from control_plane.cli.completion import complete_job
from control_plane.cli.errors import tell_of_interruption
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.jobs import SelectorOption
from control_plane.cli.sending import duration
from control_plane.cli.session import Session, verb

if TYPE_CHECKING:
    from rich.console import RenderableType

    from control_plane.cli.board import Board
    from control_plane.client import Client, JobWatch
    from midcourse.control.v1 import control_pb2, job_pb2

_REFRESHES_PER_SECOND = 4


@verb
def watch(
    session: Session,
    job: Annotated[
        str,
        typer.Argument(
            metavar="[JOB]",
            help="Only this job; then the watch ends when the job does.",
            autocompletion=complete_job,
        ),
    ] = "",
    selector: SelectorOption = "",
    interval: Annotated[
        float | None,
        typer.Option(
            "--interval",
            parser=duration,
            metavar="DURATION",
            help="Show progress at most this often; by default 1s.",
        ),
    ] = None,
) -> None:
    """Watch jobs live.

    A table on a terminal, else a line for each event. With one job, the watch ends when it does.
    """
    with session.connect(job) as plane:
        last = _Watching(session, plane, job, selector, interval or 1.0).run()
    _judge(last)


class _Watching:
    """One run of the verb.

    A watch that has fallen so far behind that its position is gone begins anew.
    """

    def __init__(
        self, session: Session, plane: Client, job: str, selector: str, interval: float
    ) -> None:
        from control_plane.cli.board import Board

        self._output = session.output

        def begin() -> JobWatch:
            begun = plane.watch_jobs(selector, job=job, progress_interval=interval)
            if not self._output.is_live:  # a table shows it for as long as it lasts
                begun.on_interruption = tell_of_interruption
            return begun

        self._open: Callable[[], JobWatch] = begin
        self._single = bool(job)
        self._told = False
        what = f"there is no job {job!r} yet" if job else "no jobs yet that you may see"
        self._waiting = f"{what}; waiting for {'it' if job else 'one'}"
        self._board: Board = Board()
        self._watch = self._open()

    def run(self) -> job_pb2.Job | None:
        """Shows events until the end; returns the one job watched, as it ended."""
        from control_plane.client import OutOfRangeError

        with ExitStack() as stack:
            stack.callback(self.close)
            if self._output.is_live:
                first = next(self._watch, None)  # what fails at once is no matter for a table
                if first is not None:
                    self._board.apply(first)
                    if self._is_end(first):
                        self._output.show(self._render())
                        return first.job
                from rich.live import Live

                stack.enter_context(
                    Live(
                        get_renderable=self._render,
                        console=self._output.console(),
                        refresh_per_second=_REFRESHES_PER_SECOND,
                    )
                )
            while True:
                try:
                    return self._follow()
                except OutOfRangeError:
                    self._board.clear()
                    self._watch = self._open()

    def close(self) -> None:
        """Ends the watch that is open at the moment."""
        self._watch.close()

    def _follow(self) -> job_pb2.Job | None:
        from control_plane.cli.board import line
        from midcourse.control.v1 import control_pb2

        for event in self._watch:
            self._board.apply(event)
            if self._output.is_json:
                self._output.message(event, one_line=True)
            elif not self._output.is_live and (text := line(event, time.time())):
                self._output.line(text)
            if event.type == control_pb2.JOB_EVENT_TYPE_BOOKMARK and not self._output.is_live:
                self._say_what_it_waits_for()
            if self._is_end(event):
                return event.job
        return None

    def _say_what_it_waits_for(self) -> None:
        """Says once that there is nothing to show, where nobody would see an empty table."""
        if not self._board.jobs and not self._told:
            self._told = True
            typer.echo(self._waiting, err=True)

    def _is_end(self, event: control_pb2.WatchJobsResponse) -> bool:
        from control_plane.cli.board import ENDED

        return self._single and event.HasField("job") and event.job.state in ENDED

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from control_plane.cli import tables

        parts: list[RenderableType] = [tables.live(self._board.jobs, time.time())]
        if not self._board.jobs:
            parts = [Text(self._waiting, style="dim")]
        if (interruption := self._watch.interruption) is not None:
            parts.append(Text(f"{interruption}; trying again", style="yellow"))
        return Group(*parts)


def _judge(job: job_pb2.Job | None) -> None:
    from control_plane.client import job_id
    from midcourse.control.v1 import job_pb2

    if job is not None and job.state == job_pb2.JOB_STATE_FAILED:
        why = f": {job.state_message}" if job.state_message else ""
        raise CommandError(f"{job_id(job.name)} failed{why}", ExitCode.JOB_FAILED)
