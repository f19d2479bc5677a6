"""A database on a PostgreSQL server: the contract, collisions, and a server that goes away."""

from __future__ import annotations

import asyncio
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from grpc_runtime.sql import Database, DatabaseOpenError, DatabaseUnavailableError, postgresql
from grpc_runtime.sql.errors import TransactionLostError
from grpc_runtime.sql.postgresql import ATTEMPTS, THREADS
from grpc_runtime.sql.prepared import Prepared, execute
from tests.grpc_runtime.sql.database_contract import DatabaseContract
from tests.grpc_runtime.sql.tables import add, count, increment, names, notes, open_notes, run_sql
from tests.support.postgres import PASSWORD, PostgresServer


@pytest.fixture
def address(postgres_address: str) -> str:
    return postgres_address


def name_of(address: str) -> str:
    return address.rpartition("/")[2]


class TestPostgres(DatabaseContract):
    """The contract that every database keeps."""

    def test_processes_that_start_at_once_share_the_database(self, address: str) -> None:
        assert self.starting_together(address) == ["open\n"] * 3


async def test_how_transactions_are_run(database: Database) -> None:
    assert database.dialect == "postgresql"

    def settings(connection: Connection) -> tuple[Any, ...]:
        return tuple(
            connection.exec_driver_sql(f"SHOW {name}").scalar_one()
            for name in ("transaction_isolation", "transaction_read_only", "application_name")
        )

    # One after the other on the same connection: none leaves its settings to the next.
    for _ in range(2):
        assert await database.write(settings) == ("read committed", "off", "notebook")
        assert await database.read(settings) == ("repeatable read", "on", "notebook")


async def test_work_runs_side_by_side(database: Database) -> None:
    together = threading.Barrier(THREADS)

    def work(connection: Connection) -> int:
        connection.execute(text("SELECT 1"))
        return together.wait(10)

    numbers = await asyncio.gather(*(database.write(work) for _ in range(THREADS)))
    assert sorted(numbers) == list(range(THREADS))


async def test_prepared_statements(database: Database) -> None:
    from sqlalchemy import bindparam, select

    await database.write(add("a", 5))
    found = Prepared(select(notes.c.number).where(notes.c.name == bindparam("name")))
    assert await database.read(lambda c: [tuple(r) for r in found.rows(c, name="a")]) == [(5,)]


# Collisions


async def test_a_deadlock_ends_with_both_done(database: Database) -> None:
    await database.write(add("a"))
    await database.write(add("b"))
    runs: list[str] = []
    both = threading.Barrier(2)

    def work(first: str, second: str) -> Callable[[Connection], None]:
        def crossing(connection: Connection) -> None:
            runs.append(first)
            increment(first)(connection)
            if runs.count(first) == 1:
                both.wait(10)
            increment(second)(connection)

        return crossing

    await asyncio.gather(database.write(work("a", "b")), database.write(work("b", "a")))
    assert len(runs) == 3
    found = await run_sql(database, "SELECT number FROM notes")
    assert found == [(2,), (2,)]


def failing(sqlstate: str, runs: list[int], *, times: int) -> Callable[[Connection], None]:
    """Work that the server makes fail a few times, after it has written."""

    def work(connection: Connection) -> None:
        runs.append(1)
        add("a")(connection)
        if len(runs) <= times:
            execute(connection, f"DO $$ BEGIN RAISE 'made up' USING ERRCODE = '{sqlstate}'; END $$")

    return work


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_a_collision_is_repeated_a_few_times(
    database: Database, monkeypatch: pytest.MonkeyPatch, sqlstate: str
) -> None:
    monkeypatch.setattr(postgresql, "_BACKOFF_SECONDS", 0.0)
    runs: list[int] = []
    await database.write(failing(sqlstate, runs, times=ATTEMPTS - 1))
    assert len(runs) == ATTEMPTS
    assert await database.read(names) == ["a"]
    runs.clear()
    await run_sql(database, "DELETE FROM notes RETURNING name")
    with pytest.raises(DatabaseUnavailableError, match=r"collided with other writers") as caught:
        await database.write(failing(sqlstate, runs, times=99))
    assert len(runs) == ATTEMPTS
    assert caught.value.retry_delay
    assert await database.read(names) == []


async def test_nothing_else_is_repeated(database: Database) -> None:
    runs: list[int] = []
    with pytest.raises(DBAPIError, match="made up"):
        await database.write(failing("P0001", runs, times=99))
    assert len(runs) == 1


