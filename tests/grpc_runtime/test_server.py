from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from grpc_runtime.errors import from_rpc_error
from grpc_runtime.listen import AddressInUseError, ExposedError, ListenError
from grpc_runtime.server import ServerCrashedError, Service, run
from grpc_runtime.tls import TlsError, TlsFiles
from tests.support.http2 import http2_request
from tests.support.processes import free_port

ROOT = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def service(address: str = "127.0.0.1:0", **options: Any) -> Service:
    return Service(address, domain="test.example", **options)


async def health_of(channel: grpc.aio.Channel, name: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(response.status)


async def test_port_0_is_replaced_by_the_bound_port() -> None:
    server = service()
    bound = await server.start()
    try:
        assert bound.port
        assert server.address == bound
        async with grpc.aio.insecure_channel(str(bound)) as channel:
            assert await health_of(channel) == SERVING
    finally:
        await server.stop()


async def test_health_knows_every_service(serve: Any) -> None:
    async with serve() as (server, channel):
        assert server.service_names == ("test.Echo",)
        assert await health_of(channel, "test.Echo") == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel, "test.Other")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection(serve: Any, version: str) -> None:
    request = reflection_pb2.ServerReflectionRequest
    async with serve() as (_, channel):
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=request.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(
            iter(
                [request(list_services=""), request(file_containing_symbol="grpc.health.v1.Health")]
            )
        )
        listed, described = [response async for response in call]
    names = {each.name for each in listed.list_services_response.service}
    assert names == {
        "test.Echo", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection",
    }  # fmt: skip
    assert described.file_descriptor_response.file_descriptor_proto


async def test_a_port_in_use_is_one_clear_line() -> None:
    async with service() as first:
        second = service(str(first.address))
        with pytest.raises(AddressInUseError, match=f"{first.address}: the address is in use"):
            await second.start()
        with pytest.raises(AddressInUseError):
            await service(f"localhost:{first.address.port}").start()
    async with service(str(first.address)):
        pass  # free again at once


async def test_a_unix_socket_in_use_is_not_taken_away(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'server.sock'}"
    async with service(address):
        with pytest.raises(AddressInUseError):
            await service(address).start()
        async with grpc.aio.insecure_channel(address) as channel:
            assert await health_of(channel) == SERVING


async def test_a_unix_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with service(f"unix:{path}"), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        assert await health_of(channel) == SERVING


async def test_a_unix_socket_without_directory(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="there is no directory"):
        await service(f"unix:{tmp_path / 'missing' / 'server.sock'}").start()


async def test_an_address_of_another_host() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:50051: "):
        await service("192.0.2.1:50051", insecure=True).start()
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:0"):
        await service("192.0.2.1:0", insecure=True).start()


async def test_a_probe_is_answered_apart_from_the_service(serve: Any) -> None:
    port = free_port()
    began, go_on = asyncio.Event(), asyncio.Event()

    async def drain() -> None:
        began.set()
        await go_on.wait()

    def stub(channel: grpc.aio.Channel) -> Any:
        return channel.unary_unary("/test.Echo/Echo")

    options = {"health_address": f"127.0.0.1:{port}", "grace": 5.0}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as probe:
        async with serve(service=options) as (server, channel):
            server.on_drain(drain)
            assert await health_of(probe) == SERVING
            assert await health_of(probe, "test.Echo") == SERVING
            assert await health_of(channel) == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub(probe)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            stopping = asyncio.create_task(server.stop())
            await began.wait()
            assert await health_of(probe) == NOT_SERVING
            go_on.set()
            await stopping
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(probe)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_probe_that_can_not_be_answered_is_told_at_once() -> None:
    async with service() as first:
        second = service(health_address=str(first.address))
        with pytest.raises(AddressInUseError, match=f"{first.address}: the address is in use"):
            await second.start()
        third = service(str(first.address), health_address=f"127.0.0.1:{free_port()}")
        with pytest.raises(AddressInUseError):
            await third.start()


