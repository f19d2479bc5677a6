"""A command that is loaded when it is run: `midcourse serve` needs what others do without."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from control_plane.cli.exits import CommandError, ExitCode

_OURS = ("control_plane", "grpc_runtime", "midcourse")


class LazyCommand(TyperCommand):
    """Stands in for ``serve`` in the list of commands."""

    def load(self) -> Any:
        """Returns the command itself.

        Raises:
            CommandError: A package that only servers need is not installed.
        """
        try:
            from control_plane.cli.serve import command
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not missing or missing in _OURS:
                raise  # a fault of ours, not of the installation
            raise CommandError(
                f"`midcourse serve` needs packages that are not installed ({missing}):"
                " pip install 'midcourse[server]'",
                ExitCode.FAILURE,
            ) from error
        return command()
