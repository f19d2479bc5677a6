"""Events on their way to whoever reads them."""

from __future__ import annotations

import asyncio

from analytics_service.chat.events import Delta
from analytics_service.chat.stream import EventStream


async def test_what_comes_first_is_read_before_the_writer_goes_on() -> None:
    # A writer that has much to hand on at once would otherwise keep all of it back to its end.
    stream = EventStream()
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await stream.put(Delta("first"))
    assert reading.done()
    await stream.put(Delta("second"))
    stream.close()
    assert [await reading, *[event async for event in stream]] == [Delta("first"), Delta("second")]
