"""What waits for one agent: in order, bounded by its reading, and acknowledged without gaps."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from control_plane.services.outbox import (
    MOST_WAITING,
    Acknowledgement,
    AckTracker,
    Outbox,
    Withdrawal,
)


async def test_messages_go_first_and_of_acknowledgements_the_newest_alone() -> None:
    outbox = Outbox()
    waiting = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    for number in (1, 2):
        outbox.acknowledge(number)
        outbox.put(Withdrawal(number))
    said = [await waiting, *[await outbox.get() for _ in range(2)]]
    assert said == [Withdrawal(1), Withdrawal(2), Acknowledgement(2)]


async def test_whoever_has_more_to_say_waits_for_the_reader() -> None:
    outbox = Outbox()
    await outbox.room()
    for number in range(MOST_WAITING):
        outbox.put(Withdrawal(number))
    waiting = [asyncio.create_task(outbox.room()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    assert await outbox.get() == Withdrawal(0)
    await asyncio.wait_for(asyncio.gather(*waiting), 30)
    # An acknowledgement is one at most, and needs no room.
    outbox.put(Withdrawal(MOST_WAITING))
    outbox.acknowledge(7)
    assert len(outbox) == MOST_WAITING


@given(st.permutations(range(2, 12)), st.sets(st.integers(2, 11)))
def test_nothing_is_acknowledged_before_all_that_came_before_it(
    order: list[int], awaited: set[int]
) -> None:
    tracker = AckTracker(1)
    for number in range(2, 12):
        tracker.begin(number)
    done: set[int] = set()
    for number in order:
        before = tracker.done_up_to
        due = tracker.done(number, awaited=number in awaited)
        done.add(number)
        up_to = 1
        while up_to + 1 in done:
            up_to += 1
        assert tracker.done_up_to == up_to
        assert due == any(before < each <= up_to for each in awaited)
    assert tracker.done_up_to == 11
