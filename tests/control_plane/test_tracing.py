"""A traced caller, a control plane and a collector of traces: what the collector is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from control_plane.client import Client
from tests.support.plane import error_of, request, running_plane


class Collector:
    """Takes spans in over OTLP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {a.key: a.value.string_value for a in each.resource.attributes}
                    collector.resources.append(about)
                    collector.spans += [span for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


async def traced_set(address: str, trace_id: list[int]) -> int:
    """Sends a change as a program does that is traced."""

    def send() -> int:
        tracer = TracerProvider().get_tracer("caller")
        with tracer.start_as_current_span("tune") as span, Client(address) as client:
            trace_id.append(span.get_span_context().trace_id)
            return client.set("j", {"learning_rate": 1e-5}).revision

    with ThreadPoolExecutor(1) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, send)


async def test_from_the_caller_to_the_step_that_uses_it(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    trace_id: list[int] = []
    async with running_plane(tmp_path / "control.db", tracing=True) as plane:
        agent = await plane.agent()
        revision = await traced_set(plane.address, trace_id)
        (delivered,) = await agent.receive()
        assert delivered.trace_parent.split("-")[1] == f"{trace_id[0]:032x}", "the agent can go on"
        await agent.apply(revision, step=33)
        await plane.wait(revision)
        await error_of(plane.get_job("nobody"))
    (update,) = collector.named("update")
    told = attributes(update)
    assert told["midcourse.job"] == "j"
    assert (told["midcourse.revision"], told["midcourse.step"]) == (revision, 33)
    assert [event.name for event in update.events] == ["delivered"]
    assert update.start_time_unix_nano < update.end_time_unix_nano
    (call,) = collector.named("midcourse.control.v1.ControlPlaneService/UpdateParameters")
    assert update.trace_id == call.trace_id == trace_id[0].to_bytes(16, "big")
    assert update.parent_span_id == call.parent_span_id != b""
    (refused,) = collector.named("midcourse.control.v1.ControlPlaneService/GetJob")
    assert attributes(refused)["rpc.grpc.status_code"] == 5
    assert not refused.parent_span_id
    assert {each["service.name"] for each in collector.resources} == {"midcourse-control-plane"}


@pytest.mark.parametrize("given", ["", "00-zz-1-01", "x" * 5_000, f"00-{'a' * 32}-{'b' * 16}-01"])
async def test_a_trace_parent_is_kept_if_it_is_one(given: str, tmp_path: Path) -> None:
    async with running_plane(tmp_path / "control.db") as plane:
        agent = await plane.agent()
        metadata = (("traceparent", given),) if given else ()
        await plane.control.UpdateParameters(request(), metadata=metadata)
        (update,) = await agent.receive()
        assert update.trace_parent == (given if given.count("a") == 32 else "")
