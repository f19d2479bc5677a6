"""Commands that are loaded when they are run: servers need packages that others do without."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from control_plane.cli.exits import CommandError, ExitCode

_OURS = ("analytics_service", "control_plane", "grpc_runtime", "midcourse")


class LazyCommand(TyperCommand):
    """Stands in for a command in the list of commands.

    Attributes:
        module: Module whose ``command()`` returns the command itself.
        invocation: What people type to run it.
        extra: What to install for it.
    """

    module: ClassVar[str]
    invocation: ClassVar[str]
    extra: ClassVar[str]

    def load(self) -> Any:
        """Returns the command itself.

        Raises:
            CommandError: A package that only this command needs is not installed.
        """
        with needs(self.invocation, self.extra):
            return importlib.import_module(self.module).command()


class ServeCommand(LazyCommand):
    """Stands in for ``serve``."""

    module = "control_plane.cli.serve"
    invocation = "midcourse serve"
    extra = "server"


class AnalyticsServeCommand(LazyCommand):
    """Stands in for ``analytics serve``."""

    module = "control_plane.cli.analytics.serve"
    invocation = "midcourse analytics serve"
    extra = "analytics"


class LazyGroup(TyperGroup):
    """A group that may have commands that are loaded when they are run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Finds a command, and loads it where it is loaded only when it is run."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


@contextlib.contextmanager
def needs(invocation: str, extra: str) -> Iterator[None]:
    """Says what to install where the block imports what is not installed.

    Raises:
        CommandError: A package of others is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in _OURS:
            raise  # a fault of ours, not of the installation
        raise CommandError(
            f"`{invocation}` needs packages that are not installed ({missing}):"
            f" pip install 'midcourse[{extra}]'",
            ExitCode.FAILURE,
        ) from error


def standalone(name: str, function: Callable[..., None]) -> Any:
    """Returns a function with settings for options as a command that a group can run."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.command(name)(function)
    made: Any = typer.main.get_command(app)
    for option in made.params:
        # The texts are escaped for rich's markup.
        option.help = (option.help or "").replace(r"\[", "[")
    return made
