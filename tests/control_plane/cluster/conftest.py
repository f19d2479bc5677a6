"""An empty database that replicas share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer, postgres_server
from tests.support.replicas import clear, without_deadlocks

__all__ = ["postgres_server"]


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    """The address of one database for all tests of a module."""
    with postgres_server.empty_database() as made, without_deadlocks(postgres_server, made):
        yield made


@pytest.fixture
def address(database: str) -> Iterator[str]:
    """The same, emptied after each test."""
    yield database
    clear(database)
