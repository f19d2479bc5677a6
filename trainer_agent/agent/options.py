"""Command line and environment of the agent process."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, cast

from grpc_runtime.client.variables import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    SYSTEM_CA,
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
)
from trainer_agent.link.address import SOCKET_DIR_VARIABLE

if TYPE_CHECKING:
    from grpc_runtime.client.credentials import Credentials

JOB_VARIABLE: Final = "JOB_ID"
"""Environment variable with the id of the job."""
CONTROL_PLANE_VARIABLE: Final = "MIDCOURSE_CONTROL_PLANE"
"""Environment variable with the address of the control plane."""

_LEVELS: Final = ("debug", "info", "warning", "error")
_FORMATS: Final = ("auto", "console", "json")

_DESCRIPTION: Final = """\
Stands between one training process and the control plane: reports its steps and metrics, and
hands it the updates that it is to apply. There is one agent for each job on a host.

A training script that uses Midcourse's callback starts its agent by itself. Start one by hand
where that is not wanted, for instance as a sidecar container: give both the same job, and the
same socket directory by MIDCOURSE_SOCKET_DIR.

The agent opens its session with the control plane when its trainer has said hello. It ends by
itself when the trainer is gone and the control plane has everything on disk."""

_EPILOG: Final = """\
exit status:
  0  the trainer is gone and everything was delivered; or another agent serves the job already
  1  something was left undelivered, or the socket directory can not be used
  2  wrong arguments

examples:
  python -m trainer_agent --job my-run --control-plane 127.0.0.1:50051
  JOB_ID=my-run MIDCOURSE_SOCKET_DIR=/shared/midcourse python -m trainer_agent --log-format json
"""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What an agent is told when it is started.

    Attributes:
        job_id: Id of the job.
        control_plane: Address of the control plane, unless the trainer names one; empty: none.
        socket_dir: Directory of the socket; None: the usual place.
        linger: Longest time, in seconds, for which to go on delivering when the trainer is gone.
        log_level: Lowest level that is logged.
        log_format: Form of a logged event.
        credentials: What to connect to the control plane with.
        trainer_fd: Descriptor of a connection that the trainer made before it started this
            process; None: the trainer will connect.
    """

    job_id: str
    control_plane: str
    socket_dir: str | None
    linger: float
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "console", "json"]
    credentials: Credentials
    trainer_fd: int | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def parse_options(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> AgentOptions:
    """Reads the command line; what it does not say comes from the environment.

    Args:
        arguments: The command line without the program's name; None: this process's.
        environ: The environment; None: this process's.

    Raises:
        SystemExit: Help was asked for, or an argument is wrong.
    """
    environ = os.environ if environ is None else environ
    parser = _Parser(
        prog="python -m trainer_agent",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--job",
        metavar="ID",
        default=environ.get(JOB_VARIABLE, ""),
        help=f"id of the job (default: ${JOB_VARIABLE})",
    )
    parser.add_argument(
        "--control-plane",
        metavar="HOST:PORT",
        default=environ.get(CONTROL_PLANE_VARIABLE, ""),
        help=f"address of the control plane, or those of its replicas, a:50051,b:50051; unless the "
        f"trainer names one (default: ${CONTROL_PLANE_VARIABLE})",
    )
    parser.add_argument(
        "--socket-dir",
        metavar="DIR",
        default=None,
        help=f"directory of the local socket; made with mode 0700 if it is not there (default: "
        f"${SOCKET_DIR_VARIABLE}, else $XDG_RUNTIME_DIR/midcourse, else midcourse-<uid> in the "
        f"temporary directory)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        default=None,
        help=f"file with the token to show the control plane (default: ${TOKEN_FILE_VARIABLE}, or "
        f"the token itself in ${TOKEN_VARIABLE})",
    )
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        default=None,
        help=f"PEM file with the authority of the control plane's certificate, or '{SYSTEM_CA}'; "
        f"asks for TLS (default: ${CA_VARIABLE})",
    )
    parser.add_argument(
        "--client-cert",
        metavar="FILE",
        type=Path,
        default=None,
        help=f"PEM file with a certificate of one's own (default: ${CERT_VARIABLE})",
    )
    parser.add_argument(
        "--client-key",
        metavar="FILE",
        type=Path,
        default=None,
        help=f"PEM file with that certificate's key (default: ${KEY_VARIABLE})",
    )
    parser.add_argument(
        "--linger",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="how long to go on delivering when the trainer is gone (default: 60)",
    )
    parser.add_argument(
        "--log-level",
        choices=_LEVELS,
        default="info",
        help="lowest level that is logged, to stderr (default: info)",
    )
    parser.add_argument(
        "--log-format",
        choices=_FORMATS,
        default="auto",
        help="console for people, json for programs, auto: console on a terminal (default: auto)",
    )
    # For the training process that starts its agent.
    parser.add_argument("--trainer-fd", type=int, default=None, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if not parsed.job:
        parser.error(f"no job: name it with --job ID or in the environment as {JOB_VARIABLE}")
    # Which loads grpc: not for somebody who only asks for help.
    from grpc_runtime.client.credentials import Credentials

    return AgentOptions(
        job_id=parsed.job,
        control_plane=parsed.control_plane,
        socket_dir=parsed.socket_dir,
        linger=parsed.linger,
        log_level=cast(Literal["debug", "info", "warning", "error"], parsed.log_level),
        log_format=cast(Literal["auto", "console", "json"], parsed.log_format),
        credentials=Credentials.from_environment(environ).but(
            token_file=parsed.token_file,
            ca=parsed.tls_ca,
            certificate=parsed.client_cert,
            key=parsed.client_key,
        ),
        trainer_fd=parsed.trainer_fd,
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, 0 or more, got {text!r}")
    return seconds
