"""`midcourse health`."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from control_plane.cli.exits import ExitCode
from tests.support.midcourse_command import Midcourse
from tests.support.processes import free_port

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def servicer() -> health.HealthServicer:
    return health.HealthServicer()


@pytest.fixture
def address(servicer: health.HealthServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_server_that_serves(address: str) -> None:
    midcourse = Midcourse(address)
    assert midcourse("health").stdout == "SERVING\n"
    assert midcourse.json("health") == {"status": "SERVING"}


def test_a_server_that_does_not(address: str, servicer: health.HealthServicer) -> None:
    servicer.set("some.Service", Status.NOT_SERVING)
    midcourse = Midcourse(address)
    told = midcourse("health", "--service", "some.Service", code=ExitCode.UNREACHABLE)
    assert told.stderr.endswith(f"the server at {address} says NOT_SERVING\n")
    told = midcourse("health", "--service", "other.Service", code=ExitCode.NOT_FOUND)
    assert "has no service 'other.Service'" in told.stderr


def test_nobody_answers() -> None:
    here = f"127.0.0.1:{free_port()}"
    told = Midcourse(here)("health", "--timeout", "5", code=ExitCode.UNREACHABLE)
    assert f"no control plane answers at {here}" in told.stderr
    assert "is `midcourse serve` running there?" in told.stderr
    any_server = ("health", "--timeout", "5", "--address", here)
    told = Midcourse("")(*any_server, code=ExitCode.UNREACHABLE)
    assert f"no server answers at {here}" in told.stderr
    assert told.stderr.endswith("; is a server running there?\n")


def test_the_plain_listener_is_asked_without_credentials(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that has them for its own calls."""
    monkeypatch.setenv("MIDCOURSE_TLS_CA", "system")
    monkeypatch.setenv("MIDCOURSE_TOKEN", "mc_secret")
    elsewhere = Midcourse("control-plane.example:50051")
    assert elsewhere("health", "--address", address).stdout == "SERVING\n"
