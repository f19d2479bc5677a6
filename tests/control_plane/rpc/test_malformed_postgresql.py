"""Many more of them, on PostgreSQL, which does not take every text, and on SQLite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.support.any_request import METHODS, Plane, name_of, served_from
from tests.support.postgres import PostgresServer

MANY = 1_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def plane(
    request: pytest.FixtureRequest,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Plane]:
    with contextlib.ExitStack() as stack:
        database: Path | str = tmp_path_factory.mktemp("malformed") / "control.db"
        if request.param == "postgresql":
            database = stack.enter_context(postgres_server.empty_database())
        yield stack.enter_context(served_from(database))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_any_of_many_requests_has_a_proper_answer(plane: Plane, method: MethodDescriptor) -> None:
    plane.check(method, MANY)
