"""Shell completion of what the services know. Quick, and silent where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import typer

from control_plane.cli import printable
from control_plane.cli.credentials import connect_with
from control_plane.cli.session import GlobalOptions

if TYPE_CHECKING:
    from analytics_service.client import Client as AnalyticsClient
    from control_plane.client import Client

_PATIENCE_S = 1.0
_MOST = 200
_CREDENTIALS = ("token_file", "tls_ca", "client_cert", "client_key")


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
                (f"{spec.name}=", printable.line(spec.description))
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
            names = [metric.name for metric in metrics if metric.name.startswith(incomplete)]
            return [name for name in names if name.isprintable()]  # a shell shows them as they are
    except (MidcourseError, ValueError):
        return []


def complete_model(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Returns the models that can be chosen and begin so, with their names."""
    from analytics_service.client import MidcourseError

    try:
        with _analytics_client(context) as analytics:
            return [
                (model.model_id, model.display_name)
                for model in analytics.list_models(available_only=True)
                if model.model_id.startswith(incomplete)
            ]
    except (MidcourseError, ValueError):
        return []


def complete_session(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Returns the sessions that begin so, with their titles."""
    from analytics_service.client import MidcourseError
    from control_plane.cli.analytics.words import session_id

    try:
        with _analytics_client(context) as analytics:
            known = (
                (session_id(one.name), printable.line(one.title))
                for one in analytics.list_sessions()
            )
            return list(islice((one for one in known if one[0].startswith(incomplete)), _MOST))
    except (MidcourseError, ValueError):
        return []


def _client(context: typer.Context) -> Client:
    from control_plane.client import Client, RetryPolicy

    address = _address(context, "server")
    return Client(address, timeout=_PATIENCE_S, retry=RetryPolicy(attempts=1))


def _analytics_client(context: typer.Context) -> AnalyticsClient:
    from analytics_service.client import Client, RetryPolicy

    address = _address(context, "analytics")
    return Client(address, timeout=_PATIENCE_S, retry=RetryPolicy(attempts=1))


def _address(context: typer.Context, option: Literal["server", "analytics"]) -> str | None:
    """Returns the address to ask, with what stands before the verb to connect with."""
    given = context.find_root().params
    connect_with(*(given.get(name) for name in _CREDENTIALS))
    return next((address for address in _addresses(context, option) if address), None)


def _addresses(
    context: typer.Context, option: Literal["server", "analytics"]
) -> Iterator[str | None]:
    """Yields the addresses given: after the verb, then before it, where no callback ran yet."""
    at: Any = context
    while at is not None:
        yield at.params.get(option)
        if isinstance(at.obj, GlobalOptions):
            yield getattr(at.obj, option)
        at = at.parent
