"""What passes between one training process and the control plane, over whatever the trainer's end.

The agent process puts a socket at the trainer's end, and what trains in the agent's own process
(see :mod:`trainer_agent.simulate`) nothing at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from grpc_runtime.failpoints import reached
from grpc_runtime.logging import get_logger
from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.agent.connector import Connector
from trainer_agent.agent.deliveries import Deliveries
from trainer_agent.agent.ledger import AgentIdentity, Ledger
from trainer_agent.agent.refusals import Course, Refusal
from trainer_agent.agent.session import Session
from trainer_agent.link.steps import reports

if TYPE_CHECKING:
    from grpc_runtime.client.credentials import Credentials
    from trainer_agent.agent.background import Background
    from trainer_agent.agent.connector import OpenChannel

_log = get_logger(__name__)

_GOODBYE_TIMEOUT: Final = 3.0
_LOOK_AT_SESSION: Final = 1.0


class TrainerEnd(Protocol):
    """Where a trainer can be reached."""

    @property
    def is_open(self) -> bool:
        """Tells whether messages can be sent."""

    def attend(self) -> None:
        """Takes at once, for a while, what the trainer says."""

    def send(self, message: link_pb2.AgentMessage) -> None:
        """Gives the trainer a message."""


class Relay:
    """Takes what a trainer says, tells the control plane, and hands the trainer its updates.

    Attributes:
        ledger: What is known of the trainer, and owed to the control plane.
        trainer: The trainer; None: it is not connected.
        detached: Why the trainer is not steered; None: it is, or may be soon.
        superseded: Another process has the job, for good.
        no_way_back: The last session has ended.
        sessions: How many sessions the control plane has welcomed.
    """

    def __init__(
        self,
        hello: link_pb2.TrainerHello,
        *,
        control_plane: str,
        identity: AgentIdentity,
        background: Background,
        open_channel: OpenChannel | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """Prepares to serve the training process that said hello.

        Args:
            hello: What it said.
            control_plane: Address of the control plane.
            identity: Who serves it.
            background: Is told of every change.
            open_channel: Opens the channel of each session; None: one of its own.
            credentials: What to connect with; None: what the environment says.
        """
        self.ledger = Ledger(hello, time.monotonic())
        self.trainer: TrainerEnd | None = None
        self.detached: link_pb2.Detached | None = None
        self.superseded = False
        self.no_way_back = False
        self.sessions = 0
        self._welcomed: Session | None = None
        self._job_id = hello.job_id
        self._deliveries = Deliveries()
        self._identity = identity
        self._background = background
        self._connector = Connector(
            control_plane,
            new_session=self._new_session,
            events=self,
            open_channel=open_channel,
            credentials=credentials,
        )

    @property
    def session(self) -> Session | None:
        """The session whose stream is open, or being opened; None: there is none."""
        return self._connector.session

    @property
    def connected(self) -> bool:
        """Whether the control plane serves this agent right now."""
        return self._welcomed is not None and self.session is self._welcomed

    @property
    def address(self) -> str:
        """Address of the control plane in use; of several, the one that is tried next."""
        return self._connector.target

    async def converse(self) -> None:
        """Talks to the control plane until the end, or until there is no way back to it."""
        await self._connector.run()
        self.no_way_back = True
        self._background.changed()

    async def part(self, reason: str, timeout: float) -> None:
        """Delivers what is left, within bounds, and says goodbye.

        Args:
            reason: Why it ends, in words.
            timeout: Longest time for what is left, in seconds.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if self.session is not None:
                self.session.drain()
            # Looked at now and then, as there may be another session by now, to be drained too.
            if await self._background.until(
                lambda: self.ledger.owes_nothing or self.no_way_back, min(left, _LOOK_AT_SESSION)
            ):
                break
        session = self.session
        if session is not None:
            session.say_goodbye(reason)
            await self._background.until(lambda: self.session is not session, _GOODBYE_TIMEOUT)

    def wake(self) -> None:
        """Tells the control plane at once what is urgent."""
        if self.session is not None:
            self.session.wake()

    # ------------------------------------------------------------------------- the trainer's end

    def greet(
        self,
        trainer: TrainerEnd,
        welcome: link_pb2.AgentWelcome,
        outcomes: Sequence[session_pb2.UpdateOutcome],
        stored: Sequence[int],
    ) -> None:
        """Takes up with a trainer that has said hello.

        Args:
            trainer: Where it can be reached.
            welcome: The answer to its hello.
            outcomes: What it said of how updates ended.
            stored: Those of them that the control plane has already.
        """
        self.trainer = trainer
        self._welcome = welcome
        self._tell_welcome()
        self._deliveries.begin_connection()
        self._settled(outcomes, stored)
        self.wake()

    def take(self, message: link_pb2.TrainerMessage) -> bool:
        """Takes what the trainer says after its hello, and before its goodbye.

        Returns:
            Whether it is known what to do with it.
        """
        ledger = self.ledger
        match message.WhichOneof("message"):
            case "step":
                ledger.step(message.step, _when(message.step))
            case "steps":
                for report in reports(message.steps):
                    ledger.step(report, _when(report))
            case "outcome":
                _log.info("outcome", **_told(message.outcome))
                reached("agent.outcome")
                stored = ledger.outcome(message.outcome)
                reached("agent.kept")
                self._settled([message.outcome], stored)
            case "state":
                self._settled(message.state.outcomes, ledger.state(message.state, time.monotonic()))
            case "local_update":
                _log.info("local_update", request_id=message.local_update.request_id)
                ledger.local_update(message.local_update)
            case "fault":
                _log.warning("trainer_fault", component=message.fault.component)
                ledger.fault(message.fault, time.time_ns())
            case "finished":
                _log.info("training_finished", step=message.finished.step)
                ledger.finished(message.finished, time.time_ns())
            case _:
                return False
        if ledger.urgent:
            self.wake()
        return True

    def _settled(
        self, outcomes: Sequence[session_pb2.UpdateOutcome], stored: Sequence[int]
    ) -> None:
        """Notes how updates ended; ``stored`` are those that the control plane has already."""
        for outcome in outcomes:
            nonces = self._deliveries.settled(outcome.revision)
            self._reply(
                session_pb2.DeliveryReply(nonce=nonce, revision=outcome.revision, settled=outcome)
                for nonce in nonces
            )
        self.outcomes_stored(stored)
        self.updates_arrived()

    def _tell_welcome(self) -> None:
        """Tells the trainer that it is served, or why it is not."""
        trainer = self.trainer  # which sending may end
        assert trainer is not None
        trainer.send(link_pb2.AgentMessage(welcome=self._welcome))
        if self.detached is not None:
            trainer.send(link_pb2.AgentMessage(detached=self.detached))

    # -------------------------------------------------------------------- the control plane's end

    def _new_session(self) -> Session:
        return Session(
            ledger=self.ledger,
            deliveries=self._deliveries,
            identity=self._identity,
            events=self,
        )

    def welcomed(self, welcome: session_pb2.Welcome) -> None:
        """The control plane serves this agent."""
        _log.info("session_began", job=self._job_id, epoch=welcome.epoch)
        self.sessions += 1
        self._welcomed = self.session
        if self.detached is not None:
            self.detached = None
            if self.trainer is not None:
                self._tell_welcome()
        self._background.changed()

    def outcomes_stored(self, revisions: Sequence[int]) -> None:
        """The control plane has these outcomes on disk."""
        if revisions and self.trainer is not None:
            stored = link_pb2.OutcomesStored(revisions=revisions)
            self.trainer.send(link_pb2.AgentMessage(stored=stored))

    def acknowledged(self) -> None:
        """The control plane has more on disk than before."""
        self._background.changed()

    def updates_arrived(self) -> None:
        """Passes on what the trainer has not been given yet."""
        trainer = self.trainer  # which sending may end
        if trainer is None or not trainer.is_open:
            return
        messages, replies = self._deliveries.pass_on()
        if messages:
            trainer.attend()  # an outcome is to be passed on at once
        for message in messages:
            reached("agent.pass_on")
            trainer.send(message)
            reached("agent.passed_on")
        self._reply(replies)

    def refused(self, why: Refusal) -> None:
        """The control plane does not serve this agent, now or for good."""
        self.superseded = why.course is Course.SUPERSEDED
        self.detached = link_pb2.Detached(reason=why.reason, message=why.message)
        if self.trainer is not None:
            self.trainer.send(link_pb2.AgentMessage(detached=self.detached))

    def trainer_connected(self) -> bool:
        """Tells whether the trainer talks to this agent."""
        return self.trainer is not None

    def _reply(self, replies: Iterable[session_pb2.DeliveryReply]) -> None:
        if self.session is not None:
            self.session.reply(list(replies))


def _when(report: link_pb2.StepReport) -> float:
    """Returns when a step was done, by the monotonic clock: reports may have waited on the way."""
    waited = (time.time_ns() - report.time_nanos) / 1e9 if report.time_nanos else 0.0
    return time.monotonic() - max(0.0, waited)


def _told(outcome: session_pb2.UpdateOutcome) -> dict[str, object]:
    """Returns what a log says of an outcome."""
    result = outcome.WhichOneof("result")
    told: dict[str, object] = {"revision": outcome.revision, "result": result}
    if result == "applied":
        told["step"] = outcome.applied.step
    elif result == "rejected":
        told["reason"] = outcome.rejected.reason
    return told
