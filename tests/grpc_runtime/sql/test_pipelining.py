"""Statements that nobody waits for: what becomes of them, and of what they fail with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, insert, select
from sqlalchemy.exc import IntegrityError

from grpc_runtime.sql import Database
from grpc_runtime.sql.prepared import Prepared, answered, send
from tests.grpc_runtime.sql.tables import names, notes, open_notes

ADD = Prepared(insert(notes).values(name=bindparam("name"), number=bindparam("number")))
NUMBER = Prepared(select(notes.c.number).where(notes.c.name == bindparam("name")))


@pytest.fixture
async def database(postgres_address: str) -> AsyncIterator[Database]:
    opened = await open_notes(postgres_address)
    yield opened
    await opened.close()


async def test_what_is_sent_is_there_for_what_is_asked_after_it(database: Database) -> None:
    def work(connection: Connection) -> list[Any]:
        before = NUMBER.ask(connection, name="a")
        ADD.send(connection, name="a", number=1)
        after = NUMBER.ask(connection, name="a")
        ADD.send(connection, name="b", number=2)
        return [[tuple(row) for row in rows()] for rows in (after, before)]

    assert await database.write(work) == [[(1,)], []]
    assert await database.read(names) == ["a", "b"]


async def test_an_error_comes_with_the_commit_at_the_latest(database: Database) -> None:
    """And is taken for what it is: here the work is run once more, as after any such error."""
    runs: list[int] = []

    def work(connection: Connection) -> None:
        runs.append(1)
        ADD.send(connection, name="a", number=1)
        ADD.send(connection, name="a", number=2)
        ADD.send(connection, name="b", number=3)

    with pytest.raises(IntegrityError):
        await database.write(work)
    assert len(runs) == 2
    assert await database.read(names) == []


async def test_an_error_comes_with_what_is_waited_for(database: Database) -> None:
    def work(connection: Connection) -> None:
        ADD.send(connection, name="a", number=1)
        part = connection.begin_nested()
        ADD.send(connection, name="a", number=2)
        with pytest.raises(IntegrityError):
            answered(connection)
        part.rollback()
        send(connection, "UPDATE notes SET number = number + 1")
        assert [tuple(row) for row in NUMBER.rows(connection, name="a")] == [(2,)]

    await database.write(work)
    assert await database.read(names) == ["a"]


async def test_answers_that_nobody_has_taken_do_no_harm(database: Database) -> None:
    def work(connection: Connection) -> None:
        NUMBER.ask(connection, name="a")
        NUMBER.ask(connection, name="b")

    for _ in range(3):
        await database.read(work)
        await database.write(work)
