"""How a link stands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class LinkState(Enum):
    """What a link is doing."""

    IDLE = "idle"
    """Not started."""
    CONNECTING = "connecting"
    """No agent has answered yet, or not again; what is sent waits."""
    CONNECTED = "connected"
    """An agent has answered."""
    DETACHED = "detached"
    """Steering has ended, for good or until an agent answers again; see the reason."""
    CLOSED = "closed"
    """Closed, or a forked child's copy, which does nothing."""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How a link stands.

    Attributes:
        state: What it is doing.
        reason: Why it is detached, UPPER_SNAKE_CASE; empty otherwise.
        message: The newest trouble in words; empty: none since an agent last answered.
        agent_pid: Process id of the agent that answered; None: none is connected.
        agent_version: Its software's version; empty: none is connected.
        dropped_steps: Step reports dropped for lack of room so far.
        buffered_bytes: What waits for an agent.
        connections: Agents that answered so far, each reconnection counted.
    """

    state: LinkState
    reason: str
    message: str
    agent_pid: int | None
    agent_version: str
    dropped_steps: int
    buffered_bytes: int
    connections: int
