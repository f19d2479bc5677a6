"""One answer being got: rounds of calls to the model, and of tools in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from analytics_service.chat.calls import Calls
from analytics_service.chat.conversation import (
    Citation,
    ErrorInfo,
    Message,
    MessageState,
    Part,
    TextPart,
    ToolCallPart,
)
from analytics_service.chat.events import (
    Delta,
    Done,
    Failed,
    Proposed,
    Started,
    ToolCalled,
    ToolReturned,
)
from analytics_service.chat.fence import TagFilter
from analytics_service.chat.finish import Backlog, finished
from analytics_service.chat.plan import Limits, Plan
from analytics_service.chat.prompt import Prompt
from analytics_service.chat.stream import EventStream
from analytics_service.chat.tools import ToolOutcome
from analytics_service.errors import Reason, Refusal
from analytics_service.ports import Clock, Store
from analytics_service.providers.base import FinishReason, ToolRequest

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Stop:
    """Why an answer is stopped from outside."""

    state: MessageState
    error: Refusal | None = None


class Turn:
    """Gets one answer, in a task of its own, and tells what happens through `events`.

    However it ends, every call is settled and the answer recorded as it stands.
    """

    def __init__(
        self,
        plan: Plan,
        answer: Message,
        *,
        store: Store,
        backlog: Backlog,
        calls: Calls,
        prompt: Prompt,
        limits: Limits,
        clock: Clock,
        code_of: Callable[[Refusal], int],
    ) -> None:
        """Prepares; nothing happens before `start`.

        Args:
            plan: How the answer is to be got.
            answer: As recorded when the turn began.
            store: Where it is kept.
            backlog: Takes its end if the store can not.
            calls: Makes the calls to providers.
            prompt: What the model is told.
            limits: Bounds.
            clock: Tells the time.
            code_of: The gRPC status code of a refusal.
        """
        self.plan = plan
        self.events = EventStream()
        self.answer = answer
        self.failure: Refusal | None = None
        self._store = store
        self._backlog = backlog
        self._calls = calls
        self._prompt = prompt
        self._limits = limits
        self._clock = clock
        self._code_of = code_of
        self._parts: list[Part] = []
        self._tags = TagFilter(plan.boundary)
        self._citations: dict[Citation, None] = {}
        self._stop: _Stop | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_run = False

    def start(self, on_end: Callable[[], object]) -> None:
        """Begins to get the answer; `on_end` is called when it is recorded."""
        self.events.push(Started(self.answer, self._calls.choice))
        name = f"turn {self.answer.session_id}/{self.answer.number}"
        self._task = asyncio.create_task(self._run(), name=name)
        self._task.add_done_callback(lambda _: on_end())

    def stop(self, state: MessageState, error: Refusal | None = None) -> None:
        """Stops it; the provider's call is ended at once. The first one to stop it decides.

        Args:
            state: CANCELLED or INTERRUPTED.
            error: What to tell whoever reads; None: it was wanted.
        """
        if self._stop is None and self._task is not None and not self._task.done():
            self._stop = _Stop(state, error)
            if self._has_run:
                self._task.cancel()
            # Else it would end without having run at all; `_run` sees to it.

    async def wait(self) -> None:
        """Waits until the answer is recorded."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        self._has_run = True
        if self._stop is not None and self._task is not None:
            self._task.cancel()
        try:
            state, failure = await self._to_its_end()
            self.failure = failure
            self.answer, _ = await finished(self._record(self._saved(), state, failure))
            if failure is None:
                self.events.push(Done(self.answer))
            else:
                self.events.push(Failed(self.answer, failure))
        except Refusal as refusal:  # the answer could not be recorded
            self.failure = refusal
            _log.error("an answer could not be recorded", error=refusal.message)
            self.events.push(Failed(self.answer, refusal))
        except Exception as error:  # noqa: BLE001 - logged, and told to the caller
            _log.exception("an answer could not be recorded")
            self.failure = _unexpected(error)
            await self._give_up(self.failure)
        finally:
            self.events.close()

    async def _to_its_end(self) -> tuple[MessageState, Refusal | None]:
        try:
            async with asyncio.timeout(self._limits.turn_seconds):
                return await self._get(), None
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None
            if self._stop is not None:
                task.uncancel()
                return self._stop.state, self._stop.error
            if task.cancelling():
                raise
            # Something that was awaited was cancelled, not this answer.
            _log.exception("an answer failed")
            return MessageState.FAILED, _unexpected(error)
        except TimeoutError:
            return MessageState.FAILED, Refusal(
                Reason.PROVIDER_TIMEOUT,
                f"the answer took longer than {self._limits.turn_seconds:g} s and was stopped; "
                "ask for less at once, or raise turn_timeout",
            )
        except Refusal as refusal:
            return MessageState.FAILED, refusal
        except Exception as error:  # noqa: BLE001 - logged, and told to the caller
            _log.exception("an answer failed")
            return MessageState.FAILED, _unexpected(error)

    async def _get(self) -> MessageState:
        if not self._calls.model.tools:
            await self._look_around()
        for number in range(self._limits.max_rounds):
            is_last = number == self._limits.max_rounds - 1
            plan = replace(self.plan, model=self._calls.model)
            request = self._prompt.request(
                plan, self._parts, limits=self._limits, with_tools=not is_last
            )
            result = await self._calls.round(
                number, request, self._take_text, self._saved, self.events
            )
            await self._emit(self._tags.rest())
            if not result.tool_requests:
                return _state(result.finish)
            await self._use_tools(number, result.tool_requests)
        # The last round has no tools to call, so a model that calls some has made them up.
        raise Refusal(
            Reason.TOO_MANY_ROUNDS,
            f"the model called tools {self._limits.max_rounds} times and came to no answer; "
            "ask for less at once, or choose a stronger model",
        )

    async def _look_around(self) -> None:
        """Reads for a model that can not call tools what it is likely to need."""
        for outcome in await self.plan.toolbox.digest(self.plan.question.content):
            await self._take_outcome(outcome, number=0, by_service=True)

    async def _use_tools(self, number: int, requests: tuple[ToolRequest, ...]) -> None:
        for request in requests:
            await self.events.put(
                ToolCalled(
                    ToolCallPart(
                        request.call_id,
                        request.name,
                        request.arguments,
                        raw_arguments=request.raw,
                        round=number,
                    )
                )
            )
        # They only read, so they may run side by side; their order is the model's.
        outcomes = await asyncio.gather(*(self.plan.toolbox.call(each) for each in requests))
        for outcome in outcomes:
            await self._take_outcome(outcome, number=number)

    async def _take_outcome(
        self, outcome: ToolOutcome, *, number: int, by_service: bool = False
    ) -> None:
        part = ToolCallPart(
            outcome.call_id,
            outcome.tool,
            outcome.arguments,
            result=outcome.result,
            error=outcome.error,
            by_service=by_service,
            duration=outcome.duration,
            raw_arguments=outcome.raw,
            round=number,
        )
        self._parts.append(part)
        if by_service:
            await self.events.put(ToolCalled(replace(part, result=None, error="", duration=None)))
        await self.events.put(ToolReturned(part))
        self._citations |= dict.fromkeys(outcome.citations)
        if outcome.proposal is not None:
            self._parts.append(outcome.proposal)
            await self.events.put(Proposed(outcome.proposal))

    async def _take_text(self, text: str) -> None:
        await self._emit(self._tags.feed(text))

    async def _emit(self, text: str) -> None:
        if text:
            self._parts = _with_text(self._parts, text)
            await self.events.put(Delta(text))

    def _saved(self) -> Message:
        """The answer as it stands, for being saved with the end of a call."""
        return replace(
            self.answer,
            parts=tuple(_with_text(self._parts, self._tags.held)),
            citations=tuple(self._citations),
            model=self._calls.choice,
        )

    async def _give_up(self, failure: Refusal) -> None:
        """Ends the answer without what there is of it, so that its session is not busy for ever."""
        try:
            end = self._record(self.answer, MessageState.FAILED, failure)
            self.answer, _ = await finished(end)
        except Exception:  # noqa: BLE001 - logged; the caller is told of the failure before it
            _log.exception("an answer could not be ended")
        self.events.push(Failed(self.answer, failure))

    async def _record(
        self, answer: Message, state: MessageState, failure: Refusal | None
    ) -> Message:
        # The clock may have been set back meanwhile.
        ended = max(self._clock(), answer.created + timedelta(microseconds=1))
        error = None if failure is None else self._error(failure)
        answer = replace(answer, state=state, error=error, ended=ended)
        # Where there is something of it that no database can keep.
        empty = replace(
            self.answer,
            state=MessageState.FAILED,
            error=error or self._error(_not_kept()),
            ended=ended,
        )
        what = f"the end of sessions/{answer.session_id}/messages/{answer.number}"
        end_turn = self._store.end_turn
        return await self._backlog.write(
            what, lambda: end_turn(answer), otherwise=lambda: end_turn(empty)
        )

    def _error(self, failure: Refusal) -> ErrorInfo:
        return ErrorInfo(self._code_of(failure), failure.reason, failure.message)


def _with_text(parts: list[Part], text: str) -> list[Part]:
    match parts:
        case _ if not text:
            return parts
        case [*others, TextPart(before)]:
            return [*others, TextPart(before + text)]
        case _:
            return [*parts, TextPart(text)]


def _state(finish: FinishReason) -> MessageState:
    match finish:
        case FinishReason.LENGTH:
            return MessageState.TRUNCATED
        case FinishReason.REFUSAL:
            raise Refusal(
                Reason.PROVIDER_REFUSED,
                "the provider declined to answer this question; ask it otherwise, or choose "
                "another model",
            )
        case _:
            return MessageState.COMPLETE


def _not_kept() -> Refusal:
    return Refusal(
        Reason.CHAT_FAILED,
        "the answer had something in it that can not be kept; the service's log has the details",
    )


def _unexpected(error: BaseException) -> Refusal:
    return Refusal(
        Reason.CHAT_FAILED,
        f"the answer failed by a fault of the service ({type(error).__name__}); "
        "its log has the details",
    )
