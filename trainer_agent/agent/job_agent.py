"""The life of an agent: from its trainer's hello to its own goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from grpc_runtime.logging import get_logger
from midcourse.link.v1 import link_pb2
from trainer_agent.agent.admission import Served, refusal
from trainer_agent.agent.background import Background
from trainer_agent.agent.exit_status import describe_exit
from trainer_agent.agent.relay import Relay
from trainer_agent.agent.trainer_watch import TrainerWatch
from trainer_agent.link.protocol import PROTOCOL_VERSION
from trainer_agent.link.server import LinkServer, TrainerConnection
from trainer_agent.link.spawn import cut_log

if TYPE_CHECKING:
    from grpc_runtime.client.credentials import Credentials
    from trainer_agent.agent.ledger import AgentIdentity
    from trainer_agent.link.address import LinkAddress

_log = get_logger(__name__)

# A process that has said goodbye usually ends at once; then its exit code can be reported.
_EXIT_GRACE: Final = 10.0
# What a dead process had sent is read long before this, unless a child of it keeps the socket.
_LAST_WORDS_TIMEOUT: Final = 0.5
_STOP_TIMEOUT: Final = 5.0
_LONGEST_LOOK_AT_PACE: Final = 1.0
_SHORTEST_LOOK_AT_PACE: Final = 0.05
_LOOK_AT_LOG: Final = 60.0
_STDERR: Final = 2


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
        credentials: Credentials | None = None,
    ) -> None:
        """Prepares an agent; see :class:`~trainer_agent.agent.options.AgentOptions`."""
        self._job_id = job_id
        self._control_plane = control_plane
        self._identity = identity
        self._linger = linger
        self._trainer_fd = trainer_fd
        self._credentials = credentials
        self._server = LinkServer(address, self)

        self._relay: Relay | None = None
        self._trainer: TrainerConnection | None = None
        self._adopted: TrainerConnection | None = None
        self._watch: TrainerWatch | None = None
        self._goodbye: link_pb2.TrainerGoodbye | None = None
        self._background = Background()
        self._ending: _End | None = None
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
                self._background.start(_bound_log())
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
        relay = self._relay
        if relay is None:
            _log.info("ended", job=self._job_id, reason=self._reason())
            return 0
        if self._ending is not _End.REPLACED:
            stopped = self._ending is _End.STOPPED
            await relay.part(self._reason(), _STOP_TIMEOUT if stopped else self._linger)
        ledger = relay.ledger
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
        if self._relay is None or connection is not self._trainer:
            _log.warning("message_before_hello", kind=kind)
            connection.close()
        elif kind == "goodbye":
            self._said_goodbye(message.goodbye)
        elif not self._relay.take(message):
            _log.warning("unexpected_message")  # perhaps of a newer trainer

    def trainer_lost(self, connection: TrainerConnection) -> None:
        """Notes that a connection has ended (:class:`~trainer_agent.link.server.LinkHandler`)."""
        relay = self._relay
        if connection is self._adopted and relay is None:
            self._end(_End.NEVER_BEGAN)
        if relay is None or connection is not self._trainer:
            return
        self._trainer = relay.trainer = None
        self._background.changed()
        if relay.superseded:
            self._end(_End.REPLACED)
        if self._goodbye is None and self._ending is None:
            _log.info("trainer_disconnected", job=self._job_id)
            if self._watch is None or not self._watch.possible:
                self._background.start(self._give_up_on_trainer())

    def _hello(self, connection: TrainerConnection, hello: link_pb2.TrainerHello) -> None:
        served = self._served(connection, hello.instance_id)
        instance_id = self._relay.ledger.instance_id if self._relay is not None else ""
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
        stored: list[int] = []
        relay = self._relay
        if relay is None:
            relay = self._relay = self._begin(connection, hello)
        else:
            stored = relay.ledger.trainer_returned(hello, time.monotonic())
        welcome = link_pb2.AgentWelcome(
            protocol_version=PROTOCOL_VERSION,
            agent_version=self._identity.version,
            pid=os.getpid(),
        )
        relay.greet(connection, welcome, hello.state.outcomes, stored)
        self._background.changed()

    def _served(self, connection: TrainerConnection, instance_id: str) -> Served:
        if self._relay is None:
            return Served.NOBODY_YET
        assert self._watch is not None
        if self._goodbye is not None or self._ending is not None or not self._watch.alive():
            return Served.ENDING
        if instance_id == self._relay.ledger.instance_id:
            return Served.ALIVE
        if connection.peer.pid is not None and connection.peer.pid == self._watch.pid:
            # The same process trains anew, as in a notebook after an interrupt.
            self._end(_End.TRAINER_GONE)
            return Served.ENDING
        seen = self._watch.possible or self._trainer is not None
        return Served.ALIVE if seen else Served.ENDING

    def _begin(self, connection: TrainerConnection, hello: link_pb2.TrainerHello) -> Relay:
        """Begins to serve the trainer: only now does the control plane hear of this agent."""
        relay = Relay(
            hello,
            control_plane=hello.control_plane or self._control_plane,
            identity=self._identity,
            background=self._background,
            credentials=self._credentials,
        )
        self._watch = TrainerWatch(connection.take_pidfd(), connection.peer.pid)
        self._background.start(self._watch_trainer(self._watch, relay))
        self._background.start(self._watch_pace(relay))
        self._background.start(self._converse(relay))
        return relay

    async def _converse(self, relay: Relay) -> None:
        """Talks to the control plane until the end, or until there is no way back to it."""
        await relay.converse()
        if self._ending is None and not relay.superseded:
            self._end(_End.REPLACED)

    def _said_goodbye(self, goodbye: link_pb2.TrainerGoodbye) -> None:
        _log.info("trainer_said_goodbye", error=goodbye.error)
        self._goodbye = goodbye
        # The process may go on, and train once more: that is another agent's business.
        self._server.stop_listening()
        self._background.start(self._part())

    async def _part(self) -> None:
        """Gives the process a moment to end after its goodbye."""
        assert self._relay is not None
        await asyncio.sleep(min(_EXIT_GRACE, self._linger))
        if self._ending is None and self._goodbye is not None and self._goodbye.error:
            trainer_exit = describe_exit(None)
            trainer_exit.message = f"training ended with {self._goodbye.error}"
            self._relay.ledger.exited(trainer_exit, time.time_ns())
        self._end(_End.TRAINER_GONE)

    async def _watch_trainer(self, watch: TrainerWatch, relay: Relay) -> None:
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
        relay.ledger.exited(trainer_exit, exit_time)
        self._end(_End.TRAINER_GONE)

    async def _give_up_on_trainer(self) -> None:
        """Waits for a trainer whose process can not be seen from here to connect again."""
        assert self._relay is not None
        if not await self._background.until(lambda: self._trainer is not None, self._linger):
            trainer_exit = describe_exit(None)
            trainer_exit.message = (
                "the trainer has closed its connection, and its process can not be seen from here"
            )
            self._relay.ledger.exited(trainer_exit, time.time_ns())
            self._end(_End.TRAINER_GONE)

    async def _watch_pace(self, relay: Relay) -> None:
        ledger = relay.ledger
        while True:
            left = ledger.pace.stalls_at() - time.monotonic()
            await asyncio.sleep(min(max(left, _SHORTEST_LOOK_AT_PACE), _LONGEST_LOOK_AT_PACE))
            now = time.monotonic()
            if self._goodbye is None and ledger.may_stall and now >= ledger.pace.stalls_at():
                idle = ledger.pace.idle(now)
                _log.info("trainer_stalled", job=self._job_id, idle=round(idle, 1))
                ledger.stalled(idle, time.time_ns())
                relay.wake()


async def _bound_log() -> None:
    """Keeps the log of an agent that its trainer started bounded: it is a file that nobody turns.

    What fails again and again, such as to reach a control plane that is away, is logged each time.
    """
    while True:
        await asyncio.sleep(_LOOK_AT_LOG)
        with contextlib.suppress(OSError):  # there is no place to tell of it
            cut_log(_STDERR)
