"""Command line of the light jobs."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from trainer_agent.identity import CONTROL_PLANE_VARIABLE, check_job_id, control_plane_address
from trainer_agent.simulate.curve import CRITICAL_RATE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DESCRIPTION: Final = """\
Runs light jobs: they train nothing, but are for the control plane what a training process with
its agent is. They take steps, report a loss that answers to the learning rate, and apply, hold or
reject updates. For demonstrations, load and fault tests. Ctrl-C ends them in good order."""

_EPILOG: Final = f"""\
exit status:
  0  all have ended in good order
  1  some could not
  2  wrong arguments

examples:
  midcourse simulate
  midcourse simulate --jobs 12 --label team=nlp --seed 1
  midcourse set light-00000 learning_rate={CRITICAL_RATE * 1.6:g}    makes the loss of one climb
  midcourse simulate --jobs 5000 --processes 2 --step-time 1 --duration 60
"""


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What light jobs there are to be.

    Attributes:
        control_plane: Address of the control plane.
        jobs: How many jobs.
        first: Number of the first one.
        prefix: What their names begin with.
        labels: Labels of all of them.
        method: Training method of all of them.
        step_time: Seconds that a step takes.
        steps: Steps until a job ends by itself; None: it does not.
        report_every: Seconds between two reported steps.
        metrics: What is reported with a step; None: all there is.
        seed: Makes losses the same every time; None: they differ.
        duration: Seconds until all are ended; None: until they are told to.
        connections: Connections that the jobs of a process share; None: each has its own.
        processes: How many processes share the work.
        worker: This process is one of several, and reports to the one that started it.
        log_level: Lowest level that is logged.
    """

    control_plane: str
    jobs: int = 10
    first: int = 0
    prefix: str = "light"
    labels: Mapping[str, str] = field(default_factory=dict)
    method: str = "sft"
    step_time: float = 0.1
    steps: int | None = None
    report_every: float = 1.0
    metrics: tuple[str, ...] | None = None
    seed: int | None = None
    duration: float | None = None
    connections: int | None = None
    processes: int = 1
    worker: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "error"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def parse_options(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> SimulateOptions:
    """Reads the command line; what it does not say comes from the environment.

    Args:
        arguments: The command line without the program's name; None: this process's.
        environ: The environment; None: this process's.

    Raises:
        SystemExit: Help was asked for, or an argument is wrong.
    """
    environ = os.environ if environ is None else environ
    parser = _Parser(
        prog="midcourse simulate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--jobs", type=_count, default=10, metavar="N", help="how many jobs (default: 10)")
    add("--prefix", default="light", help="what their names begin with (default: light)")
    add(
        "--label",
        type=_label,
        action="append",
        default=[],
        dest="labels",
        metavar="KEY=VALUE",
        help="label of all of them; may be given several times",
    )
    add("--method", default="sft", help="training method that they claim (default: sft)")
    add(
        "--step-time",
        type=_seconds,
        default=0.1,
        metavar="SECONDS",
        help="how long a step takes (default: 0.1)",
    )
    add(
        "--steps",
        type=_count,
        metavar="N",
        help="steps until a job ends by itself (default: it does not)",
    )
    add(
        "--report-every",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two reported steps (default: 1)",
    )
    add(
        "--metrics",
        type=lambda text: tuple(text.split(",")),
        metavar="NAMES",
        help="what is reported with a step, of loss, learning_rate and grad_norm (default: all)",
    )
    add("--seed", type=int, metavar="N", help="makes the losses the same every time")
    add(
        "--duration",
        type=_seconds,
        metavar="SECONDS",
        help="end all after so long (default: when interrupted)",
    )
    add(
        "--control-plane",
        default=environ.get(CONTROL_PLANE_VARIABLE, ""),
        metavar="HOST:PORT",
        help=f"address of the control plane (default: ${CONTROL_PLANE_VARIABLE}, else "
        f"{control_plane_address(None, {})})",
    )
    add(
        "--connections",
        type=_count,
        metavar="N",
        help="connections that the jobs of a process share (default: each has its own, as real "
        "agents have)",
    )
    add(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="how many processes share the work: one manages some thousand jobs (default: 1)",
    )
    add("--first", type=int, default=0, metavar="N", help="number of the first job (default: 0)")
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="error",
        help="lowest level that is logged, to stderr (default: error)",
    )
    # For the process that starts others.
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    found = vars(parser.parse_args(arguments))
    found["control_plane"] = control_plane_address(found["control_plane"], {})
    found["labels"] = dict(found["labels"])
    options = SimulateOptions(**found)
    try:
        last = options.first + options.jobs - 1
        check_job_id(f"{options.prefix}-{last:05d}", "the name of a job")
    except ValueError as error:
        parser.error(str(error))
    return options


def to_arguments(options: SimulateOptions) -> list[str]:
    """Returns a command line that comes to these options."""
    arguments = [f"--label={key}={value}" for key, value in options.labels.items()]
    for name in (
        "control_plane",
        "jobs",
        "first",
        "prefix",
        "method",
        "step_time",
        "steps",
        "report_every",
        "seed",
        "duration",
        "connections",
        "processes",
        "log_level",
    ):
        value = getattr(options, name)
        if value is not None:
            arguments.append(f"--{name.replace('_', '-')}={value}")
    if options.metrics is not None:
        arguments.append(f"--metrics={','.join(options.metrics)}")
    return [*arguments, "--worker"] if options.worker else arguments


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, got {text!r}")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return seconds


def _label(text: str) -> tuple[str, str]:
    key, mark, value = text.partition("=")
    if not mark or not key:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, such as team=nlp, got {text!r}")
    return key, value
