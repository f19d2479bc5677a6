"""`midcourse health`: what a container's health check runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from control_plane.cli.errors import CONTROL_PLANE_HINT, from_client
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.lazy import needs
from control_plane.cli.session import Session, verb

_HINT = "is a server running there?"


@verb
def health(
    session: Session,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Any server's plain listener, such as its --health-listen; instead of --server.",
        ),
    ] = None,
    service: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A gRPC service of it, such as midcourse.control.v1.ControlPlaneService.",
        ),
    ] = "",
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait for the answer.")
    ] = 3.0,
) -> None:
    """Ask a server whether it serves; exit code 0 if it does."""
    with needs("midcourse health", "server"):
        from grpc_health.v1 import health_pb2, health_pb2_grpc
    from control_plane._client.target import CONTROL_PLANE
    from control_plane.client import MidcourseError, NotFoundError
    from grpc_runtime.client.credentials import NO_CREDENTIALS
    from grpc_runtime.client.retry import RetryPolicy
    from grpc_runtime.client.transport import Transport

    try:
        transport = Transport(
            replace(CONTROL_PLANE, name="server") if address else CONTROL_PLANE,
            address or session.server,
            timeout=timeout,
            retry=RetryPolicy(attempts=1),
            credentials=NO_CREDENTIALS if address else None,
        )
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    try:
        stub: Any = health_pb2_grpc.HealthStub(transport.channel)
        answer = transport.call(stub.Check, health_pb2.HealthCheckRequest(service=service))
    except NotFoundError as error:
        raise CommandError(
            f"the server at {transport.address} has no service {service!r}", ExitCode.NOT_FOUND
        ) from error
    except MidcourseError as error:
        raise from_client(error, _HINT if address else CONTROL_PLANE_HINT) from error
    finally:
        transport.close()
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if session.output.is_json:
        session.output.message(answer)
    elif status == "SERVING":
        session.output.line(status)
    if status != "SERVING":
        message = f"the server at {transport.address} says {status}"
        raise CommandError(message, ExitCode.UNREACHABLE)
