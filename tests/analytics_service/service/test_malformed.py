"""Requests of any content, through a real channel: always a proper answer, and nothing breaks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.support.any_question import METHODS, Questioned, questioned
from tests.support.any_request import name_of
from tests.support.postgres import PostgresServer

FEW = 20
MANY = 1_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Questioned]:
    with questioned(tmp_path_factory.mktemp("malformed")) as one:
        yield one


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def either(
    request: pytest.FixtureRequest,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Questioned]:
    with contextlib.ExitStack() as stack:
        database = None
        if request.param == "postgresql":
            database = stack.enter_context(postgres_server.empty_database())
        yield stack.enter_context(questioned(tmp_path_factory.mktemp("malformed"), database))


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_any_request_has_a_proper_answer(served: Questioned, method: MethodDescriptor) -> None:
    served.check(method, FEW)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_no_text_has_a_nul(served: Questioned, method: MethodDescriptor) -> None:
    served.check_nul(method)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_any_of_many_requests_has_a_proper_answer(
    either: Questioned, method: MethodDescriptor
) -> None:
    either.check(method, MANY)