def test_other_hosts_are_not_let_in_unprotected() -> None:
    with pytest.raises(ExposedError, match="without TLS and authentication"):
        service("0.0.0.0:0")
    service("0.0.0.0:0", insecure=True)


async def test_oversized_messages_are_refused(serve: Any) -> None:
    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    async with serve(service={"max_message_bytes": 1000}, Echo=handler) as (_, channel):
        call = channel.unary_unary("/test.Echo/Echo")
        assert len(await call(bytes(1000))) == 1000
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bytes(1001))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


class Drain:
    """A stream that goes on until it is told to end, and what happened in which order."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.drained = asyncio.Event()
        self.block = asyncio.Event()

    async def stream(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b"hello"
        await self.drained.wait()
        self.steps.append("stream ends")
        yield b"bye"

    async def forever(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield b"hello"
        await self.block.wait()

    async def on_drain(self) -> None:
        self.steps.append("on_drain")
        self.drained.set()

    def handlers(self) -> dict[str, Any]:
        return {
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Forever": grpc.unary_stream_rpc_method_handler(self.forever),
        }


async def test_a_drain_lets_an_open_stream_end(serve: Any) -> None:
    drain = Drain()
    async with serve(service={"grace": 30}, **drain.handlers()) as (server, channel):
        health_during_drain: list[int] = []

        async def look_at_health() -> None:
            health_during_drain.append(await health_of(channel, "test.Echo"))
            health_during_drain.append(await health_of(channel))

        server.on_drain(look_at_health)
        server.on_drain(drain.on_drain)
        call = channel.unary_stream("/test.Echo/Stream")(b"")
        assert await call.read() == b"hello"
        async with asyncio.timeout(10):
            stopping = asyncio.gather(server.stop(), server.stop())
            assert await call.read() == b"bye"
            assert await call.read() is grpc.aio.EOF
            await stopping
        assert drain.steps == ["on_drain", "stream ends"]
        assert health_during_drain == [NOT_SERVING, NOT_SERVING]
        assert await call.code() is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_grace_period_ends(serve: Any) -> None:
    drain = Drain()
    async with serve(service={"grace": 0.2}, **drain.handlers()) as (server, channel):

        async def never() -> None:
            await drain.block.wait()

        server.on_drain(never)
        call = channel.unary_stream("/test.Echo/Forever")(b"")
        assert await call.read() == b"hello"
        async with asyncio.timeout(10):
            await server.stop()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()


async def test_health_watchers_do_not_hold_up_a_stop(serve: Any) -> None:
    async with serve(service={"grace": 60}) as (server, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        async with asyncio.timeout(10):
            stopping = asyncio.create_task(server.stop())
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
            await stopping


async def test_a_failing_callback_stops_nothing(events: list[Any]) -> None:
    drain = Drain()
    server = service()

    async def fail() -> None:
        raise OSError("disk full")

    server.on_drain(fail)
    server.on_drain(drain.on_drain)
    await server.start()
    await server.stop()
    assert drain.steps == ["on_drain"]
    (told,) = [event for event in events if event["event"] == "drain callback failed"]
    assert str(told["exc_info"]) == "disk full"


async def test_wait_returns_when_stopped() -> None:
    server = service()
    await server.start()
    waiting = asyncio.create_task(server.wait())
    await server.stop()
    await asyncio.wait_for(waiting, 10)


async def test_a_cancelled_wait_harms_nothing(serve: Any) -> None:
    async with serve() as (server, channel):
        waiting = asyncio.create_task(server.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await health_of(channel) == SERVING


# The crash also ends a task of grpc's own, which nobody but the garbage collector looks at.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_server_that_a_client_crashed_is_back(serve: Any, events: list[Any]) -> None:
    async with serve() as (server, channel):
        assert await health_of(channel) == SERVING
        waiting = asyncio.create_task(server.wait())
        reader, writer = await asyncio.open_connection("127.0.0.1", server.address.port)
        writer.write(http2_request(b"/test.Echo/\xff"))
        async with asyncio.timeout(10):
            await reader.read()
            writer.close()
            stub: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="test.Echo")
            response = await stub.Check(request, wait_for_ready=True)
        assert response.status == SERVING
        assert not waiting.done()
    await waiting
    (crash,) = [event for event in events if event["log_level"] == "error"]
    assert crash["event"] == "the gRPC server crashed; opening it again"


async def test_a_server_that_cannot_be_opened_again(
    monkeypatch: pytest.MonkeyPatch, events: list[Any]
) -> None:
    server = service()
    await server.start()

    async def crash(_self: Any, timeout: float | None = None) -> bool:
        raise RuntimeError("completion queue is gone")

    async def refuse() -> None:
        raise ListenError("no such address any more")

    monkeypatch.setattr("grpc.aio._server.Server.wait_for_termination", crash)
    monkeypatch.setattr(server, "_open", refuse)
    with pytest.raises(ServerCrashedError, match="no such address any more"):
        await asyncio.wait_for(server.wait(), 10)
    assert events[-1]["event"] == "stopped"


async def fail() -> None:
    raise LookupError("the disk is gone")


async def end() -> None:
    pass


async def fail_together() -> None:
    async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
        outer.create_task(asyncio.Event().wait())
        inner.create_task(fail())


async def wait_for_what_was_cancelled() -> None:
    other = asyncio.get_running_loop().create_future()
    other.cancel()
    await other


@pytest.mark.parametrize(
    ("chore", "why"),
    [
        (fail, "the disk is gone"),
        (fail_together, "the disk is gone"),
        (end, "it ended"),
        (wait_for_what_was_cancelled, "what it waited for was cancelled"),
    ],
)
async def test_a_chore_that_ends_is_the_end_of_the_service(
    events: list[Any], chore: Any, why: str
) -> None:
    server = service()
    await server.start()
    server.rely_on(asyncio.create_task(chore(), name="upkeep"))
    with pytest.raises(ServerCrashedError, match=f"the background task 'upkeep' failed: {why}"):
        await asyncio.wait_for(server.wait(), 30)
    assert events[-1]["event"] == "stopped"
    assert [event["task"] for event in events if event["log_level"] == "critical"] == ["upkeep"]


async def test_a_cancelled_chore_is_no_failure() -> None:
    server = service()
    await server.start()
    chore = asyncio.create_task(asyncio.Event().wait())
    server.rely_on(chore)
    chore.cancel()
    await asyncio.gather(chore, return_exceptions=True)
    await server.stop()
    await server.wait()


@pytest.mark.parametrize("is_opening", [False, True])
async def test_a_service_told_to_stop_while_it_starts_serves_nobody(
    monkeypatch: pytest.MonkeyPatch, is_opening: bool
) -> None:
    server = service(health_address=f"127.0.0.1:{free_port()}")
    opened: list[Any] = []
    really_open = server._open

    async def stop_and_open() -> Any:
        server.rely_on(asyncio.create_task(fail(), name="upkeep"))
        while not server._is_draining():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        opened.append(await really_open())
        return opened[-1]

    monkeypatch.setattr(server, "_open", stop_and_open)
    if not is_opening:
        server._drain_once(0)
    await server.start()
    if is_opening:
        with pytest.raises(ServerCrashedError, match="the disk is gone"):
            await asyncio.wait_for(server.wait(), 30)
    else:
        await asyncio.wait_for(server.wait(), 30)
    assert len(opened) == is_opening
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_service_starts_once() -> None:
    server = service()
    with pytest.raises(RuntimeError, match="has not been started"):
        await server.wait()
    async with server:
        with pytest.raises(RuntimeError, match="once only"):
            await server.start()


async def test_a_service_stopped_before_its_start_listens_nowhere() -> None:
    port = free_port()
    server = service(health_address=f"127.0.0.1:{port}")
    await server.stop()
    async with server.not_yet_serving():
        await server.start()
    await asyncio.wait_for(server.wait(), 30)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as probe:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(probe)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def add_echo(_servicer: Any, server: Any) -> None:
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {}),))


async def test_a_probe_is_told_of_services_that_are_to_come() -> None:
    port = free_port()
    server = service(health_address=f"127.0.0.1:{port}")

    async def told(watch: Any) -> Any:
        message = await watch.read()
        return None if message is grpc.aio.EOF else message.status

    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    async with channel as probe, server.not_yet_serving():
        stub: Any = health_pb2_grpc.HealthStub(probe)
        echo, other = (
            stub.Watch(health_pb2.HealthCheckRequest(service=name))
            for name in ("test.Echo", "test.Other")
        )
        assert await told(echo) == await told(other) == NOT_SERVING
        assert await health_of(probe, "test.Echo") == NOT_SERVING
        assert await health_of(probe) == NOT_SERVING
        server.add(add_echo, None)
        async with server:
            assert await told(echo) == await health_of(probe) == SERVING
            assert await told(other) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            assert await told(other) is None
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_of(probe, "test.Other")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert await told(echo) == NOT_SERVING
        assert await told(echo) is None


PROGRAM = """
    import asyncio
    from grpc_runtime.logging import configure_logging
    from grpc_runtime.server import Service, run

    async def main():
        service = Service("127.0.0.1:0", domain="test.example", grace={grace})
        async def drain():
            print("draining", flush=True)
            await asyncio.sleep({drain})
        service.on_drain(drain)
        serving = asyncio.create_task(service.serve())
        while service.address.port == 0:
            await asyncio.sleep(0.01)
        print(type(asyncio.get_running_loop()).__module__, flush=True)
        await serving
        print("stopped", flush=True)

    configure_logging(log_format="json")
    run(main())
    print("done", flush=True)
