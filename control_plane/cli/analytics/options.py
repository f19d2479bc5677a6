"""Options and arguments that several verbs about questions take."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli.completion import complete_model, complete_session

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Id or alias of a model; see `midcourse models`.",
        autocompletion=complete_model,
    ),
]
SessionOption = Annotated[
    str,
    typer.Option(
        "--session",
        metavar="SESSION",
        help="Id of a session; see `midcourse sessions`.",
        autocompletion=complete_session,
    ),
]
SessionArgument = Annotated[
    str,
    typer.Argument(metavar="SESSION", help="Id of the session.", autocompletion=complete_session),
]
QuestionArgument = Annotated[
    list[str],
    typer.Argument(metavar="QUESTION", help="The question, in quotes or not."),
]
PrincipalOption = Annotated[
    str,
    typer.Option("--principal", metavar="NAME", help="Name of the caller that is meant."),
]
