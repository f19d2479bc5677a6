"""What every database keeps; each kind runs these tests against itself."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import structlog
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from grpc_runtime.sql import (
    Database,
    DatabaseClosedError,
    DatabaseOpenError,
    DatabaseUnavailableError,
)
from tests.grpc_runtime.sql.tables import (
    Colour,
    add,
    count,
    environment,
    increment,
    metadata,
    names,
    open_notes,
    prices,
    python,
)

OPEN_AND_SAY = """
import asyncio, sys
from grpc_runtime.logging import configure_logging
from grpc_runtime.sql import DatabaseOpenError
from tests.grpc_runtime.sql.tables import open_notes, count

async def main():
    sys.stdin.readline()
    try:
        database = await open_notes(sys.argv[1])
    except DatabaseOpenError as error:
        print(error, flush=True)
        return
    print("open", flush=True)
    sys.stdin.readline()
    print(await database.read(count), flush=True)
    await database.close()

configure_logging()
asyncio.run(main())
"""


class WorkError(Exception):
    """Raised by work."""


class OddError(BaseException):
    """Raised by work that means no good."""


def after(gate: threading.Event, work: Callable[[Connection], Any]) -> Callable[[Connection], Any]:
    """Work that waits before it begins."""

    def waiting(connection: Connection) -> Any:
        assert gate.wait(10)
        return work(connection)

    return waiting


class DatabaseContract:
    """Asks for a fixture `address`: of a database that is empty, or not there yet."""

    async def test_a_write_returns_after_its_commit(self, database: Database) -> None:
        def work(connection: Connection) -> str:
            add("a", 1)(connection)
            return "done"

        assert await database.write(work) == "done"
        assert await database.read(names) == ["a"]

    async def test_what_was_written_outlasts_a_close(
        self, address: str, database: Database
    ) -> None:
        await database.write(add("a"))
        await database.close()
        again = await open_notes(address)
        assert await again.read(names) == ["a"]
        await again.close()

    @pytest.mark.parametrize("error", [WorkError("no"), OddError("no")])
    async def test_work_that_fails_leaves_nothing(
        self, database: Database, error: BaseException
    ) -> None:
        def work(connection: Connection) -> None:
            add("a")(connection)
            raise error

        with pytest.raises(type(error), match="no"):
            await database.write(work)
        assert await database.read(names) == []
        await database.write(add("b"))
        assert await database.read(names) == ["b"]

    async def test_an_error_that_no_future_takes_reaches_its_caller(
        self, database: Database
    ) -> None:
        def work(_: Connection) -> None:
            raise StopIteration

        # Python turns it into this one where it leaves a coroutine.
        with pytest.raises(RuntimeError, match="StopIteration"):
            await database.write(work)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await database.read(work)

    async def test_an_error_of_the_data_is_the_works_own(self, database: Database) -> None:
        def work(connection: Connection) -> None:
            add("other")(connection)
            add("twice", 4711)(connection)

        await database.write(add("twice"))
        with pytest.raises(IntegrityError) as caught:
            await database.write(work)
        # Values are the users' own.
        assert "4711" not in str(caught.value)
        assert await database.read(names) == ["twice"]

    async def test_a_part_can_be_undone(self, database: Database) -> None:
        def work(connection: Connection) -> None:
            add("a")(connection)
            part = connection.begin_nested()
            add("b")(connection)
            with pytest.raises(IntegrityError):
                add("a")(connection)
            part.rollback()
            add("c")(connection)

        await database.write(work)
        assert await database.read(names) == ["a", "c"]

    async def test_a_read_is_one_snapshot(self, database: Database) -> None:
        begun, written = threading.Event(), threading.Event()

        def work(connection: Connection) -> tuple[int, int]:
            before = count(connection)
            begun.set()
            assert written.wait(10)
            return before, count(connection)

        reading = asyncio.ensure_future(database.read(work))
        assert await asyncio.to_thread(begun.wait, 10)
        await database.write(add("a"))
        written.set()
        assert await reading == (0, 0)
        assert await database.read(count) == 1

    async def test_a_read_must_not_write(self, database: Database) -> None:
        with pytest.raises(DatabaseUnavailableError, match=r"can not be written to.*read-?only"):
            await database.read(add("a"))
        await database.write(add("b"))
        assert await database.read(names) == ["b"]

    async def test_nobody_sees_what_is_not_committed(self, database: Database) -> None:
        begun, gate = threading.Event(), threading.Event()

        def work(connection: Connection) -> None:
            add("a")(connection)
            begun.set()
            assert gate.wait(10)

        writing = asyncio.ensure_future(database.write(work))
        assert await asyncio.to_thread(begun.wait, 10)
        assert await database.read(count) == 0
        gate.set()
        await writing
        assert await database.read(count) == 1

    async def test_writers_with_locks_lose_no_step(self, database: Database) -> None:
        await database.write(add("a"))
        steps = await asyncio.gather(*(database.write(increment("a")) for _ in range(50)))
        assert sorted(steps) == list(range(1, 51))

    async def test_work_whose_caller_is_cancelled_is_done_whole(
        self, address: str, database: Database
    ) -> None:
        begun, gate = threading.Event(), threading.Event()

        def work(connection: Connection) -> None:
            add("a")(connection)
            begun.set()
            assert gate.wait(10)
            add("b")(connection)

        writing = asyncio.ensure_future(database.write(work))
        assert await asyncio.to_thread(begun.wait, 10)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        gate.set()
        await database.close()
        again = await open_notes(address)
        assert await again.read(names) == ["a", "b"]
        await again.close()

    @pytest.mark.parametrize("fails", [False, True])
    async def test_somebody_is_told_of_what_its_caller_did_not_wait_for(
        self, database: Database, fails: bool
    ) -> None:
        begun, may_go_on = threading.Event(), threading.Event()
        told = asyncio.Event()

        def work(connection: Connection) -> None:
            add("lonely")(connection)
            begun.set()
            assert may_go_on.wait(20)
            if fails:
                raise LookupError

        writing = asyncio.create_task(database.write(work, orphaned=told.set))
        assert await asyncio.to_thread(begun.wait, 20)
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled()
        may_go_on.set()
        if not fails:
            await asyncio.wait_for(told.wait(), 20)
            assert await database.read(names) == ["lonely"]
        # Who was waited for needs no telling, and what came to nothing neither.
        await database.write(add("told"), orphaned=told.set)
        await asyncio.sleep(0)
        assert told.is_set() != fails
        assert len(await database.read(names)) == 2 - fails

    async def test_work_that_was_cancelled_before_its_turn_is_not_done(
        self, address: str, database: Database
    ) -> None:
        gate = threading.Event()
        # More than there are threads, so that the last one waits for its turn.
        blocked = [
            asyncio.ensure_future(database.write(after(gate, add(f"blocked-{n}"))))
            for n in range(20)
        ]
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(database.write(add("cancelled")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*blocked)
        assert "cancelled" not in await database.read(names)

    async def test_close_finishes_what_was_begun(self, address: str, database: Database) -> None:
        gate = threading.Event()
        begun = [
            asyncio.ensure_future(database.write(after(gate, add(f"{n:02}")))) for n in range(20)
        ]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(database.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(DatabaseClosedError, match="is closed"):
            await database.write(add("late"))
        with pytest.raises(DatabaseClosedError, match="is closed"):
            await database.read(count)
        gate.set()
        await asyncio.gather(*begun)
        await database.close()
        await database.close()
        again = await open_notes(address)
        assert await again.read(names) == [f"{n:02}" for n in range(20)]
        await again.close()

    async def test_columns_keep_what_they_are_given(self, database: Database) -> None:
        rows = [
            (1, datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), Colour.RED, Decimal("1.10")),
            (2, datetime(1969, 1, 1, tzinfo=UTC), Colour.BLUE, Decimal("0.000000000000000000123")),
            (3, None, None, None),
            (4, None, None, Decimal("-123456789012345678901234567890.5")),
            (5, None, None, Decimal(0)),
            (6, None, None, Decimal("1E-7")),
        ]
        await database.write(
            lambda connection: [connection.execute(insert(prices).values(row)) for row in rows]
        )
        found = await database.read(
            lambda connection: connection.execute(select(prices).order_by("key")).all()
        )
        assert [tuple(row) for row in found] == rows
        assert [type(row.price) for row in found if row.price is not None] == [Decimal] * 5

    @pytest.mark.parametrize("number", ["NaN", "Infinity"])
    async def test_prices_are_finite(self, database: Database, number: str) -> None:
        def work(connection: Connection) -> None:
            connection.execute(insert(prices).values(key=1, price=Decimal(number)))

        with pytest.raises(Exception, match="allowed: a finite number"):
            await database.write(work)

    # Migrations

    async def test_migrations_make_what_the_queries_expect(self, database: Database) -> None:
        def differences(connection: Connection) -> list[Any]:
            return list(compare_metadata(MigrationContext.configure(connection), metadata))

        assert await database.read(differences) == []

    async def test_a_migration_is_told_of_once(
        self, address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        with structlog.testing.capture_logs() as events:
            for _ in range(2):
                await (await open_notes(address)).close()
        [event] = [event for event in events if event["event"] == "database migrated"]
        assert event["from_revision"] is None
        assert event["to_revision"] == "notes_0002"
        assert "pass" not in event["database"]
        assert [record.name for record in caplog.records if "alembic" in record.name] == []

    async def test_only_what_lacks_is_migrated(self, address: str, database: Database) -> None:
        def go_back(connection: Connection) -> None:
            add("kept")(connection)
            connection.exec_driver_sql("DROP TABLE prices")
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'notes_0001'")

        await database.write(go_back)
        await database.close()
        with structlog.testing.capture_logs() as events:
            again = await open_notes(address)
        assert events[0]["from_revision"] == "notes_0001"
        assert await again.read(names) == ["kept"]
        assert await again.read(lambda connection: connection.execute(select(prices)).all()) == []
        await again.close()

    async def test_a_newer_schema_is_refused_with_both_names(
        self, address: str, database: Database
    ) -> None:
        await database.write(
            lambda connection: connection.exec_driver_sql(
                "UPDATE alembic_version SET version_num = 'notes_9999'"
            )
        )
        await database.close()
        with pytest.raises(
            DatabaseOpenError,
            match=r"has schema notes_9999, but .* up to notes_0002; run the newer",
        ) as caught:
            await open_notes(address)
        assert "pass" not in str(caught.value)

    async def test_a_database_of_another_program_is_refused(
        self, address: str, database: Database
    ) -> None:
        def forget(connection: Connection) -> None:
            for table in ("alembic_version", "prices"):
                connection.exec_driver_sql(f"DROP TABLE {table}")

        await database.write(forget)
        await database.close()
        with pytest.raises(
            DatabaseOpenError, match=r"belongs to another program \(its tables: notes\)"
        ):
            await open_notes(address)

    def starting_together(self, address: str) -> list[str]:
        """Opens a database in three processes at once; returns what each has to say."""
        children = [
            subprocess.Popen(
                python(OPEN_AND_SAY, address),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            for _ in range(3)
        ]
        said = []
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        # All have tried before the first is let go.
        for child in children:
            assert child.stdout is not None
            said.append(child.stdout.readline())
        for child in children:
            rest, _ = child.communicate("close\n", timeout=30)
            assert child.returncode == 0
            assert rest in ("0\n", "")
        return said
