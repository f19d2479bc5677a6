"""`midcourse train` and `midcourse simulate`: hand over to programs of the trainer's side."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import NoReturn

import typer

from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.session import GlobalOptions

# Everything is the program's to read, --help too.
SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def train(context: typer.Context) -> NoReturn:
    """Train a model with TRL, watched over and steerable."""
    if importlib.util.find_spec("yaml") is None:
        raise CommandError(
            "`midcourse train` needs packages that are not installed (yaml):"
            " pip install 'midcourse[trainer]'",
            ExitCode.FAILURE,
        )
    _hand_over(context, "trainer_agent.training")


def simulate(context: typer.Context) -> NoReturn:
    """Run light jobs, which train nothing, for demos and load."""
    _hand_over(context, "trainer_agent.simulate")


def _hand_over(context: typer.Context, module: str) -> NoReturn:
    """Has a program take this process's place: signals, terminal and exit status are its own."""
    options = context.find_object(GlobalOptions)
    # -P: a file of the current directory must not stand in for a module.
    command = [sys.executable, "-P", "-m", module]
    if options is not None and options.server is not None:
        # Both programs go by the last one that they are given.
        command += ["--control-plane", options.server]
    os.execv(sys.executable, [*command, *context.args])  # noqa: S606 - no shell is meant
