"""Groups of verbs that list when no verb is given: `midcourse sessions`, `midcourse budget`."""

from __future__ import annotations

from collections.abc import Callable

import typer

from control_plane.cli.analytics.session import AnalyticsSession, begin
from control_plane.cli.lazy import LazyGroup
from control_plane.cli.session import (
    AnalyticsOption,
    GlobalOptions,
    OutputOption,
    options_before,
)


def listing_group(default: Callable[[AnalyticsSession], None]) -> typer.Typer:
    """Returns a group that takes the global options, and runs ``default`` without a verb.

    Args:
        default: Lists; its docstring is the group's help.
    """
    group = typer.Typer(cls=LazyGroup, rich_markup_mode=None, invoke_without_command=True)

    def callback(
        context: typer.Context,
        analytics: AnalyticsOption = None,
        output: OutputOption = None,
    ) -> None:
        given = options_before(context).then(GlobalOptions(output=output, analytics=analytics))
        context.obj = given
        if context.invoked_subcommand is None:
            default(begin(given))

    callback.__doc__ = default.__doc__
    group.callback()(callback)
    return group
