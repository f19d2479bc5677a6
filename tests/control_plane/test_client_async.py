"""What is particular to the asynchronous client, and that it lacks nothing that the other has."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from control_plane import client as public
from control_plane.client import AsyncClient, Client, MidcourseError, RetryPolicy, UnavailableError
from midcourse.control.v1 import control_pb2 as pb
from midcourse.control.v1 import control_pb2_grpc, job_pb2

SHARED = {"address", "with_metadata"}  # what is no call is no different
WATCHES = {"watch_jobs", "watch_batch"}


def public_names(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_both_clients_have_the_same_methods() -> None:
    assert public_names(AsyncClient) == public_names(Client)
    assert len(public_names(Client)) > 30


@pytest.mark.parametrize("name", sorted(public_names(Client) - {"address"}))
def test_a_method_is_the_same_but_asynchronous(name: str) -> None:
    blocking, other = getattr(Client, name), getattr(AsyncClient, name)
    assert list(inspect.signature(other).parameters.values()) == list(
        inspect.signature(blocking).parameters.values()
    )
    assert other.__doc__
    answer = inspect.signature(other).return_annotation
    if name in SHARED:
        assert answer == "Self"
    elif name.startswith("list_"):
        assert answer == inspect.signature(blocking).return_annotation.replace("It", "AsyncIt")
    elif name in WATCHES:
        watch = getattr(public, answer)
        assert answer == "Async" + inspect.signature(blocking).return_annotation
        assert issubclass(watch, AsyncIterator)
    elif other is blocking:  # said in terms of a call that is asynchronous here
        assert answer == "_Answer"
    else:
        assert inspect.iscoroutinefunction(other)
        assert answer == inspect.signature(blocking).return_annotation


@pytest.mark.parametrize(
    ("name", "other"), [("JobWatch", "AsyncJobWatch"), ("BatchWatch", "AsyncBatchWatch")]
)
def test_both_watches_have_the_same_properties(name: str, other: str) -> None:
    blocking = public_names(getattr(public, name))
    assert (blocking - {"close"}) | {"aclose"} == public_names(getattr(public, other))


class Held(control_pb2_grpc.ControlPlaneServiceServicer):
    """Answers nothing before it is let; knows which calls were cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Queue[str]()
        self.cancelled = asyncio.Queue[str]()
        self.positions: list[str] = []
        self.events = asyncio.Queue[pb.WatchJobsResponse]()

    async def GetJob(self, request: Any, context: Any) -> Any:
        await self._hold("GetJob")

    async def WaitUpdate(self, request: Any, context: Any) -> Any:
        await self._hold("WaitUpdate")

    async def WatchJobs(self, request: Any, context: Any) -> AsyncIterator[pb.WatchJobsResponse]:
        self.positions.append(request.position)
        await self.begun.put("WatchJobs")
        try:
            while True:
                yield await self.events.get()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.put_nowait("WatchJobs")
            raise

    async def _hold(self, method: str) -> None:
        await self.begun.put(method)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(method)
            raise


@contextlib.asynccontextmanager
async def held() -> AsyncIterator[tuple[Held, AsyncClient]]:
    service = Held()  # type: ignore[abstract]  # nobody calls the rest
    server = grpc.aio.server()
    control_pb2_grpc.add_ControlPlaneServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}", timeout=20) as plane:
            yield service, plane
    finally:
        await server.stop(None)


def change(position: str, name: str = "my-run") -> pb.WatchJobsResponse:
    return pb.WatchJobsResponse(
        type=pb.JOB_EVENT_TYPE_MODIFIED, position=position, job=job_pb2.Job(name=f"jobs/{name}")
    )


@pytest.mark.parametrize("method", ["GetJob", "WaitUpdate", "WatchJobs"])
async def test_cancelling_a_task_that_waits_cancels_the_call(method: str) -> None:
    async with asyncio.timeout(10), held() as (service, plane):
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "GetJob": lambda: plane.get_job("my-run"),
            "WaitUpdate": lambda: plane.wait_applied("my-run", 1),
            "WatchJobs": lambda: anext(plane.watch_jobs()),
        }
        task = asyncio.ensure_future(calls[method]())
        assert await service.begun.get() == method
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await service.cancelled.get() == method


async def test_a_wait_for_an_event_that_is_cancelled_loses_none() -> None:
    async with asyncio.timeout(10), held() as (service, plane), plane.watch_jobs() as watch:
        service.events.put_nowait(change("1"))
        assert (await anext(watch)).position == "1"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(watch)
        await service.cancelled.get()
        service.events.put_nowait(change("2"))
        assert (await anext(watch)).position == "2"
        assert service.positions == ["", "1"]
        assert watch.interruption is None


async def test_closing_a_watch_ends_an_iteration_that_waits() -> None:
    async with asyncio.timeout(10), held() as (service, plane):
        watch = plane.watch_jobs()
        waiting = asyncio.ensure_future(anext(watch, None))
        await service.begun.get()
        await watch.aclose()
        assert await waiting is None
        assert await anext(watch, None) is None
        assert await service.cancelled.get() == "WatchJobs"


async def test_closing_a_watch_ends_the_wait_for_the_next_try() -> None:
    asked = asyncio.Event()

    class Patient(RetryPolicy):
        def backoff(self, failures: int, advised: float | None = None) -> float:
            asked.set()
            return 3600.0

    async with asyncio.timeout(10), AsyncClient("127.0.0.1:9", retry=Patient()) as plane:
        watch = plane.watch_jobs()
        waiting = asyncio.ensure_future(anext(watch, None))
        await asked.wait()
        assert isinstance(watch.interruption, UnavailableError)
        await watch.aclose()
        assert await waiting is None


async def test_closing_the_client_ends_what_waits_with_an_error() -> None:
    async with asyncio.timeout(10), held() as (service, plane):
        calls = [
            asyncio.ensure_future(call)
            for call in (plane.get_job("my-run"), anext(plane.watch_jobs()))
        ]
        for _ in calls:
            await service.begun.get()
        await plane.close()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in ended] == [MidcourseError, MidcourseError]
        assert {error.code for error in ended if isinstance(error, MidcourseError)} == {
            grpc.StatusCode.CANCELLED
        }


async def test_many_calls_at_once_share_the_connection() -> None:
    async with asyncio.timeout(10), held() as (service, plane):
        calls = [asyncio.ensure_future(plane.get_job(f"job-{n}")) for n in range(50)]
        for _ in calls:
            await service.begun.get()
        await plane.close()
        await asyncio.gather(*calls, return_exceptions=True)


def test_an_asynchronous_client_needs_its_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient("127.0.0.1:1")
