"""One that says what a job's agent has said before, and lies once the agent is back.

That is what a process does that was held up on its way, while another took its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import grpc

from midcourse.agent.v1 import session_pb2, session_pb2_grpc
from tests.faults.callers import Servers
from tests.faults.proxy import Proxy
from tests.faults.records import Answered, Asked, Change
from tests.faults.trainers import RecordedJob, eavesdropping

LIE = "TOLD_BY_AN_IMPOSTOR"
_SECONDS = 15.0
_STANDS_STILL = 3.0
_STEPS_AHEAD = 200


async def pretend(
    job: RecordedJob,
    hello: session_pb2.Hello,
    to: str,
    servers: Servers,
    standing_still: AbstractAsyncContextManager[None] | None = None,
    *,
    seconds: float = _SECONDS,
) -> bool:
    """Takes a job's session away, until its agent takes it back, and tells lies then.

    Args:
        job: The job.
        hello: What its agent has said.
        to: Address of the server to say it to.
        servers: Where an update can be asked for that the lie is about.
        standing_still: Has that server stand still while the block runs, until the lie is on its
            way; None: it does not.
        seconds: How long it may take.

    Returns:
        Whether it has lied. It may come too late, not be served, or be cut off.
    """
    with contextlib.suppress(TimeoutError, asyncio.InvalidStateError, grpc.aio.AioRpcError):
        async with asyncio.timeout(seconds):
            return await _pretend(
                job, hello, to, servers, standing_still or contextlib.nullcontext()
            )
    return False


async def _pretend(
    job: RecordedJob,
    hello: session_pb2.Hello,
    to: str,
    servers: Servers,
    standing_still: AbstractAsyncContextManager[None],
) -> bool:
    request_id = f"impostor-{servers.recorder.number()}"
    asked = Asked(
        caller="impostor",
        call=0,
        to="",
        method="update",
        jobs=(job.job_id,),
        request_id=request_id,
        changes=(Change("weight_decay", "multiply", 1.1),),
        at_step=job.step + _STEPS_AHEAD,
    )
    answer = await servers.send(asked, random.Random(request_id))
    if not isinstance(answer, Answered):
        return False
    lie = session_pb2.UpdateOutcome(revision=answer.revisions[job.job_id])
    lie.rejected.reason = LIE
    async with (
        Proxy(int(to.rpartition(":")[2])).running() as proxy,
        eavesdropping(proxy.address, servers.recorder, impostor=True) as ear,
    ):
        stub = session_pb2_grpc.AgentServiceStub(cast("grpc.aio.Channel", ear))
        call: Any = stub.Session()
        await call.write(session_pb2.SessionRequest(sequence=1, hello=hello))
        await call.read()
        if ear.epoch is None:
            return False
        # It is not to hear that its time is over before it has said the next thing.
        async with proxy.frozen():
            async with standing_still:
                late = await _within(job.welcomed_after(ear.epoch), _STANDS_STILL)
                if late:
                    await call.write(session_pb2.SessionRequest(sequence=2, outcome=lie))
            if not late:  # perhaps the agent has knocked at the server that stood still
                await job.welcomed_after(ear.epoch)
                await call.write(session_pb2.SessionRequest(sequence=2, outcome=lie))
        with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        return True


async def _within(waiting: Coroutine[Any, Any, None], seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(waiting, seconds)
        return True
    return False
