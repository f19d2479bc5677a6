"""Addresses of databases: what they mean, and that no message shows a password."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL

from grpc_runtime.sql import DatabaseOpenError
from grpc_runtime.sql.address import parse_address, shown


@pytest.mark.parametrize(
    ("address", "path"),
    [
        (Path("a.db"), "a.db"),
        ("a.db", "a.db"),
        ("/var/a.db", "/var/a.db"),
        ("sqlite:///a.db", "a.db"),
        ("sqlite:////var/a.db", "/var/a.db"),
    ],
)
def test_paths(address: str | Path, path: str) -> None:
    assert parse_address(address) == Path(path)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_postgres(scheme: str) -> None:
    url = parse_address(f"{scheme}://me:s%40cret@[::1]:5433/na%2Fme?sslmode=require&password=hush")
    assert isinstance(url, URL)
    assert (url.drivername, url.username, url.password) == ("postgresql+psycopg", "me", "s@cret")
    assert (url.host, url.port, url.database) == ("::1", 5433, "na/me")
    assert url.query["sslmode"] == "require"
    assert shown(url) == "postgresql://me@[::1]:5433/na/me"


@pytest.mark.parametrize(
    "address",
    ["", ":memory:", "sqlite://", "sqlite:///", "sqlite:///:memory:", "file:x.db?mode=memory"],
)
def test_a_database_that_is_no_file_is_refused(address: str) -> None:
    with pytest.raises(DatabaseOpenError, match=r"allowed: the path of a file, or sqlite:///path"):
        parse_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "mysql://me:secret@host/name",
        "postgresql+asyncpg://me:secret@host/name",
        "postgresql://me:secret@host",
        "postgresql://me:secret@host/",
        "postgresql://me:secret@host:port/name",
        "postgresql://me:a@b/secret@host/name",
        "postgresql://me:a@b/c?secret@host/name",
        "postgresql://a/b:secret@host/name",
        "postgresql://:secret",
    ],
)
def test_what_can_not_be_read_is_refused_without_showing_a_password(address: str) -> None:
    with pytest.raises(DatabaseOpenError, match="allowed: ") as caught:
        parse_address(address)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.text(alphabet="ab@:/?#[]%&= ", max_size=12))
def test_no_password_is_shown_however_it_is_written(password: str) -> None:
    secret = f"{password}S3CRET{password}"
    try:
        url = parse_address(f"postgresql://me:{secret}@host/name")
        assert isinstance(url, URL)
        said = shown(url)
    except DatabaseOpenError as error:
        said = str(error)
    assert "S3CRET" not in said
