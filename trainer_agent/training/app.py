"""The command line of ``midcourse train``. Light: torch is loaded by the training process alone."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from trainer_agent import identity
from trainer_agent.steering import checkpoints
from trainer_agent.training.display import Display
from trainer_agent.training.document import ConfigurationError
from trainer_agent.training.exits import CONFIGURATION, USAGE
from trainer_agent.training.methods import METHODS
from trainer_agent.training.order import Order
from trainer_agent.training.supervisor import Supervisor
from trainer_agent.training.tell import tell, tell_problems

NAME: Final = "midcourse train"

_NEEDED: Final = ("accelerate", "datasets", "torch", "transformers", "trl")
_METHODS = "\n".join(f"  {name:<7} {method.description}" for name, method in METHODS.items())

_EPILOG = f"""\b
Methods, and what they learn from:
{_METHODS}

\b
Exit codes:
    0  trained to the end
    2  the command line or the configuration is wrong
   75  was to be rolled back, and could not be
  130  interrupted (Ctrl-C), with a checkpoint; 143 by SIGTERM, 129 by SIGHUP
  137  killed
       any other is the training process's own
"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.command(epilog=_EPILOG)
def train(
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration, YAML or JSON.")
    ],
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"{', '.join(METHODS)}; by default the configuration's `method`."
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Laid over the configuration, such as training.learning_rate=1e-4; repeatable.",
        ),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Id of the job; by default the configuration's, JOB_ID, or one is made up.",
        ),
    ] = None,
    control_plane: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Control plane; by default the configuration's, MIDCOURSE_CONTROL_PLANE, or"
            f" {identity.DEFAULT_CONTROL_PLANE}.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Label of the job; repeatable."),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|PATH|never",
            help="Go on from the newest whole checkpoint, if there is one; from a certain one; or"
            " begin anew.",
        ),
    ] = "never",
    nproc: Annotated[
        int, typer.Option(min=1, metavar="N", help="Ranks on this machine, a process each.")
    ] = 1,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Make the changes of an exported run again, at the same steps."
        ),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, metavar="N", help="How often a roll back may start it again.")
    ] = 10,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise/--no-supervise",
            help="Whether a process of its own trains; without, nothing can be rolled back.",
        ),
    ] = True,
) -> None:
    """Train a model with TRL, in a process that is watched over and can be steered.

    The configuration has the sections model, tokenizer, data, peft, training (the arguments of
    TRL's own class for the method), reward and midcourse.

    A first Ctrl-C stops after the step, with a checkpoint; a second one kills.
    """
    order = Order(
        source=str(config),
        text=_text(config),
        method=_method(method),
        assignments=assignments or [],
        job=_job(job),
        control_plane=_control_plane(control_plane),
        labels=_labels(labels or []),
        resume=_resume(resume),
        replay=_replay(replay),
        nproc=nproc,
    )
    if nproc > 1 and not supervise:
        raise typer.BadParameter(
            "several ranks are started by the supervisor; without it, start them with torchrun"
        )
    ranks = os.environ.get("WORLD_SIZE") or "1"
    if supervise and ranks != "1":
        raise typer.BadParameter(
            f"this is one of {ranks} ranks that somebody else has started (WORLD_SIZE says so):"
            " give --no-supervise, or start the command once, with --nproc"
        )
    try:
        order.settings()
    except ConfigurationError as error:
        tell_problems(order.source, error.problems)
        raise typer.Exit(USAGE) from error
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        tell(
            f"`{NAME}` needs packages that are not installed ({', '.join(missing)}):"
            " pip install 'midcourse[trainer]'"
        )
        raise typer.Exit(1)
    display = Display()
    if supervise:
        supervisor = Supervisor(order, display, max_restarts=max_restarts, command=sys.argv[1:])
        raise typer.Exit(supervisor.run())
    from trainer_agent.training import worker

    try:
        code = worker.run(order, display.event)
    finally:
        display.close()
    raise typer.Exit(USAGE if code == CONFIGURATION else code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name=NAME, standalone_mode=False)
    except typer.Abort:
        return 130
    except typer.TyperException as error:
        message = error.format_message().strip().rstrip(".")
        tell(f"{message[:1].lower()}{message[1:]}; see '{NAME} --help'")
        return getattr(error, "exit_code", USAGE)
    return int(code) if isinstance(code, int) else 0


# ---- What options mean ----


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{str(path)!r} is no UTF-8 text") from error


def _method(name: str | None) -> str | None:
    if name is None or name in METHODS:
        return name
    raise typer.BadParameter(f"--method must be one of {', '.join(METHODS)}, got {name!r}")


def _job(job: str | None) -> str | None:
    try:
        return None if job is None else identity.check_job_id(job, "--job")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _control_plane(address: str | None) -> str | None:
    try:
        return None if address is None else identity.check_control_plane(address, "--control-plane")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _labels(words: Sequence[str]) -> dict[str, str]:
    labels = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"--label must be KEY=VALUE, such as team=nlp; got {word!r}")
        labels[key] = value
    try:
        identity.check_labels(labels, "--label")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return labels


def _resume(resume: str) -> str:
    if resume in ("auto", "never"):
        return resume
    fault = checkpoints.fault(Path(resume))
    if fault is not None:
        raise typer.BadParameter(
            f"--resume must be auto, never or the path of a checkpoint; {resume!r}: {fault}"
        )
    return resume


def _replay(path: Path | None) -> str | None:
    if path is not None and not path.is_file():
        raise typer.BadParameter(f"--replay: there is no file {str(path)!r}")
    return None if path is None else str(path)
