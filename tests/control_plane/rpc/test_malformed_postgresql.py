"""The same on PostgreSQL, which does not take every text, and many more of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor

from midcourse.control.v1 import access_pb2, control_pb2
from tests.support.any_request import METHODS, Plane, name_of, served_from
from tests.support.plane import set_rate
from tests.support.postgres import PostgresServer

MANY = 1_000


@pytest.fixture(scope="module")
def plane(postgres_server: PostgresServer) -> Iterator[Plane]:
    with postgres_server.empty_database() as database, served_from(database) as served:
        yield served


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_any_of_many_requests_has_a_proper_answer(plane: Plane, method: MethodDescriptor) -> None:
    plane.check(method, MANY)


NUL_IN_TEXTS = [
    control_pb2.ListUpdatesRequest(parent="jobs/-", author="\x00"),
    control_pb2.ListUpdatesRequest(parent="jobs/j", author="\x00"),
    control_pb2.QueryMetricsRequest(job="jobs/j", names=["\x00"]),
    control_pb2.CancelUpdateRequest(name="jobs/j/updates/1", reason="\x00"),
    control_pb2.CreateJobRequest(job_id="k", method="\x00"),
    control_pb2.UpdateParametersRequest(
        job="jobs/j", spec=set_rate(2e-5, reason="\x00"), request_id="\x00"
    ),
    control_pb2.UpdateParametersRequest(job="jobs/j", spec=set_rate(2e-5, reason="\x00")),
    access_pb2.ListAuditRecordsRequest(principal="\x00", resource="jobs/\x00"),
    access_pb2.CreateTokenRequest(
        principal="ops", access=access_pb2.Access(role=access_pb2.ROLE_VIEWER), description="\x00"
    ),
]


@pytest.mark.parametrize("number", range(len(NUL_IN_TEXTS)))
def test_postgresql_stores_no_nul_and_nobody_notices(plane: Plane, number: int) -> None:
    asked = NUL_IN_TEXTS[number]
    method = next(each for each in METHODS if each.input_type is asked.DESCRIPTOR)
    plane.runner.run(plane.send(method, [asked.SerializeToString()]))
