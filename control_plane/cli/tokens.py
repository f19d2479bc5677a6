"""`midcourse token create`, `token list`, `token revoke`, and `midcourse whoami`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from control_plane._client.roles import RoleName
from control_plane.cli.durations import parse_duration
from control_plane.cli.exits import CommandError, ExitCode
from control_plane.cli.jobs import SelectorOption
from control_plane.cli.lazy import LazyGroup, needs
from control_plane.cli.session import Session, verb

if TYPE_CHECKING:
    from control_plane.services.access import TokenService
    from midcourse.control.v1 import access_pb2

_FOR_EVER: Final = ("never", "0")

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="DATABASE",
        help="Work on this database itself instead of asking a server; as in `midcourse serve`."
        " With SQLite no server may be using it.",
    ),
]


def _lifetime(text: str) -> float:
    if text.strip().lower() in _FOR_EVER:
        return 0.0
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, or never") from None


@verb
def create(
    session: Session,
    principal: Annotated[
        str, typer.Argument(metavar="PRINCIPAL", help="Who is to use it, as in authors of updates.")
    ],
    role: Annotated[
        RoleName,
        typer.Option(
            "--role",
            "-r",
            help="viewer: read; operator: change runs too; agent: report its own jobs;"
            " admin: everything.",
        ),
    ],
    selector: SelectorOption = "",
    job: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            "-j",
            metavar="JOB",
            help="Only this job, or with a '*' at the end all whose ids begin so; repeatable.",
        ),
    ] = None,
    lifetime: Annotated[
        float | None,
        typer.Option(
            "--lifetime",
            parser=_lifetime,
            metavar="DURATION",
            help="How long it is good for, such as 12h or 30d, or never; by default 90d.",
        ),
    ] = None,
    description: Annotated[
        str, typer.Option("--description", "-d", metavar="TEXT", help="What it is for.")
    ] = "",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE",
            help="Write the secret into this new file, for this user alone, instead of showing it.",
        ),
    ] = None,
    database: DatabaseOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check only; make nothing.")] = False,
) -> None:
    """Make a token. Its secret is shown this once.

    Give it to its user as a file (--token-file, or MIDCOURSE_TOKEN_FILE), or as MIDCOURSE_TOKEN;
    not on a command line, where everybody on the host can read it.
    """
    file = _new_file(save) if save is not None and not dry_run else None
    try:
        if database is not None:
            made = _create_in(
                database, principal, role, selector, job or [], lifetime, description, dry_run
            )
        else:
            with session.connect() as plane:
                made = plane.create_token(
                    principal,
                    role,
                    selector=selector,
                    jobs=job or (),
                    description=description,
                    lifetime=lifetime,
                    validate_only=dry_run,
                )
        if file is not None:
            os.write(file, f"{made.secret}\n".encode())
            made.secret = ""
    except BaseException:
        if save is not None and file is not None:
            save.unlink()
        raise
    finally:
        if file is not None:
            os.close(file)
    if session.output.is_json:
        session.output.message(made)
        return
    from control_plane.cli import token_tables

    if dry_run:
        session.output.line(f"{token_tables.summary(made.token)}; it can be made, and was not")
        return
    session.output.line(f"{made.token.name}: {token_tables.summary(made.token)}")
    session.output.line(made.secret or f"its secret is in {save}")


def _new_file(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise CommandError(f"cannot make {path}: {error.strerror}", ExitCode.USAGE) from error


@verb
def list_tokens(
    session: Session,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Those too that are revoked or expired.")
    ] = False,
    database: DatabaseOption = None,
) -> None:
    """List the tokens, newest first, without their secrets."""
    from midcourse.control.v1 import access_pb2

    if database is not None:
        listing = _list_in(database, everything)
    else:
        with session.connect() as plane:
            listing = list(plane.list_tokens(show_inactive=everything, page_size=1_000))
    if session.output.is_json:
        session.output.message(access_pb2.ListTokensResponse(tokens=listing))
    elif not listing:
        session.output.line("no tokens; `midcourse token create` makes one")
    else:
        from control_plane.cli import token_tables

        session.output.show(token_tables.tokens(listing, time.time()))


@verb
def revoke(
    session: Session,
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Its name, as `midcourse token list` shows it.")
    ],
    database: DatabaseOption = None,
) -> None:
    """Make a token worthless at once; calls under way with it end within seconds."""
    from midcourse.control.v1 import access_pb2

    if database is not None:
        revoked = _revoke_in(database, token)
    else:
        with session.connect() as plane:
            revoked = plane.revoke_token(token)
    if session.output.is_json:
        session.output.message(access_pb2.RevokeTokenResponse(token=revoked))
    else:
        session.output.line(f"{revoked.name} revoked; it was {revoked.principal}'s")


@verb
def whoami(session: Session) -> None:
    """Show who you are for the control plane, and what you may do."""
    with session.connect() as plane:
        caller = plane.get_caller()
    if session.output.is_json:
        session.output.message(caller)
        return
    from control_plane.cli import token_tables

    by = f", by {caller.token}" if caller.token else ""
    session.output.line(f"{caller.principal}: {token_tables.access(caller.access)}{by}")


tokens = typer.Typer(cls=LazyGroup, rich_markup_mode=None, invoke_without_command=True)
tokens.command("create")(create)
tokens.command("list")(list_tokens)
tokens.command("revoke")(revoke)


@tokens.callback()
def _tokens(context: typer.Context) -> None:
    """Make, list and revoke the tokens that callers show."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# With the database itself


