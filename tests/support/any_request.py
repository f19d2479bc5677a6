"""Requests of any content, made up from the descriptors, and a control plane that gets them.

A new method or field is part of it by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control_plane.services.ports import Transaction
from grpc_runtime.errors import from_rpc_error
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import access_pb2, control_pb2
from tests.support.plane import RunningPlane, request, running_plane


def methods_of(*modules: Any) -> list[MethodDescriptor]:
    """All methods of all services of some files."""
    return [
        method
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


METHODS = methods_of(control_pb2, access_pb2, session_pb2)
# How long a call that is to wait may do so.
WAIT_SECONDS = 0.15
OUR_FAULT = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}
LEAKS = ("Traceback", 'File "', " object at 0x", "sqlalchemy", "sqlite3", "/control_plane/")
DEEPEST = 5


def name_of(method: MethodDescriptor) -> str:
    return str(method.name)


NAMES = [
    *("j", "k", "jobs/j", "jobs/k", "jobs/-", "jobs/", "jobs/j/updates/1", "jobs/j/updates/0"),
    *("jobs/j/updates/999999999999999999", "batches/1", "batches/0", "tokens/0123456789ab", "p1"),
    *("pffffffffffffffff", "p-1", "learning_rate", "max_grad_norm", "loss", "sft", "ops", "a=b"),
    *("state=RUNNING", "a in (b, c),!d", "inst-1", "r1", "\x00", "\ud7ff", "a" * 300, "ä" * 2_000),
    *("../../etc/passwd", "%s%n", "'; DROP TABLE jobs; --", "\u202e", "1e999", "NaN"),
]
STRINGS = st.sampled_from(NAMES) | st.text(max_size=20)
FLOATS = st.floats() | st.sampled_from([0.0, 1e-5, 1.0, 1e308, -1.0])


def integers(bits: int, *, signed: bool) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    edges = [low, high, high - 1, 0, 1, 2, 10, 2**31 - 1, min(high, 2**63 - 1), min(high, 2**63)]
    return st.sampled_from([edge for edge in edges if low <= edge <= high]) | st.integers(low, high)


OF_TYPE = {
    FieldDescriptor.TYPE_STRING: STRINGS,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=20),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: FLOATS,
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_INT32: integers(32, signed=True),
    FieldDescriptor.TYPE_INT64: integers(64, signed=True),
    FieldDescriptor.TYPE_SINT64: integers(64, signed=True),
    FieldDescriptor.TYPE_UINT32: integers(32, signed=False),
    FieldDescriptor.TYPE_UINT64: integers(64, signed=False),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 8) | integers(32, signed=True),
}


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, depth + 1)
    return OF_TYPE[field.type]


@st.composite
def messages(draw: st.DrawFn, of: descriptor.Descriptor, depth: int = 0) -> Message:
    """Any message of a type."""
    made = message_factory.GetMessageClass(of)()
    for field in of.fields:
        of_field = field.message_type
        if (of_field is not None and depth >= DEEPEST) or not draw(st.integers(0, 3)):
            continue
        if of_field is not None and of_field.GetOptions().map_entry:
            entry = of_field.fields_by_name
            pairs = st.dictionaries(
                values(entry["key"], depth), values(entry["value"], depth), max_size=4
            )
            getattr(made, field.name).update(draw(pairs))
        elif field.is_repeated:
            getattr(made, field.name).extend(draw(st.lists(values(field, depth), max_size=3)))
        elif of_field is not None:
            getattr(made, field.name).CopyFrom(draw(values(field, depth)))
        else:
            setattr(made, field.name, draw(values(field, depth)))
    return made


def with_a_nul(of: descriptor.Descriptor, path: str = "") -> Iterator[tuple[str, Message]]:
    """Messages with a NUL in one of their texts, each in another one, and where that is."""
    new = message_factory.GetMessageClass(of)
    for field in of.fields:
        name, inner, made = f"{path}{field.name}", field.message_type, new()
        if inner is None:
            if field.type != FieldDescriptor.TYPE_STRING:
                continue
            if field.is_repeated:
                getattr(made, field.name).append("a\0")
                yield f"{name}[0]", made
            else:
                setattr(made, field.name, "a\0")
                yield name, made
        elif inner.GetOptions().map_entry:
            if inner.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                getattr(made, field.name)["k"] = "\0"
                yield f"{name}['k']", made
        elif path.count(".") < DEEPEST:
            for below, part in with_a_nul(
                inner, f"{name}[0]." if field.is_repeated else f"{name}."
            ):
                made = new()
                if field.is_repeated:
                    getattr(made, field.name).add().CopyFrom(part)
                else:
                    getattr(made, field.name).CopyFrom(part)
                yield below, made


def requests_of(method: MethodDescriptor) -> st.SearchStrategy[bytes]:
    """What is sent: mostly messages of the right type, sometimes any bytes."""
    whole = messages(method.input_type).map(lambda made: made.SerializeToString())
    return st.one_of(
        whole,
        whole,
        whole,
        st.tuples(whole, st.binary(max_size=8)).map(lambda parts: parts[0][:-1] + parts[1]),
        st.binary(max_size=60),
    )


class Served:
    """A server that is sent requests of any content, and a loop to talk to it in."""

    def __init__(self, runner: asyncio.Runner, channel: grpc.aio.Channel) -> None:
        self.runner = runner
        self.channel = channel

    def check(self, method: MethodDescriptor, examples: int) -> None:
        """Sends so many requests, and looks at what comes of each."""
        sent = st.lists(requests_of(method), min_size=1, max_size=3)
        one = sent if method.client_streaming else requests_of(method).map(lambda raw: [raw])

        @settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(raw=one)
        def holds(raw: list[bytes]) -> None:
            self.runner.run(self.send(method, raw))

        holds()
        self.runner.run(self.is_alive())

    async def send(self, method: MethodDescriptor, raw: list[bytes]) -> None:
        before = await self.state()
        accepted, error = await self.call(method, raw)
        if error is None:
            return
        told = from_rpc_error(error)
        assert told.code not in OUR_FAULT, (told, raw)
        assert not any(leak in str(told) for leak in LEAKS), told
        if told.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            assert told.reason, f"{told!r} names no reason"
            if not accepted:
                assert await self.state() == before, f"refused, and yet: {raw}"

    async def call(
        self, method: MethodDescriptor, raw: list[bytes]
    ) -> tuple[bool, grpc.aio.AioRpcError | None]:
        """Whether anything was answered, and how the call failed."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind = (
            f"{'stream' if method.client_streaming else 'unary'}"
            f"_{'stream' if method.server_streaming else 'unary'}"
        )
        stub = getattr(self.channel, kind)(path)
        waits = method.name.startswith(("Watch", "Wait", "Cancel"))
        seconds = WAIT_SECONDS if waits else 10.0
        accepted = False
        try:
            if method.client_streaming:
                call = stub(timeout=seconds)
                await say(call, raw)
            else:
                call = stub(raw[0], timeout=seconds)
            if not method.server_streaming:
                await call
                return True, None
            while await call.read() is not grpc.aio.EOF:
                accepted = True
                if not method.client_streaming:
                    call.cancel()
                    break
        except grpc.aio.AioRpcError as error:
            return accepted, error
        return True, None

    async def state(self) -> object:
        """What a change would change."""
        raise NotImplementedError

    async def is_alive(self) -> None:
        """Makes sure that it still serves what there is."""
        raise NotImplementedError

    def check_nul(self, method: MethodDescriptor) -> None:
        """Sends a NUL in each text of a request; each is refused, and told by its name."""
        for path, made in with_a_nul(method.input_type):
            accepted, error = self.runner.run(self.call(method, [made.SerializeToString()]))
            assert error is not None, (path, accepted)
            told = from_rpc_error(error)
            assert told.code is grpc.StatusCode.INVALID_ARGUMENT, (path, told)
            assert [violation.field for violation in told.violations] == [path], told


