"""Addresses of databases."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from grpc_runtime.sql.errors import DatabaseOpenError

_ALLOWED = "a path, sqlite:///path, or postgresql://user:password@host:port/name"


def parse_address(address: str | Path) -> Path | URL:
    """Tells what an address means.

    Returns:
        The path of an SQLite file, or the URL of a PostgreSQL database.

    Raises:
        DatabaseOpenError: If it is neither. The message shows no password.
    """
    if isinstance(address, Path):
        return address
    scheme, separator, rest = address.partition("://")
    if not separator:
        return _path(address, address)
    if scheme == "sqlite":
        # A host would stand before the third slash; a file has none.
        return _path(rest.removeprefix("/") if rest.startswith("/") else "", address)
    if scheme in ("postgresql", "postgres"):
        return _postgres_url(rest)
    # Only the scheme is shown: the rest may hold a password.
    raise DatabaseOpenError(f"can not store in a {scheme}:// address, allowed: {_ALLOWED}")


def shown(address: str | URL) -> str:
    """An address without its secrets, for messages and logs."""
    url = address if isinstance(address, URL) else parse_address(address)
    if isinstance(url, Path):
        return str(url)
    # Without the parameters: a password may be among them.
    return URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database
    ).render_as_string()


def _path(path: str, address: str) -> Path:
    if not path or path.startswith((":memory:", "file:")):
        raise DatabaseOpenError(
            f"got {address!r} as the database, allowed: the path of a file, or sqlite:///path; "
            "a database in memory would not be durable, so there is none"
        )
    return Path(path)


def _postgres_url(rest: str) -> URL:
    try:
        url = make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError):
        # The parser's own message may show a part of a password.
        url = None
    # Cut at the wrong place, a part of the password would pass for the host or the name of the
    # database, which are shown.
    marks = rest.count("@")
    if url is None or marks > 1 or (marks == 1 and url.username is None):
        raise DatabaseOpenError(
            "the postgresql:// address can not be read, allowed: "
            "postgresql://user:password@host:port/name, where the user, the password and the name "
            "have special characters written as %40 (@), %2F (/), %3A (:), %3F (?), %25 (%)"
        )
    if not url.database:
        raise DatabaseOpenError(
            "the postgresql:// address names no database, allowed: "
            "postgresql://user:password@host:port/name"
        )
    return url
