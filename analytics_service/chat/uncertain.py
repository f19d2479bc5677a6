"""A turn of which nobody knows whether it is on record."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from analytics_service.chat.conversation import ErrorInfo, MessageState
from analytics_service.chat.meter import unsent
from analytics_service.ports import NewTurn, Store
from analytics_service.usage.records import CallOutcome, UsageRecord


async def end_uncertain(
    store: Store, new: NewTurn, call: UsageRecord | None, error: ErrorInfo
) -> None:
    """Ends a turn, if it is on record although the store refused to begin it.

    A connection that is lost during a commit leaves it open what became of it. Nothing was sent
    to a provider then.

    Args:
        store: Where it may be.
        new: What was to be recorded.
        call: The first call, if it was to be recorded too.
        error: What the caller was told.
    """
    answer = await store.get_message(new.session.id, None)
    # Unless it is on record, there is nothing, or what was said before.
    if answer is None or (answer.created, answer.state) != (
        new.answer.created,
        MessageState.RUNNING,
    ):
        return
    if call is not None:
        await store.end_call(unsent(call, CallOutcome.FAILED, error.message))
    ended = answer.created + timedelta(microseconds=1)
    await store.end_turn(replace(answer, state=MessageState.FAILED, error=error, ended=ended))
