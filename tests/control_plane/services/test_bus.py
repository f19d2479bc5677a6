"""Wake-ups: who listens to a topic is woken once for all that came since it last looked."""

from __future__ import annotations

import asyncio

from control_plane.services.bus import JOBS, LocalBus, session_topic, updates_topic
from control_plane.services.records import Event, EventKind
from tests.support.domain_values import NOW


def event(job_id: str) -> Event:
    return Event(EventKind.MODIFIED, job_id, "uid", None, NOW)


async def test_what_came_before_one_waits_counts_once() -> None:
    bus = LocalBus()
    listening, other = bus.subscribe("a"), bus.subscribe("b")
    for _ in range(3):
        bus.notify("a")
    assert await listening.wait(30)
    assert not await listening.wait(0)
    assert not await other.wait(0)
    waiting = asyncio.create_task(listening.wait())
    await asyncio.sleep(0)
    bus.notify("a")
    assert await asyncio.wait_for(waiting, 30)


async def test_whoever_has_left_is_forgotten() -> None:
    bus = LocalBus()
    stays, leaves = bus.subscribe("a"), bus.subscribe("a")
    leaves.close()
    leaves.close()
    bus.notify("a")
    assert await stays.wait(0)
    assert not await leaves.wait(0)
    stays.close()
    bus.notify("a")
    assert not bus._subscribers


async def test_news_from_elsewhere_wakes_those_whom_they_concern() -> None:
    bus = LocalBus()
    topics = [JOBS, *(topic(job) for topic in (session_topic, updates_topic) for job in "ab")]
    listening = {topic: bus.subscribe(topic) for topic in topics}

    async def woken() -> set[str]:
        return {topic for topic, each in listening.items() if await each.wait(0)}

    bus.hear([event("a"), event("a")])
    assert await woken() == {JOBS, session_topic("a"), updates_topic("a")}
    bus.hear([event("nobody")])
    assert await woken() == {JOBS}
    bus.hear(None)  # nobody knows what: everybody has to look
    assert await woken() == set(topics)


async def test_a_drain_has_everybody_look_up() -> None:
    bus = LocalBus()
    waiting = [asyncio.create_task(bus.subscribe(topic).wait()) for topic in "abc"]
    await asyncio.sleep(0)
    bus.drain()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 30) == [True] * 3
    assert bus.draining