"""


def start_program(*, grace: float, drain: float) -> subprocess.Popen[str]:
    program = textwrap.dedent(PROGRAM).format(grace=grace, drain=drain)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "uvloop\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    with start_program(grace=30, drain=0.01) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "draining\nstopped\ndone\n"), err
    assert '"event": "stopped"' in err


def test_a_second_signal_stops_at_once() -> None:
    with start_program(grace=600, drain=600) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "stopped\ndone\n"), err
    assert '"event": "stopping at once"' in err


def test_run_returns_the_result() -> None:
    async def answer() -> int:
        return 42

    assert run(answer()) == 42


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    directory = tmp_path_factory.mktemp("tls")
    files = TlsFiles(directory / "cert.pem", directory / "key.pem")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
        f" -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
        f" -keyout {files.key} -out {files.certificate}"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    return files


async def test_tls(tls_files: TlsFiles) -> None:
    async with service(tls=tls_files) as server:
        trusted = grpc.ssl_channel_credentials(tls_files.certificate.read_bytes())
        async with grpc.aio.secure_channel(str(server.address), trusted) as channel:
            assert await health_of(channel) == SERVING
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_of(channel)
        assert from_rpc_error(caught.value).code is grpc.StatusCode.UNAVAILABLE


async def test_tls_files_that_cannot_be_used(tmp_path: Path, tls_files: TlsFiles) -> None:
    missing = TlsFiles(tmp_path / "missing.pem", tls_files.key)
    with pytest.raises(TlsError, match=r"cannot read the TLS file .*missing\.pem"):
        await service(tls=missing).start()
    swapped = TlsFiles(tls_files.key, tls_files.certificate)
    with pytest.raises(TlsError, match="holds no PEM block of kind CERTIFICATE"):
        await service(tls=swapped).start()


def test_importing_errors_needs_no_server() -> None:
    code = (
        "import sys, grpc_runtime.errors, grpc_runtime.options;"
        "print([m for m in sys.modules if m.split('.')[0] in ('uvloop', 'pydantic', 'structlog')"
        " or m == 'grpc_runtime.server'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert out.stdout == "[]\n"
