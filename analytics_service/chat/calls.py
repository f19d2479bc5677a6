"""Calls to providers for one answer: reserved, made, tried again, settled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from analytics_service.catalogue.model import CatalogueModel
from analytics_service.catalogue.served import same_model
from analytics_service.chat.conversation import Message, ModelChoice
from analytics_service.chat.events import CallEnded, Retried
from analytics_service.chat.finish import Backlog, Write, finished
from analytics_service.chat.meter import Meter, reserved, unsent
from analytics_service.chat.stream import EventStream
from analytics_service.errors import Reason, Refusal
from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    ProviderError,
    ProviderRequest,
    TextDelta,
    ToolRequest,
)
from analytics_service.usage.records import CallOutcome, UsageRecord

if TYPE_CHECKING:
    from analytics_service.ports import Clock, Store
    from analytics_service.providers.registry import Providers
    from analytics_service.providers.retry import RetryPolicy
    from analytics_service.usage.prices import PriceBook

_log = structlog.get_logger(__name__)

_OUR_FAULTS = (Fault.REFUSED, Fault.CONTEXT_TOO_LONG)
"""Another model would not fare better: the question itself is at fault."""

_REASONS = {
    Fault.RATE_LIMITED: Reason.PROVIDER_RATE_LIMITED,
    Fault.UNAVAILABLE: Reason.PROVIDER_UNAVAILABLE,
    Fault.TIMEOUT: Reason.PROVIDER_TIMEOUT,
    Fault.STREAM_BROKEN: Reason.PROVIDER_STREAM_BROKEN,
    Fault.UNAUTHENTICATED: Reason.PROVIDER_UNAUTHENTICATED,
    Fault.REFUSED: Reason.PROVIDER_REFUSED,
    Fault.CONTEXT_TOO_LONG: Reason.CONTEXT_TOO_LONG,
    Fault.MODEL_NOT_FOUND: Reason.MODEL_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round came to.

    Attributes:
        finish: Why it ended.
        tool_requests: Calls of tools, in order.
    """

    finish: FinishReason
    tool_requests: tuple[ToolRequest, ...]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What calls are made with; `be_known` is called before anything is begun in the store."""

    store: Store
    providers: Providers
    prices: PriceBook
    retry: RetryPolicy
    clock: Clock
    new_id: Callable[[], str]
    be_known: Callable[[], Awaitable[None]]
    backlog: Backlog = field(default_factory=Backlog)


class Calls:
    """Makes the calls of one answer.

    Attributes:
        choice: Which model answers, as it is now: what has served, what took over.
        model: That model.
    """

    def __init__(
        self,
        first: UsageRecord,
        choice: ModelChoice,
        model: CatalogueModel,
        failover: tuple[CatalogueModel, ...],
        around: Surroundings,
        *,
        has_begun: bool,
    ) -> None:
        """Prepares.

        Args:
            first: The record of the first call; those of the others are made after it.
            choice: Which model answers.
            model: That model.
            failover: Models to try where it can not be reached, in order.
            around: What calls are made with.
            has_begun: The first call is on record already, with its reservation.
        """
        self.choice = choice
        self.model = model
        self._failover = list(failover)
        self._first = first
        self._has_begun = has_begun
        self._around = around

    async def round(
        self,
        number: int,
        request: ProviderRequest,
        on_text: Callable[[str], Awaitable[None]],
        saved: Callable[[], Message],
        events: EventStream,
    ) -> RoundResult:
        """Makes one call, again where that may help, and settles each attempt.

        Args:
            number: Rounds before this one.
            request: What the model is asked.
            on_text: Told of text as it comes.
            saved: Gives the answer as it stands.
            events: Told of attempts.

        Raises:
            Refusal: No attempt succeeded, or a budget does not allow one.
        """
        attempt = failures = 0
        waited = 0.0
        while True:
            attempt += 1
            record = await self._begun(number, attempt, request, saved, events)
            meter = Meter(record, model=self.model, request=request, prices=self._around.prices)
            try:
                return await self._attempt(meter, request, on_text, saved, events)
            except ProviderError as error:
                failures += 1
                delay = None
                if not meter.has_begun:
                    delay = self._around.retry.delay(failures, error, random.random, waited=waited)
                if delay is None:
                    may = number == 0 and not meter.has_begun and error.fault not in _OUR_FAULTS
                    took_over = may and self._fail_over(error)
                    if not took_over:
                        raise self._refusal(error, attempt) from error
                    request = replace(
                        request,
                        model=self.model.provider_model,
                        max_output_tokens=min(
                            request.max_output_tokens, self.model.max_output_tokens
                        ),
                    )
                    failures, delay, waited = 0, 0.0, 0.0
                await events.put(Retried(error.message, delay, self.choice))
                await asyncio.sleep(delay)
                waited += delay

    async def _begun(
        self,
        number: int,
        attempt: int,
        request: ProviderRequest,
        saved: Callable[[], Message],
        events: EventStream,
    ) -> UsageRecord:
        if self._has_begun:
            self._has_begun = False
            return self._first
        record = replace(
            self._first,
            id=self._around.new_id(),
            time=self._around.clock(),
            round=number,
            attempt=attempt,
            used_model=self.model.id,
            provider=self.model.provider,
        )
        record = reserved(record, model=self.model, request=request, prices=self._around.prices)
        await self._around.be_known()
        try:
            _, cancelled = await finished(self._around.store.begin_call(record))
        except Refusal as refusal:
            if refusal.reason is Reason.STORE_UNAVAILABLE:
                # It may be on record all the same: nobody knows what became of the commit.
                record = unsent(record, CallOutcome.FAILED, refusal.message)
                self._around.backlog.add(_what(record), *self._ends_of(record, saved()))
            raise
        if cancelled:
            await self._settle(unsent(record, CallOutcome.CANCELLED), saved(), events)
            raise asyncio.CancelledError
        return record

    async def _attempt(
        self,
        meter: Meter,
        request: ProviderRequest,
        on_text: Callable[[str], Awaitable[None]],
        saved: Callable[[], Message],
        events: EventStream,
    ) -> RoundResult:
        finish: FinishReason | None = None
        tool_requests: list[ToolRequest] = []
        record: UsageRecord | None = None
        try:
            provider = self._around.providers.get(self.model.provider)
            async with aclosing(provider.stream(request)) as stream:
                async for event in stream:
                    meter.feed(event)
                    match event:
                        case TextDelta(text):
                            await on_text(text)
                        case ToolRequest():
                            tool_requests.append(event)
                        case Finished(reason):
                            finish = reason
                        case _:
                            pass
            if finish is None:
                raise ProviderError(Fault.STREAM_BROKEN, "the answer ended in the middle")
            record = meter.settled(CallOutcome.COMPLETED)
        except asyncio.CancelledError:
            record = meter.settled(CallOutcome.CANCELLED)
            raise
        except ProviderError as error:
            record = meter.settled(
                CallOutcome.FAILED, error=error.message, unbilled=error.is_unbilled
            )
            raise
        except Exception as error:
            record = meter.settled(CallOutcome.FAILED, error=f"unexpected {type(error).__name__}")
            raise
        finally:
            self._note_served(meter.served)
            if record is not None:
                await self._settle(record, saved(), events)
        return RoundResult(finish, tuple(tool_requests))

    async def _settle(self, record: UsageRecord, answer: Message, events: EventStream) -> None:
        """Settles a call, even where the turn is being cancelled."""
        what, backlog = _what(record), self._around.backlog
        end, without_answer = self._ends_of(record, answer)
        try:
            _, cancelled = await finished(backlog.write(what, end, without_answer))
        except Refusal:
            raise
        except Exception:
            await finished(backlog.write(what, without_answer))
            raise
        events.push(CallEnded(record))
        if cancelled:
            raise asyncio.CancelledError

    def _ends_of(self, record: UsageRecord, answer: Message) -> tuple[Write, Write]:
        """How to end a call with its answer, and without one that can not be kept.

        What it has reserved must not stay so because of that.
        """
        end_call = self._around.store.end_call
        return partial(end_call, record, answer), partial(end_call, record)

    def _note_served(self, served: str | None) -> None:
        if served is None or served == self.choice.served:
            return
        self.choice = replace(self.choice, served=served)
        if not same_model(self.model, served):
            said = f"the provider says that {served} has served"
            self.choice = replace(self.choice, difference=_joined(self.choice.difference, said))

    def _fail_over(self, error: ProviderError) -> bool:
        """Lets the next model of the chain take over; returns whether there was one."""
        before = self.model
        usable = (
            each
            for each in self._failover
            if self._around.providers.unavailable(each.provider) is None
        )
        model = next(usable, None)
        if model is None:
            return False
        self._failover = self._failover[self._failover.index(model) + 1 :]
        self.model = model
        why = f"{model.id} took over from {before.id}, which failed: {error.message}"
        self.choice = replace(
            self.choice,
            used=model.id,
            served=None,
            difference=_joined(self.choice.difference, why),
        )
        _log.warning("model failed over", model=before.id, to=model.id, error=error.message)
        return True

    def _refusal(self, error: ProviderError, attempts: int) -> Refusal:
        times = "" if attempts == 1 else f" ({attempts} attempts)"
        return Refusal(
            _REASONS[error.fault],
            f"{self.model.display_name}: {error.message}{times}",
            metadata={"provider": self.model.provider, "model": self.model.id},
            retry_delay=error.retry_after if error.is_transient else None,
        )


def _what(record: UsageRecord) -> str:
    return f"the end of call {record.id}"


def _joined(before: str, more: str) -> str:
    return f"{before}; {more}" if before else more
