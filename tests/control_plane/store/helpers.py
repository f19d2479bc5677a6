"""Reaching below the contract of the store, and running processes that use it."""

from __future__ import annotations

import os
import sys
from typing import Any

from sqlalchemy import Connection

from control_plane.services.ports import Store, Transaction
from control_plane.store.store import SqlStore
from grpc_runtime.sql.sqlite import SqliteDatabase
from tests.support.processes import ROOT


def connection_of(tx: Transaction) -> Connection:
    connection = tx._connection  # type: ignore[attr-defined] # tests reach below the contract
    assert isinstance(connection, Connection)
    return connection


async def run_sql(store: Store, sql: str) -> list[tuple[Any, ...]]:
    """Runs SQL on the writer's connection."""
    return await store.write(
        lambda tx: [tuple(row) for row in connection_of(tx).exec_driver_sql(sql).all()]
    )


def set_on_writer(store: Store, pragma: str) -> None:
    """Sets something on the writer's connection while the writer is idle."""
    assert isinstance(store, SqlStore)
    assert isinstance(store._database, SqliteDatabase)
    driver = store._database._writer._connection.connection.driver_connection
    assert driver is not None
    driver.execute(f"PRAGMA {pragma}")


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}"}
