"""The life of an agent: from its trainer's hello to its own goodbye."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from grpc_runtime.logging import get_logger
from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.agent.admission import Served, refusal
from trainer_agent.agent.background import Background
from trainer_agent.agent.connector import Connector
from trainer_agent.agent.deliveries import Deliveries
from trainer_agent.agent.exit_status import describe_exit
from trainer_agent.agent.ledger import AgentIdentity, Ledger
from trainer_agent.agent.refusals import Course, Refusal
from trainer_agent.agent.session import Session
from trainer_agent.agent.trainer_watch import TrainerWatch
from trainer_agent.link.protocol import PROTOCOL_VERSION
from trainer_agent.link.server import LinkServer, TrainerConnection
from trainer_agent.link.steps import reports

if TYPE_CHECKING:
    from trainer_agent.link.address import LinkAddress

_log = get_logger(__name__)

# A process that has said goodbye usually ends at once; then its exit code can be reported.
_EXIT_GRACE: Final = 10.0
# What a dead process had sent is read long before this, unless a child of it keeps the socket.
_LAST_WORDS_TIMEOUT: Final = 0.5
_STOP_TIMEOUT: Final = 5.0
_GOODBYE_TIMEOUT: Final = 3.0
_LOOK_AT_SESSION: Final = 1.0
_LONGEST_LOOK_AT_PACE: Final = 1.0
_SHORTEST_LOOK_AT_PACE: Final = 0.05


class _End(Enum):
    """Why an agent ends."""

    TRAINER_GONE = auto()
    STOPPED = auto()
    REPLACED = auto()
    NEVER_BEGAN = auto()


class JobAgent:
    """Serves one training process: the first that says hello, until it is gone.

    A restarted trainer is another process and gets an agent of its own: this one stops listening
    as soon as its trainer is gone, and only delivers what is left.
    """

    def __init__(
        self,
        *,
        job_id: str,
        control_plane: str,
        address: LinkAddress,
        identity: AgentIdentity,
        linger: float,
        trainer_fd: int | None = None,
    ) -> None:
        """Prepares an agent; see :class:`~trainer_agent.agent.options.AgentOptions`."""
        self._job_id = job_id
        self._control_plane = control_plane
        self._identity = identity
        self._linger = linger
        self._trainer_fd = trainer_fd
        self._server = LinkServer(address, self)

        self._ledger: Ledger | None = None
        self._deliveries = Deliveries()
        self._connector: Connector | None = None
        self._trainer: TrainerConnection | None = None
        self._adopted: TrainerConnection | None = None
        self._watch: TrainerWatch | None = None
        self._goodbye: link_pb2.TrainerGoodbye | None = None
        self._detached: link_pb2.Detached | None = None
        self._detached_for_good = False
        self._background = Background()
        self._ending: _End | None = None
        self._no_way_back = False
        self._stop_reason = ""

    async def run(self) -> int:
        """Serves until the end and returns the exit status.

        Raises:
            AlreadyServedError: Another agent serves the job.
            LinkAddressError: The socket directory can not be used.
            OSError: The socket can not be made.
        """
        self._server.start()
        _log.info("listening", job=self._job_id, pid=os.getpid())
        try:
            if self._trainer_fd is not None:
                self._adopted = self._server.adopt(self._trainer_fd)
            await self._background.until(lambda: self._ending is not None)
            self._server.stop_listening()
            return await self._finish()
        finally:
            self._server.stop_listening()
            await self._background.stop()
            if self._watch is not None:
                self._watch.close()
            if self._trainer is not None:
                self._trainer.close()

    def stop(self, reason: str) -> None:
        """Ends soon, with what can be delivered delivered; a second call changes nothing."""
        self._stop_reason = self._stop_reason or reason
        self._end(_End.STOPPED)

    # ---------------------------------------------------------------------------------- ending

    async def _finish(self) -> int:
        """Delivers what is left, within bounds, and says goodbye."""
        ledger, connector = self._ledger, self._connector
        if ledger is None or connector is None:
            _log.info("ended", job=self._job_id, reason=self._reason())
            return 0
        stopped = self._ending is _End.STOPPED
        timeout = _STOP_TIMEOUT if stopped else self._linger
        if self._ending is _End.REPLACED:
            timeout = 0.0
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if connector.session is not None:
                connector.session.drain()
            # Looked at now and then, as there may be another session by now, to be drained too.
            if await self._background.until(
                lambda: ledger.owes_nothing or self._no_way_back, min(left, _LOOK_AT_SESSION)
            ):
                break
        session = connector.session
        if session is not None and self._ending is not _End.REPLACED:
            session.say_goodbye(self._reason())
            await self._background.until(lambda: connector.session is not session, _GOODBYE_TIMEOUT)
        if ledger.owes_nothing:
            _log.info("ended", job=self._job_id, reason=self._reason())
            return 0
        _log.warning("ended_with_losses", job=self._job_id, reason=self._reason(), **ledger.owed())
        return 1

    def _reason(self) -> str:
        match self._ending:
            case _End.STOPPED:
                return f"the agent was told to stop ({self._stop_reason})"
            case _End.REPLACED:
                return "another agent serves the job"
            case _End.NEVER_BEGAN:
                return "the trainer that started the agent never said hello"
            case _:
                return "the trainer is gone"

    def _end(self, ending: _End) -> None:
        if self._ending is None:
            self._ending = ending
            self._server.stop_listening()
        self._background.changed()

    # ------------------------------------------------------------------------- the trainer's end

    def trainer_said(self, connection: TrainerConnection, message: link_pb2.TrainerMessage) -> None:
        """Takes a message of a trainer (:class:`~trainer_agent.link.server.LinkHandler`)."""
        kind = message.WhichOneof("message")
        if kind == "hello":
            self._hello(connection, message.hello)
            return
        ledger = self._ledger
        if ledger is None or connection is not self._trainer:
            _log.warning("message_before_hello", kind=kind)
            connection.close()
            return
        match kind:
            case "step":
                ledger.step(message.step, _when(message.step))
            case "steps":
                for report in reports(message.steps):
                    ledger.step(report, _when(report))
            case "outcome":
                _log.info("outcome", **_told(message.outcome))
                self._settled([message.outcome], ledger.outcome(message.outcome))
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
            case "goodbye":
                self._said_goodbye(message.goodbye)
            case _:
                _log.warning("unexpected_message")  # perhaps of a newer trainer
        if ledger.urgent:
            self._wake()

    def trainer_lost(self, connection: TrainerConnection) -> None:
        """Notes that a connection has ended (:class:`~trainer_agent.link.server.LinkHandler`)."""
        if connection is self._adopted and self._ledger is None:
            self._end(_End.NEVER_BEGAN)
        if connection is not self._trainer:
            return
        self._trainer = None
        self._background.changed()
        if self._detached is not None and self._detached_for_good:
            self._end(_End.REPLACED)
        if self._goodbye is None and self._ending is None:
            _log.info("trainer_disconnected", job=self._job_id)
            if self._watch is None or not self._watch.possible:
                self._background.start(self._give_up_on_trainer())

    def _hello(self, connection: TrainerConnection, hello: link_pb2.TrainerHello) -> None:
        served = self._served(connection, hello.instance_id)
        instance_id = self._ledger.instance_id if self._ledger is not None else ""
        detached = refusal(
            hello,
            job_id=self._job_id,
            control_plane=self._control_plane,
            served=served,
            instance_id=instance_id,
        )
        if detached is not None:
            _log.warning("trainer_refused", reason=detached.reason, message=detached.message)
            connection.send(link_pb2.AgentMessage(detached=detached))
        if detached is not None or served is Served.ENDING:
            connection.close()  # whoever is not told why will be served by another agent
            return
        now = time.monotonic()
        previous, self._trainer = self._trainer, connection
        if previous is not None and previous is not connection:
            previous.close()
        _log.info(
            "trainer_connected",
            job=self._job_id,
            instance=hello.instance_id,
            pid=hello.pid,
            step=hello.state.progress.step,
        )
        if self._ledger is None:
            self._ledger = Ledger(hello, now)
            self._begin(connection, hello, self._ledger)
            stored: list[int] = []
        else:
            stored = self._ledger.trainer_returned(hello, now)
        self._greet()
        self._deliveries.begin_connection()
        self._settled(hello.state.outcomes, stored)
        self._wake()

    def _served(self, connection: TrainerConnection, instance_id: str) -> Served:
        if self._ledger is None:
            return Served.NOBODY_YET
        assert self._watch is not None
        if self._goodbye is not None or self._ending is not None or not self._watch.alive():
            return Served.ENDING
        if instance_id == self._ledger.instance_id:
            return Served.ALIVE
        if connection.peer.pid is not None and connection.peer.pid == self._watch.pid:
            # The same process trains anew, as in a notebook after an interrupt.
            self._end(_End.TRAINER_GONE)
            return Served.ENDING
        seen = self._watch.possible or self._trainer is not None
        return Served.ALIVE if seen else Served.ENDING

    def _begin(
        self, connection: TrainerConnection, hello: link_pb2.TrainerHello, ledger: Ledger
    ) -> None:
        """Begins to serve the trainer: only now does the control plane hear of this agent."""
        self._watch = TrainerWatch(connection.take_pidfd(), connection.peer.pid)
        self._background.start(self._watch_trainer(self._watch))
        self._background.start(self._watch_pace(ledger))
        self._connector = Connector(
            hello.control_plane or self._control_plane,
            new_session=lambda: Session(
                ledger=ledger, deliveries=self._deliveries, identity=self._identity, events=self
            ),
            events=self,
        )
        self._background.start(self._converse(self._connector))

    async def _converse(self, connector: Connector) -> None:
        """Talks to the control plane until the end, or until there is no way back to it."""
        await connector.run()
        self._no_way_back = True
        self._background.changed()
        if self._ending is None and not self._detached_for_good:
            self._end(_End.REPLACED)

    def _greet(self) -> None:
        """Tells the trainer that it is served, or why it is not."""
        assert self._trainer is not None
        welcome = link_pb2.AgentWelcome(
            protocol_version=PROTOCOL_VERSION,
            agent_version=self._identity.version,
            pid=os.getpid(),
        )
        self._trainer.send(link_pb2.AgentMessage(welcome=welcome))
        if self._detached is not None:
            self._trainer.send(link_pb2.AgentMessage(detached=self._detached))

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

    def _said_goodbye(self, goodbye: link_pb2.TrainerGoodbye) -> None:
        _log.info("trainer_said_goodbye", error=goodbye.error)
        self._goodbye = goodbye
        # The process may go on, and train once more: that is another agent's business.
        self._server.stop_listening()
        self._background.start(self._part())

    async def _part(self) -> None:
        """Gives the process a moment to end after its goodbye."""
        assert self._ledger is not None
        await asyncio.sleep(min(_EXIT_GRACE, self._linger))
        if self._ending is None and self._goodbye is not None and self._goodbye.error:
            trainer_exit = describe_exit(None)
            trainer_exit.message = f"training ended with {self._goodbye.error}"
            self._ledger.exited(trainer_exit, time.time_ns())
        self._end(_End.TRAINER_GONE)

    async def _watch_trainer(self, watch: TrainerWatch) -> None:
        assert self._ledger is not None
        status = await watch.exited()
        exit_time = time.time_ns()
        if self._trainer is not None:
            self._trainer.attend()
        await self._background.until(lambda: self._trainer is None, _LAST_WORDS_TIMEOUT)
        if self._ending is not None:
            return
        trainer_exit = describe_exit(status)
        if self._goodbye is not None and self._goodbye.error:
            trainer_exit.message += f", after {self._goodbye.error}"
        _log.info("trainer_exited", job=self._job_id, message=trainer_exit.message)
        self._ledger.exited(trainer_exit, exit_time)
        self._end(_End.TRAINER_GONE)

    async def _give_up_on_trainer(self) -> None:
        """Waits for a trainer whose process can not be seen from here to connect again."""
        assert self._ledger is not None
        if not await self._background.until(lambda: self._trainer is not None, self._linger):
            trainer_exit = describe_exit(None)
            trainer_exit.message = (
                "the trainer has closed its connection, and its process can not be seen from here"
            )
            self._ledger.exited(trainer_exit, time.time_ns())
            self._end(_End.TRAINER_GONE)

    async def _watch_pace(self, ledger: Ledger) -> None:
        while True:
            left = ledger.pace.stalls_at() - time.monotonic()
            await asyncio.sleep(min(max(left, _SHORTEST_LOOK_AT_PACE), _LONGEST_LOOK_AT_PACE))
            now = time.monotonic()
            if self._goodbye is None and ledger.may_stall and now >= ledger.pace.stalls_at():
                idle = ledger.pace.idle(now)
                _log.info("trainer_stalled", job=self._job_id, idle=round(idle, 1))
                ledger.stalled(idle, time.time_ns())
                self._wake()

    # -------------------------------------------------------------------- the control plane's end

    def welcomed(self, welcome: session_pb2.Welcome) -> None:
        """The control plane serves this agent."""
        _log.info("session_began", job=self._job_id, epoch=welcome.epoch)
        if self._detached is not None:
            self._detached = None
            if self._trainer is not None:
                self._greet()

    def outcomes_stored(self, revisions: Sequence[int]) -> None:
        """The control plane has these outcomes on disk."""
        if revisions and self._trainer is not None:
            stored = link_pb2.OutcomesStored(revisions=revisions)
            self._trainer.send(link_pb2.AgentMessage(stored=stored))

    def acknowledged(self) -> None:
        """The control plane has more on disk than before."""
        self._background.changed()

    def updates_arrived(self) -> None:
        """Passes on what the trainer has not been given yet."""
        if self._trainer is None or not self._trainer.is_open:
            return
        messages, replies = self._deliveries.pass_on()
        if messages:
            self._trainer.attend()  # an outcome is to be passed on at once
        for message in messages:
            self._trainer.send(message)
        self._reply(replies)

    def refused(self, why: Refusal) -> None:
        """The control plane does not serve this agent, now or for good."""
        self._detached_for_good = why.course is Course.SUPERSEDED
        self._detached = link_pb2.Detached(reason=why.reason, message=why.message)
        if self._trainer is not None:
            self._trainer.send(link_pb2.AgentMessage(detached=self._detached))

    def trainer_connected(self) -> bool:
        """Tells whether the trainer talks to this agent."""
        return self._trainer is not None

    def _reply(self, replies: Iterable[session_pb2.DeliveryReply]) -> None:
        session = self._connector.session if self._connector is not None else None
        if session is not None:
            session.reply(list(replies))

    def _wake(self) -> None:
        if self._connector is not None and self._connector.session is not None:
            self._connector.session.wake()


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