async def test_who_finds_a_key_in_use_looks_once_more(database: Database) -> None:
    """Somebody else may have written the same at the same time."""
    together = threading.Barrier(2, timeout=20)
    seen: list[int] = []

    def write_if_there_is_none(connection: Connection) -> int:
        found = count(connection)
        seen.append(found)
        if not found:
            together.wait()
            add("same")(connection)
        return found

    found = await asyncio.gather(*(database.write(write_if_there_is_none) for _ in range(2)))
    assert sorted(found) == [0, 1]
    assert sorted(seen) == [0, 0, 1]
    # Not for ever.
    with pytest.raises(IntegrityError):
        await database.write(add("same"))


async def test_a_new_connection_that_breaks_at_once_is_no_riddle(database: Database) -> None:
    assert isinstance(database, postgresql.PostgresDatabase)

    def broken(*_: object) -> None:
        raise psycopg.errors.AdminShutdown("terminating connection")

    database._engine.dispose()
    event.listen(database._engine, "connect", broken)
    with pytest.raises(DatabaseUnavailableError, match="terminating connection") as caught:
        await database.write(add("a"))
    assert caught.value.retry_delay
    event.remove(database._engine, "connect", broken)
    await database.write(add("a"))


@pytest.mark.parametrize(
    ("sqlstate", "says"),
    [
        ("53100", "disk that holds the database is full; free some space"),
        ("25006", "can not be written to: it is read-only"),
        ("57014", "took too long"),
    ],
)
async def test_faults_of_the_server_say_what_to_do(
    database: Database, sqlstate: str, says: str
) -> None:
    with pytest.raises(DatabaseUnavailableError, match=rf"{says}.*\(made up") as caught:
        await database.write(failing(sqlstate, [], times=1))
    assert caught.value.retry_delay


async def test_a_row_that_stays_locked_is_not_waited_for_for_ever(
    address: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 0.05)
    database = await open_notes(address)
    await database.write(add("a"))
    with postgres_server.session(name_of(address)) as other, other.transaction():
        other.execute("SELECT * FROM notes FOR UPDATE")
        with pytest.raises(DatabaseUnavailableError, match="another session keeps rows"):
            await database.write(increment("a"))
    assert await database.write(increment("a")) == 1
    await database.close()


async def test_a_swallowed_error_is_not_taken_for_success(database: Database) -> None:
    def work(connection: Connection) -> None:
        add("a")(connection)
        with pytest.raises(IntegrityError):
            add("a")(connection)

    with pytest.raises(TransactionLostError, match=r"guard the statement with begin_nested"):
        await database.write(work)
    assert await database.read(names) == []


# A server that goes away


def end_session(connection: Connection) -> None:
    """The server ends the session that this work runs in."""
    execute(connection, "SELECT pg_terminate_backend(pg_backend_pid())")


async def test_work_that_loses_its_connection_is_run_again(database: Database) -> None:
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        add("a")(connection)
        if len(runs) == 1:
            end_session(connection)

    await database.write(work)
    assert len(runs) == 2
    assert await database.read(names) == ["a"]


async def test_work_that_always_loses_its_connection_is_given_up(database: Database) -> None:
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        end_session(connection)

    with pytest.raises(DatabaseUnavailableError, match="check that the server runs"):
        await database.write(work)
    assert len(runs) == THREADS + 1
    await database.write(add("a"))


async def test_another_error_of_work_that_lost_its_connection_is_its_own(
    database: Database,
) -> None:
    def work(connection: Connection) -> None:
        try:
            end_session(connection)
        except DBAPIError as error:
            raise ZeroDivisionError from error

    with pytest.raises(ZeroDivisionError):
        await database.write(work)
    await database.write(add("a"))


AT_COMMIT = """
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_terminate_backend(pg_backend_pid());
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION at_commit();
"""


async def test_a_commit_whose_outcome_is_unknown_is_not_repeated(
    address: str, database: Database, postgres_server: PostgresServer
) -> None:
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        add("a")(connection)

    with postgres_server.session(name_of(address)) as other:
        other.execute(AT_COMMIT)
    with pytest.raises(
        DatabaseUnavailableError, match="lost during the commit: whether it took effect is unknown"
    ) as caught:
        await database.write(work)
    assert len(runs) == 1
    assert caught.value.retry_delay is None
    assert PASSWORD not in str(caught.value)
    assert await database.read(count) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
async def test_a_server_that_comes_back_is_found_again(
    address: str, database: Database, postgres_server: PostgresServer, number: signal.Signals
) -> None:
    async def everybody() -> list[object]:
        together = threading.Barrier(THREADS)

        def work(connection: Connection) -> None:
            # Everybody has a connection, and tries it.
            if not together.broken:
                together.wait(10)
            # Below SQLAlchemy, which would forget all of them when the first is lost.
            execute(connection, "SELECT 1")

        return list(
            await asyncio.gather(
                *(database.write(work) for _ in range(THREADS)), return_exceptions=True
            )
        )

    await database.write(add("a"))
    assert await everybody() == [None] * THREADS
    await asyncio.to_thread(postgres_server.stop, number)
    for attempt in (database.write(add("b")), database.read(names)):
        with pytest.raises(
            DatabaseUnavailableError, match=r"check that the server runs .*refused"
        ) as caught:
            await attempt
        assert caught.value.retry_delay
        assert "pass" not in str(caught.value)
    await asyncio.to_thread(postgres_server.start)
    # Each of the connections that it had is dead.
    await database.write(lambda connection: execute(connection, "SELECT 1").close())
    assert await database.read(names) == ["a"]
    assert await everybody() == [None] * THREADS


