"""The `midcourse` command: its verbs, its options, and how it ends.

What costs time to import is imported by the verb that needs it: ``--help`` is to be instant.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from control_plane.cli import (
    actions,
    audit,
    batches,
    jobs,
    labels,
    metrics,
    tokens,
    train,
    updates,
    watch,
)
from control_plane.cli.analytics import audit as analytics_audit
from control_plane.cli.analytics import budget, chat, models, sessions, usage
from control_plane.cli.credentials import (
    ClientCertOption,
    ClientKeyOption,
    TlsCaOption,
    TokenFileOption,
    connect_with,
)
from control_plane.cli.errors import from_client, give_up, report
from control_plane.cli.exits import CommandError, ExitCode, help_text
from control_plane.cli.health import health
from control_plane.cli.lazy import AnalyticsServeCommand, LazyGroup, ServeCommand
from control_plane.cli.session import (
    AnalyticsOption,
    GlobalOptions,
    OutputOption,
    ServerOption,
    Session,
    verb,
)

# What a write to a file fails with that was opened by somebody else.
_OF_WRITING: Final = (errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC)


class Commands(LazyGroup):
    """The verbs; every failure ends in one line on stderr and a documented exit code."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the verbs into the help, by what they are for."""
        shown = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        width = max(len(name) for name, _ in shown)
        by_panel: dict[str, list[tuple[str, str]]] = {}
        for name, command in shown:
            short = command.get_short_help_str(formatter.width - width - 6) if command else ""
            panel = getattr(command, "rich_help_panel", None) or "Commands"
            by_panel.setdefault(panel, []).append((name.ljust(width), short))
        for panel, rows in by_panel.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        """Runs a verb."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that is gone shows itself here at the latest
            return result
        except BrokenPipeError:
            for stream in (sys.stdout, sys.stderr):
                give_up(stream)
            raise typer.Exit(ExitCode.BROKEN_PIPE) from None
        except UnicodeEncodeError as error:
            if "surrogates" not in error.reason:
                raise
            # How Python hands over bytes of the command line that are no UTF-8.
            raise CommandError("what was given is no UTF-8 text", ExitCode.USAGE) from error
        except Exception as error:
            client = sys.modules.get("control_plane.client")
            if client is not None and isinstance(error, client.MidcourseError):
                raise from_client(error) from error
            raise

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs the command line and exits."""
        _open_what_is_closed()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal without an arrow gets a question mark, not a UnicodeEncodeError.
                stream.reconfigure(errors="replace")
        try:
            code = super().main(
                args,
                prog_name="midcourse",
                complete_var=complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except CommandError as error:
            report(error.message, error.details)
            code = error.code
        except OSError as error:
            if error.filename is not None or error.errno not in _OF_WRITING:
                raise
            give_up(sys.stdout)
            report(f"the output can not be written: {error.strerror or error}")
            code = ExitCode.FAILURE
        except typer.Abort:
            code = ExitCode.FAILURE
        except typer.TyperException as error:  # of the command line itself
            report(_usage_message(error))
            code = getattr(error, "exit_code", ExitCode.USAGE)
        sys.exit(int(code) if isinstance(code, int) else ExitCode.OK)


def _open_what_is_closed() -> None:
    """Has a stream that is closed from the start read as empty, and take what nobody reads."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - to the end
            setattr(sys, name, stream)


def _usage_message(error: typer.TyperException) -> str:
    message = _in_words(error).strip().rstrip(".")
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "midcourse"
    mark = "" if message.endswith("?") else ";"
    return f"{message[:1].lower()}{message[1:]}{mark} see '{path} --help'"


def _in_words(error: typer.TyperException) -> str:
    """Returns the message of an error; a validator's says what was given."""
    message, cause = error.format_message(), error.__cause__
    if cause is not None and hasattr(cause, "errors"):
        fault = cause.errors()[0]
        said = str(fault["msg"])
        words = said.removeprefix("Value error, ")
        if words.startswith("Input "):
            should = words.removeprefix("Input ").partition(",")[0]
            words = f"got {fault['input']!r}, which {should}"
        message = message.replace(said, words)
    return message


app = typer.Typer(
    cls=Commands,
    epilog=help_text(),
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help shows long options in full on 80 columns, and at once
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("midcourse")
    except PackageNotFoundError:
        return "unknown (not installed as a package)"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"midcourse {_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    server: ServerOption = None,
    analytics: AnalyticsOption = None,
    output: OutputOption = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    client_cert: ClientCertOption = None,
    client_key: ClientKeyOption = None,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Watch, correct and question training jobs while they run."""
    connect_with(token_file, tls_ca, client_cert, client_key)
    context.obj = GlobalOptions(server, output, analytics)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


@verb
def show_version(session: Session) -> None:
    """Print the version."""
    if session.output.is_json:
        import json

        session.output.line(json.dumps({"version": _version()}))
    else:
        session.output.line(f"midcourse {_version()}")


def _serve() -> None:
    """Run a control plane."""


def _serve_analytics() -> None:
    """Run an analytics service."""


def _analytics_group(context: typer.Context) -> None:
    """Run an analytics service, and see who used it."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_analytics = typer.Typer(cls=LazyGroup, rich_markup_mode=None, invoke_without_command=True)
_analytics.callback()(_analytics_group)
_analytics.command("serve", cls=AnalyticsServeCommand)(_serve_analytics)
_analytics.command("audit")(analytics_audit.audit)


_TRAIN, _RUNS, _CHANGES, _QUESTIONS, _SERVERS, _OTHER = (
    "Train",
    "See runs",
    "Change runs",
    "Ask about runs",
    "Run servers",
    "Other",
)
app.command("train", context_settings=train.SETTINGS, rich_help_panel=_TRAIN)(train.train)
app.command("simulate", context_settings=train.SETTINGS, rich_help_panel=_TRAIN)(train.simulate)
app.command("jobs", rich_help_panel=_RUNS)(jobs.list_jobs)
app.command("job", rich_help_panel=_RUNS)(jobs.show_job)
app.command("watch", rich_help_panel=_RUNS)(watch.watch)
app.command("metrics", rich_help_panel=_RUNS)(metrics.metrics)
app.command("history", rich_help_panel=_RUNS)(updates.history)
app.command("batches", rich_help_panel=_RUNS)(batches.list_batches)
app.command("batch", rich_help_panel=_RUNS)(batches.batch)
app.command("set", rich_help_panel=_CHANGES)(updates.set_parameters)
app.command("pause", rich_help_panel=_CHANGES)(actions.pause)
app.command("resume", rich_help_panel=_CHANGES)(actions.resume)
app.command("checkpoint", rich_help_panel=_CHANGES)(actions.checkpoint)
app.command("evaluate", rich_help_panel=_CHANGES)(actions.evaluate)
app.command("stop", rich_help_panel=_CHANGES)(actions.stop)
app.command("rollback", rich_help_panel=_CHANGES)(actions.rollback)
app.command("cancel", rich_help_panel=_CHANGES)(updates.cancel)
app.command("label", rich_help_panel=_CHANGES)(labels.label)
app.command("delete", rich_help_panel=_CHANGES)(jobs.delete)
app.command("chat", rich_help_panel=_QUESTIONS)(chat.chat)
app.command("recommend", rich_help_panel=_QUESTIONS)(models.recommend)
app.command("models", rich_help_panel=_QUESTIONS)(models.list_models)
app.add_typer(sessions.sessions, name="sessions", rich_help_panel=_QUESTIONS)
app.command("usage", rich_help_panel=_QUESTIONS)(usage.usage)
app.add_typer(budget.budget, name="budget", rich_help_panel=_QUESTIONS)
app.command("serve", cls=ServeCommand, rich_help_panel=_SERVERS)(_serve)
app.add_typer(_analytics, name="analytics", rich_help_panel=_SERVERS)
app.add_typer(tokens.tokens, name="token", rich_help_panel=_SERVERS)
app.command("audit", rich_help_panel=_SERVERS)(audit.audit)
app.command("whoami", rich_help_panel=_SERVERS)(tokens.whoami)
app.command("health", rich_help_panel=_SERVERS)(health)
app.command("version", rich_help_panel=_OTHER)(show_version)


def main() -> None:
    """Runs the command; the entry point of the package."""
    # What fails is told in words of ours; gRPC's lines of every handshake would stand beside them.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    app()
