"""`midcourse analytics serve`. Imported only when it is run: it needs the service's packages.

The analytics service is loaded by name: the control plane and its command know its client alone.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer

from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.lazy import AnalyticsServeCommand, needs, standalone
from control_plane.cli.session import GlobalOptions
from grpc_runtime.commands import with_settings
from grpc_runtime.listen import AddressError, ListenError
from grpc_runtime.sql.errors import DatabaseOpenError


def _serve(context: typer.Context, settings: Any) -> None:
    """Run an analytics service until it is told to stop (SIGTERM, Ctrl-C).

    An option comes before an environment variable, and that before the TOML file.
    """
    before = context.find_object(GlobalOptions)
    if before is not None and (before.server, before.analytics) != (None, None):
        raise typer.BadParameter(
            "--server and --analytics are for those who connect; say where to listen with"
            " --listen, and which control plane to ask with --control-plane"
        )
    with needs(AnalyticsServeCommand.invocation, AnalyticsServeCommand.extra):
        server = importlib.import_module("analytics_service.server")
        refusals = importlib.import_module("analytics_service.errors")
        from grpc_runtime.server import ServerCrashedError

        catalogue = importlib.import_module("analytics_service.catalogue.problems")
    try:
        server.serve(settings)
    except AddressError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    except (ListenError, ServerCrashedError, DatabaseOpenError) as error:
        raise CommandError(str(error), ExitCode.FAILURE) from error
    except refusals.Refusal as error:  # of a model that the settings name
        raise CommandError(error.message, ExitCode.USAGE) from error
    except catalogue.CatalogueError as error:
        raise _of_catalogue(error.problems) from error


def _of_catalogue(problems: tuple[object, ...]) -> CommandError:
    if len(problems) == 1:
        return CommandError(str(problems[0]), ExitCode.FAILURE)
    return CommandError(
        f"the catalogue has {len(problems)} problems",
        ExitCode.FAILURE,
        [str(problem) for problem in problems],
    )


def command() -> Any:
    """Returns the command, ready to be run by the group."""
    model = importlib.import_module("analytics_service.config").AnalyticsSettings
    _serve.__annotations__["settings"] = model
    return standalone("serve", with_settings(model)(_serve))
