"""Writing many rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from grpc_runtime.sql.prepared import execute

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table
    from sqlalchemy.engine import Dialect

_CHUNKS = (256, 16, 1)
"""Rows in one statement. A driver gives up Python's lock for every statement that it runs, so
that each costs another wait for the lock while the event loop is busy."""


def write_rows(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    *,
    replace: bool,
) -> None:
    """Inserts rows, as they are: column types that convert values have no part in it.

    Args:
        connection: Where to.
        table: Into what.
        columns: The names of what a row consists of.
        rows: Their values.
        replace: What becomes of a row whose key is there already: replace the other
            columns, or leave it as it is.
    """
    start = 0
    for size in _CHUNKS:
        sql = _statement(connection.dialect, table, columns, size, replace=replace)
        while len(rows) - start >= size:
            if size == 1:
                connection.exec_driver_sql(sql, list(rows[start:]))
                return
            chunk = tuple(chain.from_iterable(rows[start : start + size]))
            execute(connection, sql, chunk)
            start += size


@lru_cache(maxsize=64)
def _statement(
    dialect: Dialect, table: Table, columns: tuple[str, ...], size: int, *, replace: bool
) -> str:
    """The statement that writes so many rows, its parameters row by row.

    SQLite and PostgreSQL share this syntax. Put together here, since SQLAlchemy takes a
    tenth of a second to do so for the hundreds of rows.
    """
    quote = dialect.identifier_preparer.quote
    mark = "?" if dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([mark] * len(columns))})"
    names = ", ".join(quote(name) for name in columns)
    action = "DO NOTHING"
    if replace:
        key = ", ".join(quote(column.name) for column in table.primary_key)
        new = ", ".join(
            f"{quote(name)} = excluded.{quote(name)}"
            for name in columns
            if not table.c[name].primary_key
        )
        action = f"({key}) DO UPDATE SET {new}"
    return (
        f"INSERT INTO {quote(table.name)} ({names}) VALUES {', '.join([row] * size)} "  # noqa: S608 - names of ours
        f"ON CONFLICT {action}"
    )
