"""What every session with an agent works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from control_plane.domain.access import Scope
    from control_plane.services.joined import JoinedReads, JoinedWrites
    from control_plane.services.ports import Clock, Store, WakeupBus
    from control_plane.services.telemetry import TelemetryHub


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What agents are told; durations in seconds.

    Attributes:
        heartbeat_interval: How often they speak.
        lost_after_intervals: Silence for so many intervals makes a job LOST.
        stall_after: Least time without a step after which a trainer counts as stalled.
        max_message_bytes: Largest message.
        max_samples: Most samples in a heartbeat.
        max_sessions: Most sessions on this server.
    """

    heartbeat_interval: float = 5.0
    lost_after_intervals: float = 3.0
    stall_after: float = 30.0
    max_message_bytes: int = 4 * 1024 * 1024
    max_samples: int = 10_000
    max_sessions: int = 20_000

    @property
    def lost_after(self) -> float:
        """Seconds of silence that make a job LOST."""
        return self.heartbeat_interval * self.lost_after_intervals


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What every session works with.

    Attributes:
        store: As everybody may see it: a session looks itself whether its job is still its own.
        scope_now: The jobs of the agent that is being served.
    """

    store: Store
    clock: Clock
    bus: WakeupBus
    telemetry: TelemetryHub
    limits: SessionLimits
    deliveries: JoinedReads[str]
    writes: JoinedWrites[str]
    scope_now: Callable[[], Scope]
