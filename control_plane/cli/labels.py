"""`midcourse label`."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli.jobs import JobArgument
from control_plane.cli.sending import DryRunOption
from control_plane.cli.session import Session, verb


@verb
def label(
    session: Session,
    job: JobArgument,
    edits: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE|KEY-...", help="KEY=VALUE sets, KEY- removes."),
    ],
    etag: Annotated[
        str, typer.Option("--etag", help="Change only if the job still has this etag.")
    ] = "",
    dry_run: DryRunOption = False,
) -> None:
    """Set and remove labels of a job.

    They stay so, whatever the job's training process says of the same keys.
    """
    from midcourse.control.v1 import control_pb2

    put, remove = _read(edits)
    with session.connect(job) as plane:
        found = plane.label_job(job, put, remove=remove, etag=etag, validate_only=dry_run)
    if session.output.is_json:
        session.output.message(control_pb2.UpdateJobResponse(job=found))
        return
    labels = ", ".join(f"{key}={value}" for key, value in sorted(found.labels.items()))
    would = "would have" if dry_run else "has"
    session.output.line(f"{found.name.removeprefix('jobs/')} {would} {labels or 'no labels'}")


def _read(edits: list[str]) -> tuple[dict[str, str], list[str]]:
    """Returns what to set and what to remove.

    Raises:
        typer.BadParameter: An edit is neither.
    """
    put: dict[str, str] = {}
    remove: list[str] = []
    for edit in edits:
        key, equals, value = edit.partition("=")
        if equals and key:
            put[key] = value
        elif not equals and edit.endswith("-") and len(edit) > 1:
            remove.append(edit[:-1])
        else:
            raise typer.BadParameter(
                f"{edit!r} is no label; write team=nlp to set, team- to remove"
            )
    return put, remove
