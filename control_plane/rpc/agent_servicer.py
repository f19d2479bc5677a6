"""AgentService: one stream for each trainer agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from control_plane.domain.errors import Reason, Refusal
from control_plane.rpc import convert_session as convert
from grpc_runtime.auth import note_request
from grpc_runtime.errors import StatusError
from grpc_runtime.failpoints import reached
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.agent.v1 import session_pb2_grpc

if TYPE_CHECKING:
    import grpc

    from control_plane.services.agent_session import AgentSession
    from control_plane.services.sessions import SessionService

    Context = grpc.aio.ServicerContext[pb.SessionRequest, pb.SessionResponse]

# Why a single message can be refused without ending its stream.
_PER_MESSAGE = frozenset(
    {Reason.INVALID_ARGUMENT, Reason.PROTOCOL_VIOLATION, Reason.REQUEST_ID_REUSED}
)


class AgentServicer(session_pb2_grpc.AgentServiceServicer):
    """Reads a stream into its session and writes the session's outbox to it."""

    def __init__(self, sessions: SessionService) -> None:
        """Takes the use case."""
        self._sessions = sessions
        self._ending: set[asyncio.Task[None]] = set()

    async def Session(  # type: ignore[override]  # the stub knows generators only, not writers
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Context
    ) -> None:
        """Serves one stream until either side ends it."""
        first = await anext(aiter(request_iterator), None)
        if first is None:
            return
        hello = first.hello
        # Kept for as long as the stream lasts, unlike all that the agent offers.
        told = pb.Hello(job_id=hello.job_id, instance_id=hello.instance_id, host=hello.host)
        note_request(pb.SessionRequest(hello=told))
        session = await self._sessions.open(first.sequence, convert.hello_of(first))
        del first, hello
        tasks: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(_read(session, request_iterator)),
            asyncio.ensure_future(_write(session, context)),
        ]
        session.deliveries.begin()
        try:
            await asyncio.wait([*tasks, session.ended], return_when=asyncio.FIRST_COMPLETED)
            if session.ended.done():
                raise session.ended.result()
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            # To the end, though gRPC may cancel this just now: it learns by two ways that a stream
            # has broken.
            ending = asyncio.create_task(self._end(session, tasks))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            await asyncio.shield(ending)

    async def _end(self, session: AgentSession, tasks: list[asyncio.Future[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sessions.close(session)


async def _read(session: AgentSession, requests: AsyncIterator[pb.SessionRequest]) -> None:
    async for request in requests:
        number = request.sequence
        session.begin(number)
        try:
            # By far the most of all messages: nothing is waited for that need not be.
            if request.HasField("heartbeat"):
                heartbeat = convert.heartbeat_of(request.heartbeat)
                if not session.take_at_once(number, heartbeat):
                    await session.heartbeat(number, heartbeat)
            elif not await _take(session, number, request):
                return
        except (Refusal, StatusError) as refusal:
            if refusal.reason not in _PER_MESSAGE:
                raise
            session.bad_message(number, Reason(refusal.reason), refusal.message)
        if session.outbox.is_full:
            await session.outbox.room()


async def _take(session: AgentSession, number: int, request: pb.SessionRequest) -> bool:
    """Takes one message that is no heartbeat; returns whether more may come."""
    match request.WhichOneof("message"):
        case "outcome":
            reached("session.outcome")
            await session.outcome(number, convert.outcome_of(request.outcome, "outcome"))
        case "reply":
            reply = request.reply
            if reply.HasField("settled"):
                reached("session.outcome")
            await session.reply(number, reply.nonce, reply.revision, convert.reply_of(reply))
        case "event":
            await session.event(number, convert.event_of(request.event))
        case "state":
            await session.full_state(number, convert.state_of(request.state, "state"))
        case "local_update":
            local = convert.local_update_of(request.local_update, "local_update")
            await session.local_update(number, local)
        case "goodbye":
            session.done(number)
            return False
        case other:
            raise Refusal(
                Reason.PROTOCOL_VIOLATION,
                f"got {other or 'a message of an unknown kind'} in the midst of a session",
            )
    return True


async def _write(session: AgentSession, context: Context) -> None:
    while True:
        response = convert.response(await session.outbox.get())
        kind = response.WhichOneof("message")
        if kind == "delivery":
            reached("session.deliver")
        elif kind == "acknowledgement":
            reached("session.acknowledge")
        await context.write(response)
        if kind == "delivery":
            reached("session.delivered")
        elif kind == "acknowledgement":
            reached("session.acknowledged")
