"""One answer of a provider that is called with its SDK, whatever its protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from analytics_service.providers import sdk
from analytics_service.providers.base import (
    Fault,
    Finished,
    ProviderError,
    ProviderEvent,
    Served,
    TextDelta,
)
from analytics_service.providers.faults import Endpoint
from analytics_service.providers.surrogates import SurrogateJoiner


class Answer(ABC):
    """What the events of one stream tell, one after another.

    Attributes:
        endpoint: Who answers.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._text = SurrogateJoiner()
        self._is_served = False

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether it is whole; then at most its usage is to come."""

    @abstractmethod
    def events(self, event: Any) -> list[ProviderEvent]:
        """What an event of the SDK tells; kinds that are not known tell nothing."""

    @abstractmethod
    def finish(self) -> Finished:
        """The end.

        Raises:
            ProviderError: It did not end, or in a failure.
        """

    def rest(self) -> list[ProviderEvent]:
        """What is whole only at the end."""
        return []

    def _serve(self, model: str) -> list[ProviderEvent]:
        if self._is_served or not model:
            return []
        self._is_served = True
        return [Served(model)]

    @staticmethod
    def _said(text: str) -> list[ProviderEvent]:
        return [TextDelta(text)] if text else []

    def _broken(self, what: str) -> ProviderError:
        return self.endpoint.error(Fault.STREAM_BROKEN, what)


async def told(
    call: Callable[[], Awaitable[Any]],
    answer: Answer,
    errors: type[Exception],
    idle: float,
) -> AsyncGenerator[ProviderEvent, None]:
    """Makes a call and tells its answer; see `Provider.stream`.

    Args:
        call: Calls the SDK, for a stream.
        answer: Reads its events.
        errors: Root of the SDK's exceptions.
        idle: Seconds after which a silent stream times out, for the error.

    Raises:
        ProviderError: The call failed.
    """
    async with aclosing(sdk.read(call(), answer.endpoint, errors, idle)) as raw_events:
        while (raw := await sdk.following(raw_events, has_ended=answer.has_ended)) is not None:
            for event in answer.events(raw):
                yield event
    finished = answer.finish()
    for event in answer.rest():
        yield event
    yield finished