def _in(database: str, use: Callable[[TokenService], Any], *, makes: bool = False) -> Any:
    """Works on a database; what is logged meanwhile goes to stderr.

    Args:
        database: Its address.
        use: What to do.
        makes: Make the database if there is none.

    Raises:
        CommandError: There is none, it can not be opened, or it is refused.
    """
    import asyncio

    with needs("midcourse token --database", "server"):
        from control_plane.administration import administering
        from control_plane.domain.errors import Reason, Refusal
        from control_plane.store import StoreError
        from grpc_runtime.logging import configure_logging
        from grpc_runtime.sql.address import parse_address
        from grpc_runtime.sql.errors import DatabaseOpenError

    configure_logging()
    try:
        path = parse_address(database)
    except DatabaseOpenError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    if isinstance(path, Path) and not makes and not path.exists():
        raise CommandError(
            f"there is no database {path}; `midcourse serve` or `midcourse token create` makes one",
            ExitCode.USAGE,
        )

    async def work() -> Any:
        async with administering(database) as service:
            return await use(service)

    try:
        return asyncio.run(work())
    except StoreError as error:
        raise CommandError(
            f"{error}; where a server uses it, ask that one instead, as an administrator, by"
            " leaving out --database",
            ExitCode.FAILURE,
        ) from error
    except Refusal as error:
        not_there = error.reason is Reason.TOKEN_NOT_FOUND
        code = ExitCode.NOT_FOUND if not_there else ExitCode.REFUSED
        raise CommandError(error.message, code) from error


def _create_in(
    database: str,
    principal: str,
    role: str,
    selector: str,
    jobs: list[str],
    lifetime: float | None,
    description: str,
    dry_run: bool,
) -> access_pb2.CreateTokenResponse:
    from datetime import timedelta

    async def use(service: TokenService) -> access_pb2.CreateTokenResponse:
        from control_plane.administration import CREATOR
        from control_plane.domain.access import Access, Role
        from control_plane.rpc.access_servicer import token_message
        from midcourse.control.v1 import access_pb2

        token, secret = await service.create(
            principal,
            Access(Role(role), selector, tuple(jobs)),
            description=description,
            lifetime=None if lifetime is None else timedelta(seconds=lifetime),
            creator=CREATOR,
            validate_only=dry_run,
        )
        return access_pb2.CreateTokenResponse(token=token_message(token), secret=secret)

    made: access_pb2.CreateTokenResponse = _in(database, use, makes=True)
    return made


def _list_in(database: str, everything: bool) -> list[access_pb2.Token]:
    async def use(service: TokenService) -> list[access_pb2.Token]:
        from control_plane.rpc.access_servicer import token_message

        page = await service.list(show_inactive=everything, beyond=None, limit=100_000)
        return [token_message(token) for token in page.tokens]

    found: list[access_pb2.Token] = _in(database, use)
    return found


def _revoke_in(database: str, name: str) -> access_pb2.Token:
    async def use(service: TokenService) -> access_pb2.Token:
        from control_plane.domain.access import parse_token_name
        from control_plane.rpc.access_servicer import token_message

        token_id = parse_token_name(name if "/" in name else f"tokens/{name}", "TOKEN")
        return token_message(await service.revoke(token_id))

    revoked: access_pb2.Token = _in(database, use)
    return revoked
