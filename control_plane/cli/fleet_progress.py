"""A batch while it goes on: a progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from control_plane.cli.errors import tell_of_interruption
from midcourse.control.v1 import batch_pb2, control_pb2

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from control_plane.cli.session import Session
    from control_plane.client import Client

_REFRESHES_PER_SECOND = 10
_DELETED = "JOB_DELETED"


class Followed:
    """One batch that is followed.

    Attributes:
        batch: As it was last told.
    """

    def __init__(self, session: Session, plane: Client, name: str, timeout: float | None) -> None:
        self._output = session.output
        self._timeout = timeout
        self._watch = plane.watch_batch(name)
        self._watch.on_interruption = tell_of_interruption
        self._items: dict[str, batch_pb2.BatchItem] = {}
        self._deleted: set[str] = set()
        self.batch = batch_pb2.Batch(name=name)

    def items(self) -> list[batch_pb2.BatchItem]:
        """Returns what became of it at each job, in the order of their names."""
        return [self._items[job] for job in sorted(self._items)]

    def run(self) -> bool:
        """Follows it to its end; returns whether that came in time."""
        in_time = True

        def give_up() -> None:
            nonlocal in_time
            in_time = False
            self._watch.close()

        with ExitStack() as stack:
            stack.callback(self._watch.close)
            if self._timeout is not None:
                timer = threading.Timer(self._timeout, give_up)
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)
            bar = (
                stack.enter_context(_bar(self._output.console())) if self._output.is_live else None
            )
            task = bar.add_task("", total=None, counts="") if bar is not None else None
            for news in self._watch:
                self.note(news)
                if bar is not None and task is not None:
                    _show(bar, task, news.batch.progress)
        return in_time

    def look(self) -> None:
        """Finds out how it stands now."""
        with self._watch:
            for news in self._watch:
                self.note(news)
                if len(self._items) - len(self._deleted) >= _known(self.batch.progress):
                    return

    def note(
        self, news: control_pb2.WatchBatchResponse | control_pb2.BatchUpdateParametersResponse
    ) -> None:
        """Takes what is told of it."""
        self.batch.CopyFrom(news.batch)
        self._items.update((item.job, item) for item in news.items)
        self._deleted.update(item.job for item in news.items if item.refusal.reason == _DELETED)


def _bar(console: object) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    assert isinstance(console, Console)
    return Progress(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[counts]}"),
        console=console,
        refresh_per_second=_REFRESHES_PER_SECOND,
        expand=True,
    )


def _show(bar: Progress, task: TaskID, progress: batch_pb2.BatchProgress) -> None:
    still_open = progress.pending + progress.delivered
    taken = progress.total - progress.refused
    bar.update(task, total=taken, completed=taken - still_open, counts=counts(progress))


def deleted(progress: batch_pb2.BatchProgress) -> int:
    """Returns how many jobs were deleted since, so that nobody knows what became of it there."""
    return progress.total - _known(progress)


def _known(progress: batch_pb2.BatchProgress) -> int:
    still_open = progress.pending + progress.delivered
    ended = progress.applied + progress.rejected + progress.expired + progress.cancelled
    return still_open + ended + progress.refused


def counts(progress: batch_pb2.BatchProgress) -> str:
    """Returns how many jobs are where, without those of which there are none."""
    shown = (
        ("applied", progress.applied),
        ("pending", progress.pending),
        ("delivered", progress.delivered),
        ("rejected", progress.rejected),
        ("expired", progress.expired),
        ("cancelled", progress.cancelled),
        ("refused", progress.refused),
        ("deleted", deleted(progress)),
    )
    return ", ".join(f"{count} {name}" for name, count in shown if count)
