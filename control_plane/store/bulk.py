"""Writing many rows at once, and reading them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sqlalchemy import bindparam

from grpc_runtime.sql.prepared import Prepared, answered, send

if TYPE_CHECKING:
    from sqlalchemy import BindParameter, Connection, Select, Table
    from sqlalchemy.engine import Dialect
    from sqlalchemy.engine.interfaces import DBAPICursor

Conflict: TypeAlias = Literal["refuse", "leave", "replace"]
"""What becomes of a row whose key is there already."""

_NOTHING: Any = object()

_CHUNKS = (256, 64, 16, 4, 1)
"""Rows in one statement. A driver gives up Python's lock for every statement that it runs, so
that each costs another wait for the lock while the event loop is busy."""


def write_rows(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
    *,
    replace: bool,
    unless_newer: str = "",
) -> None:
    """Inserts rows, as they are: column types that convert values have no part in it.

    Args:
        connection: Where to.
        table: Into what.
        columns: The names of what a row consists of.
        rows: Their values.
        replace: What becomes of a row whose key is there already: replace the other
            columns, or leave it as it is.
        unless_newer: A column; a row with more in it than the new one has stays as it is.
    """
    conflict: Conflict = "replace" if replace else "leave"
    _run(
        connection,
        rows,
        lambda size: _insert(connection.dialect, table, columns, size, conflict, unless_newer),
    )


def insert_rows(
    connection: Connection, table: Table, columns: tuple[str, ...], rows: Iterable[Sequence[Any]]
) -> None:
    """Inserts rows whose keys must not be there, the values converted as their columns say.

    Raises:
        sqlalchemy.exc.IntegrityError: If one is.
    """
    _run(
        connection,
        _converted(connection.dialect, table, columns, rows),
        lambda size: _insert(connection.dialect, table, columns, size, "refuse"),
    )


def change_rows(
    connection: Connection,
    table: Table,
    columns: tuple[str, ...],
    rows: Iterable[Sequence[Any]],
    *,
    keys: int = 1,
) -> Callable[[], int]:
    """Changes rows, the values converted as their columns say.

    Args:
        connection: Where to.
        table: Of what.
        columns: Those by which a row is found, then those to change.
        rows: Their values.
        keys: By how many columns a row is found.

    Returns:
        Tells how many rows were found; waits for the database.
    """
    cursors = _run(
        connection,
        _converted(connection.dialect, table, columns, rows),
        lambda size: _update(connection.dialect, table, columns, size, keys),
    )

    def found() -> int:
        answered(connection)
        return sum(cursor.rowcount for cursor in cursors)

    return found


class Lookup:
    """A select of what belongs to any of many keys."""

    def __init__(self, make: Callable[[Sequence[Any]], Select[Any]], *, width: int = 1) -> None:
        """Makes the lookup.

        Args:
            make: The select, as a function of the parameters that stand for the keys: a list of
                them, or of tuples of them.
            width: Columns of a key.
        """
        self._make = make
        self._width = width
        self._sizes: dict[int, Prepared] = {}

    def rows(self, connection: Connection, keys: Sequence[Any], **values: Any) -> list[Any]:
        """The rows for all keys, part by part in the order of the keys.

        Args:
            connection: Where to look.
            keys: Any number.
            **values: Parameters of the select beside the keys.
        """
        return self.ask(connection, keys, **values)()

    def ask(
        self, connection: Connection, keys: Sequence[Any], **values: Any
    ) -> Callable[[], list[Any]]:
        """Asks for the same, for whatever is waited for next to wait for it too.

        Returns:
            Gives the rows, once.
        """
        asked = []
        for start in range(0, len(keys), _CHUNKS[0]):
            part = keys[start : start + _CHUNKS[0]]
            size = min(size for size in _CHUNKS if size >= len(part))
            # The last key again and again fills it up.
            full = [*part, *[part[-1]] * (size - len(part))]
            flat = full if self._width == 1 else chain.from_iterable(full)
            named = {f"key_{i}": value for i, value in enumerate(flat)}
            asked.append(self._of(size).ask(connection, **named, **values))
        return lambda: [row for rows in asked for row in rows()]

    def _of(self, size: int) -> Prepared:
        prepared = self._sizes.get(size)
        if prepared is None:
            flat: list[BindParameter[Any]]
            flat = [bindparam(f"key_{i}") for i in range(size * self._width)]
            keys: Sequence[Any] = flat
            if self._width > 1:
                keys = list(zip(*[iter(flat)] * self._width, strict=True))
            prepared = self._sizes[size] = Prepared(self._make(keys))
        return prepared


def _run(
    connection: Connection, rows: Sequence[Sequence[Any]], statement: Callable[[int], str]
) -> list[DBAPICursor]:
    """Runs a statement for all rows, as many at a time as it can take; waits for no answer."""
    start = 0
    cursors = []
    for size in _CHUNKS:
        while len(rows) - start >= size:
            chunk = tuple(chain.from_iterable(rows[start : start + size]))
            cursors.append(send(connection, statement(size), chunk))
            start += size
    return cursors


def _converted(
    dialect: Dialect, table: Table, columns: tuple[str, ...], rows: Iterable[Sequence[Any]]
) -> list[list[Any]]:
    """Rows with their values as the driver takes them."""
    converted = [list(row) for row in rows]
    for index, convert in _converting(dialect, table, columns):
        # Rows that are written together have much in common.
        before = done = _NOTHING
        for values in converted:
            if (value := values[index]) is not before:
                before, done = value, convert(value)
            values[index] = done
    return converted


@lru_cache(maxsize=256)
def _converting(
    dialect: Dialect, table: Table, columns: tuple[str, ...]
) -> tuple[tuple[int, Callable[[Any], Any]], ...]:
    """Which of the values need converting, and how."""
    found: list[tuple[int, Callable[[Any], Any]]] = []
    for index, name in enumerate(columns):
        of_dialect = table.c[name].type.dialect_impl(dialect)
        if (convert := of_dialect.bind_processor(dialect)) is not None:
            found.append((index, convert))
    return tuple(found)


@lru_cache(maxsize=256)
def _insert(
    dialect: Dialect,
    table: Table,
    columns: tuple[str, ...],
    size: int,
    conflict: Conflict,
    unless_newer: str = "",
) -> str:
    """The statement that inserts so many rows, its parameters row by row.

    SQLite and PostgreSQL share this syntax. Put together here, since SQLAlchemy takes a
    tenth of a second to do so for the hundreds of rows.
    """
    quote = dialect.identifier_preparer.quote
    names = ", ".join(quote(name) for name in columns)
    action = ""
    if conflict == "leave":
        action = "ON CONFLICT DO NOTHING"
    elif conflict == "replace":
        key = ", ".join(quote(column.name) for column in table.primary_key)
        new = ", ".join(
            f"{quote(name)} = excluded.{quote(name)}"
            for name in columns
            if not table.c[name].primary_key
        )
        action = f"ON CONFLICT ({key}) DO UPDATE SET {new}"
        if unless_newer:
            order = quote(unless_newer)
            action += f" WHERE {quote(table.name)}.{order} <= excluded.{order}"
    return f"INSERT INTO {quote(table.name)} ({names}) {_values(dialect, columns, size)} {action}"


@lru_cache(maxsize=256)
def _update(dialect: Dialect, table: Table, columns: tuple[str, ...], size: int, keys: int) -> str:
    """The statement that changes so many rows, its parameters row by row.

    Both databases call the columns of a list of values column1, column2, ….
    """
    quote = dialect.identifier_preparer.quote
    new, found = [], []
    for number, name in enumerate(columns, start=1):
        if number <= keys:
            found.append(f"{quote(table.name)}.{quote(name)} = v.column{number}")
            continue
        value = f"v.column{number}"
        kind = table.c[name].type.compile(dialect)
        if kind == "BIGINT":
            # Of nothing but NULLs PostgreSQL takes them for text.
            value = f"CAST({value} AS {kind})"
        new.append(f"{quote(name)} = {value}")
    return (
        f"UPDATE {quote(table.name)} SET {', '.join(new)} "  # noqa: S608 - names of ours
        f"FROM ({_values(dialect, columns, size)}) AS v WHERE {' AND '.join(found)}"
    )


def _values(dialect: Dialect, columns: tuple[str, ...], size: int) -> str:
    mark = "?" if dialect.paramstyle == "qmark" else "%s"
    row = f"({', '.join([mark] * len(columns))})"
    return f"VALUES {', '.join([row] * size)}"
