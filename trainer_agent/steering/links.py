"""What carries messages between a training process and its agent, as the session sees it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from midcourse.link.v1 import link_pb2

START_AGENT_VARIABLE: Final = "MIDCOURSE_START_AGENT"
"""Environment variable; ``0`` leaves it to others to start the agent, as a sidecar."""
_NO: Final = frozenset({"0", "false", "no", "off"})

CLOSE_TIMEOUT = 5.0
"""Longest wait, in seconds, for the agent to take the last messages at the end of training."""


class Link(Protocol):
    """What carries messages to the agent and back. None of it raises, only waiting blocks."""

    def start(self) -> None:
        """Look for the agent, start one where there is none."""
        ...

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Send, or keep until the agent takes it."""
        ...

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Return what has arrived, oldest first."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait until something has arrived, or for so long."""
        ...

    def close(self, error: str | None = None, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Say goodbye; wait at most so many seconds for the agent to take what is left."""
        ...


class LinkFactory(Protocol):
    """Makes a link."""

    def __call__(
        self,
        *,
        job_id: str,
        hello: Callable[[], link_pb2.TrainerHello],
        control_plane: str,
    ) -> Link:
        """Make a link whose every connection begins with what ``hello`` returns."""
        ...


def default_link(
    *, job_id: str, hello: Callable[[], link_pb2.TrainerHello], control_plane: str
) -> Link:
    """Make a link to an agent on this host, which is started if there is none.

    Unless the environment says MIDCOURSE_START_AGENT=0: then somebody else starts one.
    """
    from trainer_agent.link import TrainerLink

    spawn = os.environ.get(START_AGENT_VARIABLE, "").strip().lower() not in _NO
    return TrainerLink(job_id=job_id, hello=hello, control_plane=control_plane, spawn=spawn)


class MuteLink:
    """The link of every rank but the first, which speaks for all."""

    def __init__(self, **_: object) -> None:
        """Lead nowhere."""

    def start(self) -> None:
        """There is nothing to start."""

    def send(self, message: link_pb2.TrainerMessage) -> None:
        """Leave it to the first rank to say it."""

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        """Return nothing."""
        return ()

    def wait(self, seconds: float) -> None:
        """The first rank waits for all."""

    def close(self, error: str | None = None, timeout: float = CLOSE_TIMEOUT) -> bool:
        """There is nothing to close."""
        return True
