"""`midcourse serve`. Imported only when it is run: it needs the server's packages."""

from __future__ import annotations

from typing import Any

import typer

from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.lazy import standalone
from control_plane.cli.session import GlobalOptions
from control_plane.config import ServerSettings
from grpc_runtime.commands import with_settings
from grpc_runtime.listen import AddressError, ListenError
from grpc_runtime.process import importing_much


@with_settings(ServerSettings)
def serve(context: typer.Context, settings: ServerSettings) -> None:
    """Run a control plane until it is told to stop (SIGTERM, Ctrl-C).

    An option comes before an environment variable, and that before the TOML file.
    """
    with importing_much():
        from control_plane.server import serve as run
        from control_plane.store.errors import StoreError
        from grpc_runtime.server import ServerCrashedError

    before = context.find_object(GlobalOptions)
    if before is not None and before.server is not None:
        raise typer.BadParameter("--server is for those who connect; say where to listen below")
    try:
        run(settings)
    except AddressError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    except (ListenError, ServerCrashedError, StoreError) as error:
        raise CommandError(str(error), ExitCode.FAILURE) from error


def command() -> Any:
    """Returns the command, ready to be run by the group."""
    return standalone("serve", serve)
