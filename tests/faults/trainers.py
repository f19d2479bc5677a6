"""Light jobs that record what they do, and what passes between their agents and the servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, cast

import grpc

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import parameter_pb2, update_pb2
from tests.faults.history import Recorder
from tests.faults.records import (
    Acknowledged,
    Delivered,
    Hello,
    InForce,
    Move,
    Number,
    Outcome,
    SessionEnded,
    Told,
    TrainerBegan,
    TrainerEnded,
    TrainerSettled,
    Welcomed,
)
from trainer_agent.agent.connector import own_channel
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.simulate import LightJob, LightJobSpec
from trainer_agent.simulate.job import new_agent_id


def outcome_of(said: session_pb2.UpdateOutcome) -> Outcome:
    """How an update ended, as a training process says."""
    match said.WhichOneof("result"):
        case "applied":
            applied = said.applied
            return Outcome(
                "applied", applied.instance_id, applied.step, _moves(applied.transitions)
            )
        case "rejected":
            return Outcome("rejected", reason=said.rejected.reason)
        case "expired":
            cause = update_pb2.ExpiryCause.Name(said.expired.cause)
            return Outcome("expired", reason=cause.removeprefix("EXPIRY_CAUSE_").lower())
        case "withdrawn":
            return Outcome("withdrawn")
        case other:
            raise ValueError(f"an outcome is none of those there are: {other}")


def _moves(transitions: Iterable[update_pb2.ParameterTransition]) -> tuple[Move, ...]:
    return tuple(
        Move(
            each.parameter,
            number_of(each.old_value) if each.HasField("old_value") else None,
            number_of(each.new_value) if each.HasField("new_value") else None,
        )
        for each in transitions
    )


def number_of(value: parameter_pb2.Value) -> Number:
    """A value of a light job: all of them are numbers."""
    return value.integer if value.WhichOneof("kind") == "integer" else value.number


class Eavesdropper:
    """A channel to one server, for one session, of which every message is recorded."""

    def __init__(
        self, channel: grpc.aio.Channel, to: str, recorder: Recorder, *, impostor: bool = False
    ) -> None:
        self._channel = channel
        self._to = to
        self._recorder = recorder
        self._impostor = impostor
        self.session = recorder.number()
        self.hello: session_pb2.Hello | None = None
        self.welcomed = asyncio.Event()
        self.epoch: int | None = None

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **options: Any,
    ) -> Any:
        """What a stub asks of a channel."""

        def serialize(request: session_pb2.SessionRequest) -> bytes:
            self._said(request)
            return request_serializer(request)

        def deserialize(data: bytes) -> session_pb2.SessionResponse:
            response: session_pb2.SessionResponse = response_deserializer(data)
            self._heard(response)
            return response

        return self._channel.stream_stream(
            method,
            request_serializer=serialize,
            response_deserializer=deserialize,
            **options,
        )

    def ended(self) -> None:
        """The session is over."""
        if self.hello is not None:
            self._recorder.add(SessionEnded(session=self.session))

    def _said(self, request: session_pb2.SessionRequest) -> None:
        outcomes: list[session_pb2.UpdateOutcome] = []
        match request.WhichOneof("message"):
            case "hello":
                self.hello = request.hello
                self._recorder.add(
                    Hello(
                        session=self.session,
                        to=self._to,
                        job=request.hello.job_id,
                        instance=request.hello.instance_id,
                        impostor=self._impostor,
                    )
                )
                outcomes += request.hello.state.outcomes
            case "state":
                outcomes += request.state.outcomes
            case "outcome":
                outcomes.append(request.outcome)
            case "reply" if request.reply.HasField("settled"):
                outcomes.append(request.reply.settled)
            case _:
                pass
        for each in outcomes:
            self._recorder.add(
                Told(
                    session=self.session,
                    number=request.sequence,
                    revision=each.revision,
                    outcome=outcome_of(each),
                )
            )

    def _heard(self, response: session_pb2.SessionResponse) -> None:
        match response.WhichOneof("message"):
            case "welcome":
                self.epoch = response.welcome.epoch
                self._recorder.add(Welcomed(session=self.session, epoch=self.epoch))
                self.welcomed.set()
            case "delivery":
                revision = response.delivery.update.revision
                self._recorder.add(Delivered(session=self.session, revision=revision))
            case "acknowledgement":
                number = response.acknowledgement.sequence
                self._recorder.add(Acknowledged(session=self.session, number=number))
            case _:
                pass


@contextlib.asynccontextmanager
async def eavesdropping(
    to: str, recorder: Recorder, *, impostor: bool = False
) -> AsyncIterator[Eavesdropper]:
    """A channel of its own to one server."""
    async with own_channel(to) as channel:
        ear = Eavesdropper(channel, to, recorder, impostor=impostor)
        try:
            yield ear
        finally:
            ear.ended()


class RecordedJob(LightJob):
    """A light job that records what becomes of updates, and what is in force.

    Attributes:
        ear: What listens to its newest session; None: there was none yet.
        killed: It was ended from outside.
    """

    def __init__(self, spec: LightJobSpec, recorder: Recorder) -> None:
        self._recorder = recorder
        self._seen: dict[str, Number] = {}
        self.ear: Eavesdropper | None = None
        self._opened = asyncio.Event()
        self.killed = False
        super().__init__(
            spec,
            AgentIdentity(new_agent_id(), "", "localhost"),
            open_channel=self._open,
            changed=self._look,
        )

    @property
    def instance_id(self) -> str:
        """The training process."""
        assert self._link is not None
        return self._link.relay.ledger.instance_id

    async def welcomed_after(self, epoch: int) -> None:
        """Waits until it has a session with a higher epoch."""
        while self.ear is None or (self.ear.epoch or 0) <= epoch:
            self._opened.clear()
            ear = self.ear
            waits = [asyncio.create_task(self._opened.wait())]
            if ear is not None and ear.epoch is None:
                waits.append(asyncio.create_task(ear.welcomed.wait()))
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()

    @property
    def rests(self) -> bool:
        """Whether no update is open here, and how all of them ended is on disk elsewhere."""
        return not self._controller.has_unsettled and not self._controller.unacknowledged()

    def start(self) -> None:
        """Begins to train."""
        self._seen = self._numbers()
        self._recorder.add(
            TrainerBegan(job=self.job_id, instance=self.instance_id, values=self._seen)
        )
        super().start()

    async def kill(self) -> None:
        """Ends at once, and tells nobody."""
        if self.killed:
            return
        self.killed = True
        await super().kill()
        self._recorder.add(
            TrainerEnded(job=self.job_id, instance=self.instance_id, values=self._numbers())
        )

    def settled(self, outcome: session_pb2.UpdateOutcome) -> None:
        """The trainer has said how an update ended."""
        super().settled(outcome)
        self._recorder.add(
            TrainerSettled(
                job=self.job_id,
                instance=self.instance_id,
                revision=outcome.revision,
                outcome=outcome_of(outcome),
            )
        )

    def _look(self) -> None:
        now = self._numbers()
        if now != self._seen:
            self._seen = now
            self._recorder.add(InForce(job=self.job_id, instance=self.instance_id, values=now))

    def _numbers(self) -> dict[str, Number]:
        return {name: cast("Number", value) for name, value in self.values.items()}

    @contextlib.asynccontextmanager
    async def _open(self, to: str) -> AsyncIterator[grpc.aio.Channel]:
        async with eavesdropping(to, self._recorder) as ear:
            self.ear = ear
            self._opened.set()
            yield cast("grpc.aio.Channel", ear)
