"""What stands in for the socket between a training process and its agent: both are in here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from midcourse.link.v1 import link_pb2
from trainer_agent.agent.relay import Relay
from trainer_agent.link.protocol import PROTOCOL_VERSION
from trainer_agent.steering.links import CLOSE_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from midcourse.agent.v1 import session_pb2
    from trainer_agent.agent.background import Background
    from trainer_agent.agent.connector import OpenChannel
    from trainer_agent.agent.ledger import AgentIdentity


class LinkEvents(Protocol):
    """What a link tells its job."""

    def arrived(self) -> None:
        """There is something for the trainer."""

    def settled(self, outcome: session_pb2.UpdateOutcome) -> None:
        """The trainer has said how an update ended."""


class DirectLink:
    """Carries messages by handing them over; fulfils :class:`~trainer_agent.steering.links.Link`.

    Attributes:
        relay: The agent's part.
    """

    def __init__(
        self,
        *,
        job_id: str,
        hello: Callable[[], link_pb2.TrainerHello],
        control_plane: str,
        identity: AgentIdentity,
        background: Background,
        events: LinkEvents,
        open_channel: OpenChannel | None,
    ) -> None:
        """Prepares the agent's part for what ``hello`` says now."""
        said = hello()
        said.protocol_version = PROTOCOL_VERSION
        said.pid = os.getpid()
        self._outcomes = list(said.state.outcomes)
        self._welcome = link_pb2.AgentWelcome(
            protocol_version=PROTOCOL_VERSION, agent_version=identity.version, pid=said.pid
        )
        self._events = events
        self._inbox = _Inbox(events)
        self.relay = Relay(
            said,
            control_plane=control_plane,
            identity=identity,
            background=background,
            open_channel=open_channel,
        )

    @property
    def detached(self) -> link_pb2.Detached | None:
        """Why the control plane does not serve this job; None: it does, or may be asked yet."""
        return self.relay.detached

    def start(self) -> None:
        """Greets the trainer."""
        self.relay.greet(self._inbox, self._welcome, self._outcomes, ())

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Hands a message to the agent's part."""
        if not self.relay.take(message):
            raise ValueError(f"no agent takes {message.WhichOneof('message')}")
        if message.HasField("outcome"):
            self._events.settled(message.outcome)

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Returns what has arrived, oldest first."""
        return self._inbox.take()

    def wait(self, seconds: float) -> None:
        """Does not wait: a light job goes on by itself when something arrives."""

    def close(self, error: str | None = None, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Has nothing to close: a light job ends its agent's part by itself."""
        return True


class _Inbox:
    """The trainer's end, as the agent's part sees it."""

    is_open = True

    def __init__(self, events: LinkEvents) -> None:
        self._messages: list[link_pb2.AgentMessage] = []
        self._events = events

    def attend(self) -> None:
        """Whoever is in the same process is heard at once."""

    def send(self, message: link_pb2.AgentMessage) -> None:
        kind = message.WhichOneof("message")
        if kind in {"welcome", "detached"}:
            return  # the link itself tells
        self._messages.append(message)
        if kind != "stored":  # which can wait for the next step
            self._events.arrived()

    def take(self) -> Sequence[link_pb2.AgentMessage]:
        messages, self._messages = self._messages, []
        return messages
