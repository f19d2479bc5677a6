"""What the use cases need of the world: a store. Its constraints are stated here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol, TypeAlias

from analytics_service.chat.conversation import Message, Session
from analytics_service.usage.records import (
    Budget,
    BudgetKey,
    UsageFilter,
    UsageGroup,
    UsageRecord,
    UsageSummary,
)
from grpc_runtime.audit.log import AuditStore

Clock: TypeAlias = Callable[[], datetime]
"""Tells the time, with UTC as its zone."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What to change of a session; None: nothing.

    Attributes:
        title: The new title.
        model_id: The new model; empty: back to the service's default.
        follow_successor: Whether to follow a retired model to its successor.
    """

    title: str | None = None
    model_id: str | None = None
    follow_successor: bool | None = None


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A question that is to be recorded, with the answer that is about to be got.

    Attributes:
        session: As it shall be after: a new one is created, else the model, the title and
            `follow_successor` are taken over.
        is_new: Whether the session is to be created.
        question: The caller's message; its number is set by the store.
        answer: The answer, running and empty; its number is set by the store.
        request_id: The caller's id of the request; empty: none.
        fingerprint: Digest of the request's content, to tell its repetition from its misuse.
        replica: The process that gets the answer.
    """

    session: Session
    is_new: bool
    question: Message
    answer: Message
    request_id: str
    fingerprint: str
    replica: str


@dataclass(frozen=True, slots=True)
class TurnBegun:
    """The turn is on disk.

    Attributes:
        session: As stored.
        answer: The answer, with its number; where `replayed`, as far as it got.
        replayed: The request was made before; nothing was written.
    """

    session: Session
    answer: Message
    replayed: bool


@dataclass(frozen=True, slots=True)
class SessionCursor:
    """A place in a listing of sessions, which is ordered by `updated`, the newest first."""

    updated: datetime
    id: str


class Store(AuditStore, Protocol):
    """Durable state. Every method is one transaction; a write returns when it is on disk.

    Refusals are `analytics_service.errors.Refusal`. Any method may refuse with
    STORE_UNAVAILABLE, and with SHUTTING_DOWN after `close`.

    A session with a message that is RUNNING is busy. Budgets: what a call reserves counts
    against every budget with a limit that it falls under (its principal or all, its model or
    all, each day and month) in the span that holds the call's time, from `begin_*` to `end_*`;
    then its charge does. A call is refused with BUDGET_EXCEEDED if for any of these
    spent + reserved + its reservation would exceed the limit. So limits hold however many
    calls and replicas there are, as long as reservations are upper bounds. Setting a limit
    counts what was spent in its span before.

    The record of a change that a caller has asked for is committed with the change: there is
    neither without the other.
    """

    async def create_session(self, session: Session) -> None:
        """Records a new session."""

    async def get_session(self, session_id: str) -> Session | None:
        """Returns a session."""

    async def list_sessions(
        self, principal: str, after: SessionCursor | None, limit: int
    ) -> Sequence[Session]:
        """Returns a principal's sessions, the one updated last first."""

    async def change_session(
        self, session_id: str, change: SessionChange, now: datetime, version: int | None
    ) -> Session:
        """Changes a session.

        Raises:
            Refusal: SESSION_NOT_FOUND; ETAG_MISMATCH if `version` is given and not the current.
        """

    async def delete_session(self, session_id: str, version: int | None) -> None:
        """Deletes a session with its messages; usage records stay.

        Raises:
            Refusal: SESSION_NOT_FOUND, ETAG_MISMATCH; SESSION_BUSY while an answer is running.
        """

    async def list_messages(self, session_id: str, after: int, limit: int) -> Sequence[Message]:
        """Returns messages with a number above `after`, in order."""

    async def last_messages(self, session_id: str, limit: int) -> Sequence[Message]:
        """Returns the newest messages, in order."""

    async def get_message(self, session_id: str, number: int | None) -> Message | None:
        """Returns a message; with None the newest of the session."""

    async def find_turn(self, principal: str, request_id: str) -> tuple[str, Message] | None:
        """Returns the fingerprint and the answer of a request that was made before."""

    async def begin_turn(self, turn: NewTurn, call: UsageRecord | None) -> TurnBegun:
        """Records question, running answer and the first call with its reservation, at once.

        A request_id that the principal has used before with the same fingerprint writes nothing
        and returns what it led to. `call` gets the session's id and the answer's number.

        Raises:
            Refusal: SESSION_NOT_FOUND, SESSION_BUSY, REQUEST_ID_REUSED, BUDGET_EXCEEDED;
                ETAG_MISMATCH, the session has changed since it was read. Nothing is written then.
        """

    async def begin_call(self, call: UsageRecord) -> None:
        """Records a running call and reserves for it.

        Raises:
            Refusal: BUDGET_EXCEEDED; then nothing is written.
        """

    async def end_call(self, call: UsageRecord, answer: Message | None = None) -> None:
        """Settles a running call: its reservation goes, its charge stays. Saves the answer too.

        The sums of message and session (`cost`, `unknown_cost_calls`) are the store's to keep.
        A call that is settled already (by recovery) stays as it is.
        """

    async def end_turn(self, answer: Message) -> Message:
        """Records the end of an answer; returns it as stored, with its sums."""

    async def request_cancel(self, session_id: str, number: int) -> Message | None:
        """Asks whichever replica runs the answer to stop it; returns it as it stands."""

    async def cancels_requested(self, replica: str) -> Sequence[tuple[str, int]]:
        """Returns session and number of the running answers of a replica that are to stop."""

    async def beat(self, replica: str, now: datetime) -> None:
        """Shows that a replica is alive."""

    async def beats(self) -> Mapping[str, datetime]:
        """Returns when each replica has shown that it is alive, by its own clock."""

    async def recover(self, replica: str, silent: Mapping[str, datetime], now: datetime) -> int:
        """Settles what dead replicas left: calls and answers become INTERRUPTED.

        Dead is a replica, not this one, whose beat is still the one in `silent`, and one that has
        none. Costs become unknown, reservations go, charges stay. Returns how many calls and
        answers were settled.
        """

    async def list_usage(
        self, which: UsageFilter, before: str | None, limit: int
    ) -> Sequence[UsageRecord]:
        """Returns records, the newest first, with an id below `before`."""

    async def sum_usage(self, which: UsageFilter, group: UsageGroup) -> Sequence[UsageSummary]:
        """Returns sums by key, in the order of the keys; exact."""

    async def get_budget(self, key: BudgetKey, now: datetime) -> Budget:
        """Returns a budget in its present span, also one without a limit."""

    async def list_budgets(self, now: datetime) -> Sequence[Budget]:
        """Returns all budgets that have a limit, in the order of their keys."""

    async def set_budget(self, key: BudgetKey, limit: Decimal | None, now: datetime) -> Budget:
        """Sets or lifts a limit."""

    async def prune(
        self, *, sessions_before: datetime | None, usage_before: datetime | None, limit: int
    ) -> int:
        """Deletes at most `limit` old sessions and usage records each; returns how many.

        Sessions go by when they were last updated and never while busy, usage by its time.
        Usage of the present month stays: budgets are made of it.
        """

    async def prune_audit_records(self, before: datetime, limit: int) -> int:
        """Deletes at most `limit` records before a time; returns how many were deleted."""

    async def close(self) -> None:
        """Finishes what was begun and closes the database. May be called more than once."""


RECOVERY_SILENCE = timedelta(seconds=30)
"""A replica counts as dead after so long without a beat, with the store there all the time."""
