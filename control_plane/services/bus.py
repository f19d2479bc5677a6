"""The wake-up bus within one process.

What other replicas write comes to it by `Store.follow` and `LocalBus.hear`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from control_plane.services.ports import Wakeable
    from control_plane.services.records import Event

JOBS = "jobs"
"""Topic of every durable event."""


def session_topic(job_id: str) -> str:
    """Topic of whatever a job's session has to look at."""
    return f"session/{job_id}"


def updates_topic(job_id: str) -> str:
    """Topic of whatever becomes of a job's updates."""
    return f"updates/{job_id}"


class LocalSubscription:
    """A place to wait for wake-ups of one topic."""

    __slots__ = ("_bus", "_event", "_topic")

    def __init__(self, bus: LocalBus, topic: str) -> None:
        """Is made by `LocalBus.subscribe`."""
        self._bus = bus
        self._topic = topic
        self._event = asyncio.Event()

    async def wait(self, timeout: float | None = None) -> bool:
        """Waits for a wake-up; returns whether there was one within `timeout` seconds."""
        if not self._event.is_set():
            if timeout is None:
                await self._event.wait()
            try:
                async with asyncio.timeout(timeout):
                    await self._event.wait()
            except TimeoutError:
                return False
        self._event.clear()
        return True

    def wake(self) -> None:
        """Wakes this subscriber alone."""
        self._event.set()

    def close(self) -> None:
        """Ends listening."""
        self._bus.remove(self._topic, self)


class LocalBus:
    """Wake-ups within one process; to be used from its event loop alone."""

    def __init__(self) -> None:
        """Begins with nobody subscribed."""
        self.draining = False
        self._subscribers: defaultdict[str, set[Wakeable]] = defaultdict(set)

    def notify(self, topic: str) -> None:
        """Wakes everybody who is subscribed to the topic."""
        for subscriber in self._subscribers.get(topic, ()):
            subscriber.wake()

    def notify_all(self) -> None:
        """Wakes everybody."""
        for topic in list(self._subscribers):
            self.notify(topic)

    def hear(self, events: Sequence[Event] | None) -> None:
        """Wakes those whom events concern that nobody here has told of.

        Args:
            events: What has happened; None: nobody knows, so that everybody has to look.
        """
        if events is None:
            self.notify_all()
            return
        self.notify(JOBS)
        for job_id in {event.job_id for event in events}:
            self.notify(session_topic(job_id))
            self.notify(updates_topic(job_id))

    def subscribe(self, topic: str) -> LocalSubscription:
        """Begins to listen."""
        subscriber = LocalSubscription(self, topic)
        self.attach(topic, subscriber)
        return subscriber

    def attach(self, topic: str, subscriber: Wakeable) -> None:
        """Wakes somebody at each wake-up of a topic, until `remove`."""
        self._subscribers[topic].add(subscriber)

    def drain(self) -> None:
        """Has everybody look up and see that the server is shutting down."""
        self.draining = True
        self.notify_all()

    def remove(self, topic: str, subscriber: Wakeable) -> None:
        """Forgets a subscriber."""
        subscribers = self._subscribers.get(topic)
        if subscribers is not None:
            subscribers.discard(subscriber)
            if not subscribers:
                del self._subscribers[topic]