async def test_every_connection_of_the_pool_may_have_died(
    address: str, database: Database, postgres_server: PostgresServer
) -> None:
    together = threading.Barrier(THREADS)

    def work(connection: Connection) -> None:
        execute(connection, "SELECT 1")
        together.wait(10)

    await asyncio.gather(*(database.write(work) for _ in range(THREADS)))
    with postgres_server.session(name_of(address)) as other:
        ended = other.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE application_name = 'notebook'"
        ).fetchall()
    assert ended == [(True,)] * THREADS
    # By the driver alone, which tells the pool of no more than the connection at hand.
    one = await database.write(lambda c: execute(c, "SELECT 1").fetchall())
    assert one == [(1,)]


# Which addresses are taken


async def refused(address: str) -> str:
    with pytest.raises(DatabaseOpenError) as caught:
        await open_notes(address)
    said = str(caught.value)
    assert "secret" not in said
    assert "\n" not in said
    return said


async def test_a_wrong_password_is_said_to_be_wrong(postgres_server: PostgresServer) -> None:
    port = postgres_server.port
    said = await refused(f"postgresql://midcourse:secret@127.0.0.1:{port}/postgres")
    assert f"postgresql://midcourse@127.0.0.1:{port}/postgres: check that the server runs" in said
    assert "password authentication failed" in said


async def test_a_missing_database_is_said_to_be_missing(postgres_server: PostgresServer) -> None:
    assert 'database "nowhere" does not exist' in await refused(postgres_server.address("nowhere"))


async def test_a_wrong_port_or_host_is_said_to_be_wrong() -> None:
    said = await refused("postgresql://me:secret@127.0.0.1:1/name?application_name=x")
    assert "host, port, user, password and name in the address" in said
    assert "refused" in said
    said = await refused("postgresql://me:secret@host.invalid/name")
    assert "host.invalid" in said


async def test_a_missing_driver_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'midcourse[postgres]'" in await refused("postgresql://me:secret@h/name")


async def test_a_user_without_rights_is_refused(
    address: str, postgres_server: PostgresServer
) -> None:
    with postgres_server.session() as session:
        session.execute("CREATE ROLE guest LOGIN PASSWORD 'secret'")
        try:
            said = await refused(
                f"postgresql://guest:secret@127.0.0.1:{postgres_server.port}/{name_of(address)}"
            )
        finally:
            session.execute("DROP ROLE guest")
    assert "does not let this user do that; grant the user the right" in said


async def test_who_waits_too_long_for_another_migration_is_told(
    address: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "MIGRATION_LOCK_SECONDS", 0.05)
    with postgres_server.session(name_of(address)) as other:
        other.execute(f"SELECT pg_advisory_lock({postgresql._MIGRATION_LOCK})")
        assert "another session keeps" in await refused(address)
    await (await open_notes(address)).close()


async def test_nothing_stays_open_after_a_refusal_or_a_close(
    address: str, database: Database, postgres_server: PostgresServer
) -> None:
    await database.write(
        lambda connection: connection.exec_driver_sql("UPDATE alembic_version SET version_num='x'")
    )
    await database.close()
    await refused(address)
    with closing(psycopg.connect(postgres_server.address("postgres"))) as other:
        sessions = other.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", (name_of(address),)
        ).fetchone()
    assert sessions == (0,)


@pytest.mark.parametrize("answered", [True, False])
async def test_a_connection_that_is_left_in_a_pipeline_is_lost(
    database: Database, *, answered: bool
) -> None:
    """As where the server has said that it ends the session, and the connection is open still."""
    attempts: list[Any] = []

    def work(connection: Connection) -> str:
        session: Any = connection.connection.driver_connection
        attempts.append(session)
        if len(attempts) == 1:
            session.pgconn.send_query_params(b"SELECT 1", None)  # whose answer nobody takes
            if answered:
                session.pgconn.send_flush_request()
                session.pgconn.flush()
                assert select.select([session.pgconn.socket], [], [], 30)[0]
        return "done"

    assert await database.read(work) == "done"
    assert len(attempts) == 2, "it is done again, on another connection"
    assert attempts[0].closed


async def test_a_fault_of_what_is_asked_is_no_fault_of_the_connection(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        raise IndexError

    with pytest.raises(IndexError):
        await database.read(work)
