"""Light jobs that record what they do, and what passes between their agents and the servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from tests.faults.checkpoints import (
    OFFER,
    SAVE_STEPS,
    SAVES,
    Checkpoints,
    Kept,
    began,
    settled_already,
)
from tests.faults.history import Recorder
from tests.faults.records import (
    Acknowledged,
    Delivered,
    Hello,
    InForce,
    Number,
    Saved,
    Told,
    TrainerEnded,
    TrainerSettled,
    Welcomed,
)
from tests.faults.told import outcome_of
from trainer_agent.agent.connector import own_channel
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.simulate import LightJob, LightJobSpec
from trainer_agent.simulate.job import new_agent_id
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.roll_back import HandOver


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
        yield Eavesdropper(channel, to, recorder, impostor=impostor)


class RecordedJob(LightJob):
    """A light job that records what becomes of updates, and what is in force.

    Args:
        spec: What it is like.
        recorder: Takes what is seen.
        checkpoints: Where it saves and goes back to; None: it has no checkpoints.
        resume: What it goes on from; None: it begins anew.
        left: What the process has left that went back there; None: none did.

    Attributes:
        ear: What listens to its newest session; None: there was none yet.
        killed: It was ended from outside.
        went_back: It has ended, to go back to a checkpoint.
    """

    def __init__(
        self,
        spec: LightJobSpec,
        recorder: Recorder,
        checkpoints: Checkpoints | None = None,
        resume: Path | None = None,
        left: HandOver | None = None,
    ) -> None:
        self._recorder = recorder
        self._seen: dict[str, Number] = {}
        self._checkpoints = checkpoints
        self._kept = None if checkpoints is None or resume is None else checkpoints.read(resume)
        self._resume, self._left = resume, left
        self._saved = 0
        self.went_back = False
        self.ear: Eavesdropper | None = None
        self._opened = asyncio.Event()
        self.killed = False
        super().__init__(
            spec if self._kept is None else replace(spec, values=self._kept.values),
            AgentIdentity(new_agent_id(), "", "localhost"),
            open_channel=self._open,
            changed=self._look,
            actions=None if checkpoints is None else Actions(OFFER, checkpoints.find),
            step=0 if self._kept is None else self._kept.step,
            go_on=self._go_on,
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
        first = {name: cast("Number", value) for name, value in self.spec.values.items()}
        self._recorder.add(
            began(self.job_id, self.instance_id, first, self._kept, self._resume, self._left)
        )
        self._seen = self._numbers()
        for outcome in settled_already(self._controller, self._left):
            self.settled(outcome)
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

    # ----------------------------------------------------------------------------- checkpoints

    def _go_on(self, controller: ParameterController) -> None:
        if self._kept is not None:
            controller.load_state_dict(self._kept.controller, checkpoint=str(self._resume))
        if self._left is not None:
            controller.going_back.go_on(self._left, self._boundary())

    def _reach(self, step: int) -> None:
        super()._reach(step)
        self._look()
        if self._checkpoints is not None and self._stepping and step >= self._saved + SAVE_STEPS:
            self._save(self._checkpoints)

    def _carry_out(self) -> None:
        if self._checkpoints is None or not self._goes_back(self._checkpoints):
            super()._carry_out()

    def _goes_back(self, checkpoints: Checkpoints) -> bool:
        left = self._session.roll_back
        if left is None:
            return False
        failure: OSError | None = None
        try:
            checkpoints.leave(left)
        except OSError as error:
            failure = error
        if self._session.leaves(failure):
            self._stop_stepping()
            self.went_back = True
        return self.went_back

    def _result(self, kind: ActionKind) -> update_pb2.ActionResult:
        result = super()._result(kind)
        if self._checkpoints is not None and kind in SAVES:
            result.checkpoint = self._save(self._checkpoints)
        return result

    def _save(self, checkpoints: Checkpoints) -> str:
        self._saved = self._step
        kept = Kept(self._step, self._numbers(), self._controller.state_dict(), self.instance_id)
        path = str(checkpoints.save(kept))
        self._recorder.add(Saved(job=self.job_id, instance=self.instance_id, checkpoint=path))
        return path

    # --------------------------------------------------------------------------------- what is seen

    def _look(self) -> None:
        now = self._numbers()
        if now != self._seen:
            self._seen = now
            self._recorder.add(
                InForce(job=self.job_id, instance=self.instance_id, values=now, step=self._step)
            )

    def _numbers(self) -> dict[str, Number]:
        return {name: cast("Number", value) for name, value in self.values.items()}

    @contextlib.asynccontextmanager
    async def _open(self, to: str) -> AsyncIterator[grpc.aio.Channel]:
        async with eavesdropping(to, self._recorder) as ear:
            self.ear = ear
            self._opened.set()
            yield cast("grpc.aio.Channel", ear)
