"""Asking questions: everything is checked first, then recorded, then answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.choice import choose
from analytics_service.catalogue.lookup import known
from analytics_service.catalogue.model import CatalogueModel, Stage
from analytics_service.chat.calls import Calls, Surroundings
from analytics_service.chat.conversation import (
    ErrorInfo,
    Message,
    MessageState,
    ModelChoice,
    Role,
    Session,
)
from analytics_service.chat.fence import new_boundary
from analytics_service.chat.meter import reserved
from analytics_service.chat.plan import Caller, Limits, Plan, Question
from analytics_service.chat.prompt import Prompt
from analytics_service.chat.question import (
    check,
    fingerprint,
    first_call,
    new_turn,
    session_after,
)
from analytics_service.chat.replay import Replay
from analytics_service.chat.sessions import owned
from analytics_service.chat.tools import Toolbox
from analytics_service.chat.turn import Turn
from analytics_service.chat.uncertain import end_uncertain
from analytics_service.errors import Reason, Refusal
from analytics_service.providers.base import ProviderRequest
from analytics_service.providers.base import Turn as ProviderTurn
from analytics_service.usage.estimate import upper_bound_tokens

_log = structlog.get_logger(__name__)

MAX_HISTORY = 200
"""Messages of a session that a model is shown, if they fit."""
READINGS = 5
"""How often a session is read, at most, while others change it."""
_LATER = (
    Reason.MODEL_UNKNOWN,
    Reason.MODEL_RETIRED,
    Reason.MODEL_UNAVAILABLE,
    Reason.CONTEXT_TOO_LONG,
)
"""What a request may be refused with that was answered before."""
CANCEL_POLL_SECONDS = 0.5
"""How often a replica asks whether one of its answers is to stop."""


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """How models are chosen where the caller does not say.

    Attributes:
        default: Id or alias; None: the built-in default.
        follow_successors: Take a retired model's successor instead of refusing.
        failover: Models to try, in order, where the chosen one can not be reached.
    """

    default: str | None = None
    follow_successors: bool = False
    failover: tuple[str, ...] = ()


class ChatService:
    """Answers questions."""

    def __init__(
        self,
        around: Surroundings,
        catalogue: Catalogue,
        policy: ModelPolicy,
        limits: Limits,
        toolbox: Callable[[Caller, Sequence[str]], Toolbox],
        *,
        replica: str,
        code_of: Callable[[Refusal], int],
    ) -> None:
        """Puts the parts together.

        Args:
            around: Store, providers, prices, retries, clock.
            catalogue: The models.
            policy: How they are chosen.
            limits: Bounds of every answer.
            toolbox: Makes the tools with a caller's rights, for some jobs or all.
            replica: Id of this process.
            code_of: The gRPC status code of a refusal.
        """
        self._around = around
        self._store = around.store
        self._catalogue = catalogue
        self._policy = policy
        self._limits = limits
        self._prompt = Prompt(_cautious_tokens, around.clock)
        self._toolbox = toolbox
        self._replica = replica
        self._code_of = code_of
        self._beginning: set[asyncio.Task[Turn | Replay]] = set()
        self._running: dict[tuple[str, int], Turn] = {}
        self._draining = False

    def choose(
        self, requested: str | None, session: Session | None, *, follow: bool | None = None
    ) -> ModelChoice:
        """Chooses the model that answers.

        Raises:
            Refusal: MODEL_UNKNOWN, MODEL_RETIRED, MODEL_UNAVAILABLE.
        """
        if follow is None:
            of_session = session is not None and session.follow_successor
            follow = of_session or self._policy.follow_successors
        return choose(
            self._catalogue,
            request=requested or None,
            session=session.model_id if session is not None else None,
            configured=self._policy.default,
            follow=follow,
            today=self._around.clock().date(),
            unavailable=self.unavailable,
        )

    def unavailable(self, model: CatalogueModel) -> str | None:
        """Why a model can not be chosen now, and what to do; None: it can."""
        return self._around.providers.unavailable(model.provider)

    async def start(self, question: Question, caller: Caller) -> Turn | Replay:
        """Begins to answer; the caller reads the turn's events.

        Raises:
            Refusal: The request is not allowed; nothing was recorded.
        """
        # In a task of its own: if the caller goes while the turn is being recorded, there must
        # be somebody to end it.
        beginning = asyncio.create_task(self._begin(question, caller))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._abandon_begun)
            raise

    def _abandon_begun(self, beginning: asyncio.Task[Turn | Replay]) -> None:
        if not beginning.cancelled() and beginning.exception() is None:
            self.abandon(beginning.result())

    async def _begin(
        self, question: Question, caller: Caller, readings: int = READINGS
    ) -> Turn | Replay:
        if self._draining:
            raise _stopping()
        check(question)
        session, history = await self._session(question, caller)
        try:
            return await self._get_answer(question, session, history, caller)
        except Refusal as refusal:
            if refusal.reason is Reason.ETAG_MISMATCH and readings > 1:
                return await self._begin(question, caller, readings - 1)
            if refusal.reason not in _LATER:
                raise
            # What was answered before is told again, whatever has become of its model.
            answer = await self._answered(question, session)
            if answer is None:
                raise
            return Replay(answer)

    async def _answered(self, question: Question, session: Session) -> Message | None:
        if not question.request_id:
            return None
        found = await self._store.find_turn(session.principal, question.request_id)
        if found is None or found[0] != fingerprint(question):
            return None
        return found[1]

    async def _get_answer(
        self, question: Question, session: Session, history: Sequence[Message], caller: Caller
    ) -> Turn | Replay:
        choice = self.choose(question.model_id, session, follow=question.follow_successor)
        plan = self._plan(question, choice, history, caller)
        session = session_after(session, question, choice)
        now = self._around.clock()
        new = new_turn(session, question, choice, now, self._replica)
        record = first_call(plan, new, caller, self._around.new_id())
        has_begun = plan.model.tools  # else the runs are looked at first
        if has_begun:
            request = self._prompt.request(plan, (), limits=self._limits)
            record = reserved(record, model=plan.model, request=request, prices=self._around.prices)
        await self._around.be_known()
        try:
            begun = await self._store.begin_turn(new, record if has_begun else None)
        except Refusal as refusal:
            if refusal.reason is Reason.STORE_UNAVAILABLE:
                error = ErrorInfo(self._code_of(refusal), refusal.reason, refusal.message)
                self._around.backlog.add(
                    f"the end of what may have begun in sessions/{session.id}",
                    lambda: end_uncertain(self._store, new, record if has_begun else None, error),
                )
            raise
        if begun.replayed:
            return Replay(begun.answer)
        number = begun.answer.number
        record = replace(record, session_id=begun.session.id, message_number=number)
        calls = Calls(
            record, choice, plan.model, tuple(plan.failover), self._around, has_begun=has_begun
        )
        turn = Turn(
            plan,
            begun.answer,
            store=self._store,
            backlog=self._around.backlog,
            calls=calls,
            prompt=self._prompt,
            limits=self._limits,
            clock=self._around.clock,
            code_of=self._code_of,
        )
        key = (begun.session.id, number)
        self._running[key] = turn
        turn.start(on_end=lambda: self._running.pop(key, None))
        return turn

    def abandon(self, turn: Turn | Replay) -> None:
        """Stops an answer that nobody reads any more."""
        turn.events.detach()
        if self._draining:
            turn.stop(MessageState.INTERRUPTED, _stopping())
        else:
            turn.stop(MessageState.CANCELLED)

    async def cancel(self, session_id: str, number: int | None, caller: Caller) -> Message:
        """Stops an answer, or whatever is being written in a session; returns it as it stands.

        Raises:
            Refusal: SESSION_NOT_FOUND, MESSAGE_NOT_FOUND.
        """
        await owned(self._store, session_id, caller)
        message = await self._store.get_message(session_id, number)
        if message is None or message.role is not Role.ASSISTANT:
            raise Refusal(
                Reason.MESSAGE_NOT_FOUND,
                f"sessions/{session_id} has no answer {number or ''}".rstrip(),
            )
        turn = self._running.get((session_id, message.number))
        if turn is not None:
            turn.stop(MessageState.CANCELLED)
            await turn.wait()
            return turn.answer
        if message.state is MessageState.RUNNING:
            return await self._store.request_cancel(session_id, message.number) or message
        return message

    async def watch_cancels(self) -> None:
        """Stops what was asked to be stopped at another replica; runs for ever."""
        while True:
            await asyncio.sleep(CANCEL_POLL_SECONDS)
            if not self._running:
                continue
            try:
                asked = await self._store.cancels_requested(self._replica)
            except Refusal as refusal:
                _log.warning("cannot read what is to be cancelled", error=refusal.message)
                continue
            for key in asked:
                if (turn := self._running.get(key)) is not None:
                    turn.stop(MessageState.CANCELLED)

    async def write_late(self) -> None:
        """Writes what the store could not take when it was due; runs for ever."""
        await self._around.backlog.run()

    async def drain(self, seconds: float) -> None:
        """Takes no more questions, and ends those being answered.

        Args:
            seconds: What they get to come to their own end; then they are stopped, in time to
                tell whoever reads.
        """
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_ended()
        await self.close()

    async def close(self) -> None:
        """Stops what is still being answered and waits until it is recorded."""
        self._draining = True
        if self._beginning:
            await asyncio.wait(self._beginning)
        for turn in self._running.values():
            turn.stop(MessageState.INTERRUPTED, _stopping())
        await self._all_ended()
        await self._around.backlog.flush()

    async def _all_ended(self) -> None:
        if self._beginning:
            await asyncio.wait(self._beginning)
        for turn in list(self._running.values()):
            await turn.wait()

    async def _session(
        self, question: Question, caller: Caller
    ) -> tuple[Session, Sequence[Message]]:
        if question.session_id is not None:
            session = await owned(self._store, question.session_id, caller)
            return session, await self._store.last_messages(session.id, MAX_HISTORY)
        now = self._around.clock()
        session = Session(
            id=self._around.new_id(),
            principal=caller.name,
            title="",
            model_id=None,
            follow_successor=False,
            created=now,
            updated=now,
        )
        return session, ()

    def _plan(
        self,
        question: Question,
        choice: ModelChoice,
        history: Sequence[Message],
        caller: Caller,
    ) -> Plan:
        model = known(self._catalogue, choice.used)
        wanted = question.max_output_tokens or self._limits.max_output_tokens
        return Plan(
            question=question,
            choice=choice,
            model=model,
            failover=self._failover(model),
            history=history,
            toolbox=self._toolbox(caller, question.jobs),
            boundary=new_boundary(),
            max_output_tokens=min(wanted, model.max_output_tokens),
        )

    def _failover(self, model: CatalogueModel) -> tuple[CatalogueModel, ...]:
        """Models that may take over: those that serve, and are told and asked in the same way."""
        today = self._around.clock().date()
        chain = (known(self._catalogue, each) for each in self._policy.failover)
        return tuple(
            each
            for each in chain
            if each.id != model.id
            and each.tools == model.tools
            and each.stage_on(today) is not Stage.RETIRED
        )


def _cautious_tokens(turn: ProviderTurn) -> int:
    """Tokens of a part of a prompt, rather too many: half of what there can be at most."""
    return upper_bound_tokens(ProviderRequest("", "", (turn,))) // 2


def _stopping() -> Refusal:
    return Refusal(
        Reason.SHUTTING_DOWN, "the analytics service is shutting down; ask again", retry_delay=1.0
    )
