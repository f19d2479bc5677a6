"""Requests of any content, through a real channel: always a proper answer, and nothing breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from grpc_runtime.paging import write_token
from midcourse.control.v1 import access_pb2, control_pb2
from tests.support.any_request import METHODS, Plane, name_of, served_from
from tests.support.plane import error_of

FEW = 30


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with served_from(tmp_path_factory.mktemp("malformed") / "control.db") as served:
        yield served


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_any_request_has_a_proper_answer(plane: Plane, method: MethodDescriptor) -> None:
    plane.check(method, FEW)


@pytest.mark.parametrize(
    "method", [each for each in METHODS if not each.client_streaming], ids=name_of
)
def test_no_text_has_a_nul(plane: Plane, method: MethodDescriptor) -> None:
    plane.check_nul(method)


@pytest.mark.parametrize("after", ["x", "1.2.3.4", "9" * 400, "-1.2.3", f"{10**18}.1.1", -1])
def test_a_page_token_that_was_made_up_well(plane: Plane, after: str | int) -> None:
    """Whoever reads the source can make a token that seems to be of the right query."""
    control, access = control_pb2.ListUpdatesRequest(parent="jobs/-"), "audit|"
    updates = f"updates|{control.SerializeToString(deterministic=True).hex()}"

    async def codes() -> set[grpc.StatusCode]:
        control.page_token = write_token(after, updates)
        asked = access_pb2.ListAuditRecordsRequest(page_token=write_token(after, access))
        stub: Any = plane.running.channel.unary_unary(
            "/midcourse.control.v1.AccessService/ListAuditRecords",
            request_serializer=access_pb2.ListAuditRecordsRequest.SerializeToString,
        )
        refused = [await error_of(plane.running.control.ListUpdates(control))]
        refused.append(await error_of(stub(asked)))
        return {each.code for each in refused}

    assert plane.runner.run(codes()) == {grpc.StatusCode.INVALID_ARGUMENT}