class Plane(Served):
    """A control plane with a job that runs."""

    def __init__(self, runner: asyncio.Runner, running: RunningPlane) -> None:
        super().__init__(runner, running.channel)
        self.running = running
        self.agents: list[Any] = []

    async def state(self) -> object:
        """What a change would change."""

        def work(tx: Transaction) -> object:
            tokens = tx.tokens(active_at=None, beyond=None, limit=100_000)
            return tx.event_span(), tokens

        return await self.running.plane._store.read(work)

    async def is_alive(self) -> None:
        answer = await self.running.control.ListJobs(control_pb2.ListJobsRequest())
        assert answer.jobs


async def say(call: Any, raw: list[bytes]) -> None:
    # A stream that has ended tells why to whoever reads.
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for each in raw:
            await call.write(each)
        await call.done_writing()


@contextlib.contextmanager
def served_from(database: Path | str) -> Iterator[Plane]:
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def begin() -> Plane:
            # Its agent says nothing, and must not be lost on a machine that is slow.
            plane = running_plane(database, heartbeat_interval=3_600.0)
            served = Plane(runner, await stack.enter_async_context(plane))
            served.agents = [await served.running.agent("j")]
            await served.running.update("j")
            await served.running.control.BatchUpdateParameters(
                control_pb2.BatchUpdateParametersRequest(jobs=["jobs/j"], spec=request().spec)
            )
            return served

        served = runner.run(begin())
        try:
            yield served
        finally:
            runner.run(stack.aclose())
