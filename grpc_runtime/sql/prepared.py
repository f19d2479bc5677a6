"""Statements that are compiled once and then run by the driver alone.

SQLAlchemy's own way of running a statement costs about ten times what SQLite needs for
it, which adds up in the short transactions that every update goes through.

PostgreSQL is asked in a pipeline: a statement whose answer nobody has to see yet is sent and not
waited for, so that it shares its way to the server with those after it. If it fails, the
next one that is waited for says so, or else the commit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

if TYPE_CHECKING:
    from sqlalchemy import ClauseElement, Connection, Dialect
    from sqlalchemy.engine.interfaces import DBAPICursor

_Convert = Callable[[Any], Any]


class Prepared:
    """A statement whose text does not depend on its parameters, each of them a `bindparam`."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._forms: dict[str, _Form] = {}

    def rows(self, connection: Connection, **values: Any) -> Sequence[Any]:
        """Runs a select.

        Returns:
            Its rows as sequences, the values converted as the types of the columns say.
        """
        return self.ask(connection, **values)()

    def ask(self, connection: Connection, **values: Any) -> Callable[[], Sequence[Any]]:
        """Runs a select, for `rows` or whatever else is waited for to wait for it too.

        Returns:
            Gives the rows, once.
        """
        form = self._form(connection.dialect)
        cursor = send(connection, form.sql, form.parameters(values))
        return lambda: form.rows(connection, cursor)

    def run(self, connection: Connection, **values: Any) -> int:
        """Runs a statement that returns no rows; returns how many it has changed."""
        form = self._form(connection.dialect)
        return execute(connection, form.sql, form.parameters(values)).rowcount

    def send(self, connection: Connection, **values: Any) -> None:
        """Runs a statement that returns no rows, without waiting for it where it can be helped."""
        form = self._form(connection.dialect)
        send(connection, form.sql, form.parameters(values))

    def _form(self, dialect: Dialect) -> _Form:
        form = self._forms.get(dialect.name)
        if form is None:
            form = self._forms[dialect.name] = _Form(self._statement, dialect)
        return form


class _Form:
    """A statement in one dialect."""

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        self.sql = str(compiled)
        # Named where the driver knows no positions.
        self._names: list[str] | None = compiled.positiontup
        # Such as the offset of 0 that SQLAlchemy puts beside a limit.
        self._constants = {
            name: bind.value for name, bind in compiled.binds.items() if not bind.required
        }
        self._to_database: list[tuple[str, _Convert]] = [
            (name, convert)
            for name, bind in compiled.binds.items()
            if (convert := bind.type.dialect_impl(dialect).bind_processor(dialect)) is not None
        ]
        self._dialect = dialect
        self._columns = tuple(statement.selected_columns) if isinstance(statement, Select) else ()
        # Known with the first result: it tells the types that the database sends.
        self._from_database: list[tuple[int, _Convert]] | None = None

    def parameters(self, values: dict[str, Any]) -> Any:
        """The parameters in the driver's form. Changes `values`."""
        values.update(self._constants)
        for name, convert in self._to_database:
            values[name] = convert(values[name])
        if self._names is None:
            return values
        return [values[name] for name in self._names]

    def rows(self, connection: Connection, cursor: DBAPICursor) -> Sequence[Any]:
        """The rows of a result with their values converted."""
        try:
            found = cursor.fetchall()
        except connection.dialect.loaded_dbapi.Error as error:
            raise wrapped(connection, self.sql, error) from error
        if self._from_database is None:
            self._from_database = self._converters(cursor)
        if not self._from_database:
            return found
        rows = [list(row) for row in found]
        for row in rows:
            for index, convert in self._from_database:
                row[index] = convert(row[index])
        return rows

    def _converters(self, cursor: DBAPICursor) -> list[tuple[int, _Convert]]:
        found: list[tuple[int, _Convert]] = []
        for index, (column, described) in enumerate(
            zip(self._columns, cursor.description, strict=False)
        ):
            of_dialect = column.type.dialect_impl(self._dialect)
            convert = of_dialect.result_processor(self._dialect, described[1])
            if convert is not None:
                found.append((index, convert))
        return found


def execute(connection: Connection, sql: str, parameters: Any = ()) -> DBAPICursor:
    """Runs a statement by the driver alone.

    Args:
        connection: In a transaction.
        sql: The statement, in the driver's own form.
        parameters: Its values, as the driver takes them.

    Raises:
        sqlalchemy.exc.DBAPIError: As if SQLAlchemy had run it.
    """
    cursor = send(connection, sql, parameters)
    answered(connection)
    return cursor


def send(connection: Connection, sql: str, parameters: Any = ()) -> DBAPICursor:
    """Runs a statement by the driver alone, without waiting for it where it can be helped.

    Takes and raises what `execute` does; an error may come with a later statement as well.
    """
    try:
        cursor = connection.connection.cursor()
        cursor.execute(sql, parameters)
    except connection.dialect.loaded_dbapi.Error as error:
        raise wrapped(connection, sql, error) from error
    return cursor


def answered(connection: Connection) -> None:
    """Waits for the answers to all that was sent.

    Raises:
        sqlalchemy.exc.DBAPIError: If a statement has failed that nobody had waited for.
    """
    if (pipeline := connection.info.get(PIPELINE)) is not None:
        try:
            pipeline.sync()
        except connection.dialect.loaded_dbapi.Error as error:
            raise wrapped(connection, "a statement sent before", error) from error


PIPELINE = "pipeline"
"""Where a connection's `info` has the driver's pipeline, while there is one."""


def wrapped(connection: Connection, sql: str, error: Exception) -> DBAPIError:
    """A driver's error as SQLAlchemy would raise it; what comes after it is run again."""
    error_class = connection.dialect.loaded_dbapi.Error
    if (pipeline := connection.info.get(PIPELINE)) is not None:
        # Until then the server skips whatever it is sent, such as the way back to a savepoint.
        with contextlib.suppress(error_class):
            pipeline.sync()
    return cast(
        DBAPIError,
        DBAPIError.instance(
            sql, None, error, error_class, hide_parameters=True, dialect=connection.dialect
        ),
    )
