"""The tables that the migrations in `notes` make, and work on them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    MetaData,
    String,
    Table,
    func,
    insert,
    select,
    update,
)

from grpc_runtime.sql import Database, DecimalText, Name, UtcTime, open_database
from tests.grpc_runtime.sql import notes as migrations
from tests.support.processes import ROOT


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


metadata = MetaData()
notes = Table(
    "notes",
    metadata,
    Column("name", String, primary_key=True),
    Column("number", BigInteger, nullable=False),
)
prices = Table(
    "prices",
    metadata,
    Column("key", BigInteger, primary_key=True, autoincrement=False),
    Column("time", UtcTime),
    Column("colour", Name(Colour)),
    Column("price", DecimalText),
)


async def open_notes(address: str | Path) -> Database:
    return await open_database(address, migrations=migrations, exclusive_owner="notebook")


def add(name: str, number: int = 0) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        connection.execute(insert(notes).values(name=name, number=number))

    return work


def increment(name: str) -> Callable[[Connection], int]:
    """Reads under a lock, then writes: loses a step where the lock does not hold."""

    def work(connection: Connection) -> int:
        of = notes.c.name == name
        number: int = connection.execute(
            select(notes.c.number).where(of).with_for_update()
        ).scalar_one()
        connection.execute(update(notes).where(of).values(number=number + 1))
        return number + 1

    return work


def names(connection: Connection) -> list[str]:
    return list(connection.execute(select(notes.c.name).order_by(notes.c.name)).scalars())


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(notes)).scalar_one()


async def run_sql(database: Database, sql: str) -> list[tuple[Any, ...]]:
    """Runs SQL in a write."""
    return await database.write(
        lambda connection: [tuple(row) for row in connection.exec_driver_sql(sql).all()]
    )


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
