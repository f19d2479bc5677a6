"""Which of several control planes an agent goes to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from grpc_runtime.errors import StatusError
from trainer_agent.agent.backoff import FullJitter
from trainer_agent.agent.connector import Connector
from trainer_agent.agent.refusals import Refusal
from trainer_agent.agent.session import StreamEnd


class Course:
    """Sessions that end as a test says, and where they were held."""

    def __init__(self, *ends: StreamEnd | StatusError) -> None:
        self._ends: Iterator[StreamEnd | StatusError] = iter(ends)
        self.targets: list[str] = []

    def new_session(self) -> Any:
        return self

    async def run(self, *_: object) -> StreamEnd:
        end = next(self._ends)
        if isinstance(end, StatusError):
            raise end
        return end

    @contextlib.asynccontextmanager
    async def open_channel(self, target: str) -> AsyncIterator[grpc.aio.Channel]:
        self.targets.append(target)
        async with grpc.aio.insecure_channel(target) as channel:
            yield channel

    def refused(self, why: Refusal) -> None:
        raise AssertionError(why)

    def trainer_connected(self) -> bool:
        return True


GONE = StatusError(grpc.StatusCode.UNAVAILABLE, "nobody there", reason="")
AWAY = StreamEnd(reconnect_delay=0.0, said_goodbye=False)
DONE = StreamEnd(reconnect_delay=None, said_goodbye=True)


@pytest.mark.parametrize("text", ["127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "127.0.0.1:1"])
async def test_it_goes_from_one_to_the_next_until_one_serves_it(text: str) -> None:
    all_of_them = text.split(",")
    first = set()
    for _ in range(40):
        course = Course(GONE, GONE, AWAY, GONE, DONE)
        connector = Connector(
            text,
            new_session=course.new_session,
            events=course,
            backoff=FullJitter(uniform=lambda low, _: low),
            open_channel=course.open_channel,
        )
        await connector.run()
        begun = all_of_them.index(course.targets[0])
        assert course.targets == [all_of_them[(begun + n) % len(all_of_them)] for n in range(5)]
        first.add(course.targets[0])
    # Agents do not all begin with the same one.
    assert first == set(all_of_them)
