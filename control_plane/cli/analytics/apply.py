"""Submits a change that a model has drafted, as it stands, to the control plane."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from control_plane.cli import describe, printable
from control_plane.cli.analytics import notes
from control_plane.cli.errors import from_client
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.session import Session
from control_plane.client import MidcourseError, UpdateOptions, job_id
from midcourse.analytics.v1 import session_pb2

if TYPE_CHECKING:
    from midcourse.control.v1 import control_pb2


def apply(
    proposed: session_pb2.ProposedUpdate,
    plane: Session,
    console: Console,
    confirm: Callable[[str], bool],
) -> bool:
    """Shows a drafted change, submits it if the person agrees, and waits until it is in force.

    Args:
        proposed: The draft.
        plane: How to reach the control plane.
        console: On the terminal.
        confirm: Asks the person a question.

    Returns:
        Whether the control plane has accepted it.

    Raises:
        CommandError: The control plane refuses, does not answer, or did not apply it.
    """
    for note in notes.proposal(proposed):
        console.print(Text(note.text, style=note.style))
    if proposed.HasField("error") and not proposed.HasField("validated"):
        # It may have been the service's caller who may not, or another state of the job.
        question = "The control plane refused the draft when it was made. Submit it all the same?"
    else:
        question = "Submit this to the control plane?"
    if not confirm(question):
        console.print(Text("nothing was changed", style="dim"))
        return False
    request = proposed.request
    job = job_id(request.job)
    with plane.connect(job) as client:
        try:
            update = client.update_parameters(
                job,
                request.spec.changes,
                action=request.spec.action if request.spec.HasField("action") else None,
                **options_of(request),
            )
            console.print(f"accepted as revision {update.revision}; waiting until it is in force")
            try:
                update = client.wait_applied(job, update.revision)
            except KeyboardInterrupt:
                console.print(
                    f"it stays accepted: see `midcourse history {job}`, or withdraw it with"
                    f" `midcourse cancel {job} {update.revision}`"
                )
                return True
        except MidcourseError as error:
            raise from_client(error) from error
    console.print(Text(printable.line(describe.applied(update)), style="green"))
    return True


def options_of(request: control_pb2.UpdateParametersRequest) -> UpdateOptions:
    """Returns the options with which a client sends just this request.

    Raises:
        CommandError: The request is only a check.
    """
    if request.validate_only:
        raise CommandError("the draft is a check only and would change nothing", ExitCode.REFUSED)
    spec = request.spec
    options: UpdateOptions = {
        "at_step": spec.apply_at.step if spec.apply_at.HasField("step") else None,
        "max_step": spec.apply_at.max_step if spec.apply_at.HasField("max_step") else None,
        "reason": spec.reason,
        "force": spec.force,
        "expected_revision": request.expected_revision
        if request.HasField("expected_revision")
        else None,
        "request_id": request.request_id or None,
    }
    if spec.HasField("deadline"):
        options["deadline"] = spec.deadline.ToDatetime(UTC)
    return options
