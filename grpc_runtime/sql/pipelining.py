"""Transactions on PostgreSQL in a driver's pipeline: statements go out before answers come in.

Each way to the server and back costs more than what most statements do there. So a transaction's
beginning goes out with its first statement, its end with the last ones, and whatever
`grpc_runtime.sql.prepared` is told not to wait for with the next that is waited for. After an
error the server skips what it was sent already, the commit among it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from grpc_runtime.sql.prepared import PIPELINE, send, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

WRITING = {"begin": "BEGIN ISOLATION LEVEL READ COMMITTED"}
READING = {"begin": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}
"""Execution options of an engine: how its transactions begin."""


def set_up(engine: Engine) -> None:
    """Has an engine, which leaves transactions to its user, begin them, and fit into pipelines."""
    # The error that broke a connection is raised; that its pipeline is broken too is not news.
    logging.getLogger("psycopg").setLevel(logging.ERROR)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        send(connection, connection.get_execution_options()["begin"])

    @event.listens_for(engine, "after_cursor_execute")
    def executed(connection: Connection, *_: Any) -> None:
        # SQLAlchemy looks at the result at once.
        if (pipeline := connection.info.get(PIPELINE)) is not None:
            pipeline.sync()


@contextmanager
def pipelined(connection: Connection) -> Iterator[None]:
    """Runs what is in the block in a pipeline; at its end everything is answered.

    Raises:
        sqlalchemy.exc.DBAPIError: If a statement has failed that nobody had waited for.
    """
    session: Any = connection.connection.driver_connection
    info = connection.info
    is_through = False
    try:
        with session.pipeline() as pipeline:
            info[PIPELINE] = pipeline
            try:
                yield
                is_through = True
            finally:
                del info[PIPELINE]
    except connection.dialect.loaded_dbapi.Error as error:
        raise wrapped(connection, "the end of a transaction", error) from error
    except IndexError as error:
        if not is_through:
            raise
        # The driver has an answer to nothing that it asked: whose the next one is nobody knows.
        session.close()
        lost = connection.dialect.loaded_dbapi.OperationalError(
            "the server answered what the driver had not asked"
        )
        raise wrapped(connection, "the end of a transaction", lost) from error
    finally:
        if session.pgconn.pipeline_status:
            # It can not be left, as where the server has ended the session and the driver has not
            # noticed yet: nothing more can be said on this connection.
            session.close()
