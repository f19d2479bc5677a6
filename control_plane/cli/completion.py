"""Shell completion of what the control plane knows. Quick, and silent where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import typer

from control_plane.cli.session import GlobalOptions

if TYPE_CHECKING:
    from control_plane.client import Client

_PATIENCE_S = 1.0
_MOST = 200


def complete_job(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Returns the jobs that begin so, with their states."""
    from control_plane.cli import describe
    from control_plane.client import MidcourseError, job_id

    try:
        with _client(context) as plane:
            found = (job for job in plane.list_jobs() if job_id(job.name).startswith(incomplete))
            return [
                (job_id(job.name), describe.job_state(job.state)) for job in islice(found, _MOST)
            ]
    except (MidcourseError, ValueError):
        return []  # a shell that waits for a completion is no place for messages


def complete_assignment(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Returns the live parameters of the job before it, ready for a value."""
    from control_plane.client import MidcourseError

    job = context.params.get("job")
    if not job or "=" in incomplete:
        return []
    try:
        with _client(context) as plane:
            return [
                (f"{spec.name}=", spec.description)
                for spec in plane.get_job(job).parameters
                if spec.name.startswith(incomplete)
            ]
    except (MidcourseError, ValueError):
        return []


def complete_metric(context: typer.Context, incomplete: str) -> list[str]:
    """Returns the metrics of the job before it."""
    from control_plane.client import MidcourseError

    job = context.params.get("job")
    if not job:
        return []
    try:
        with _client(context) as plane:
            metrics = plane.get_job(job).metrics
            return [metric.name for metric in metrics if metric.name.startswith(incomplete)]
    except (MidcourseError, ValueError):
        return []


def _client(context: typer.Context) -> Client:
    from control_plane.client import Client, RetryPolicy

    return Client(_server(context), timeout=_PATIENCE_S, retry=RetryPolicy(attempts=1))


def _server(context: typer.Context) -> str | None:
    return next((s for s in _servers(context) if s), None)


def _servers(context: typer.Context) -> Iterator[str | None]:
    """Yields the addresses given: after the verb, then before it, where no callback ran yet."""
    yield context.params.get("server")
    if before := context.find_object(GlobalOptions):
        yield before.server
    if context.parent is not None:
        yield context.parent.params.get("server")
