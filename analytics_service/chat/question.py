"""What a question becomes: checked, and put into the records that begin a turn. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from analytics_service.chat.conversation import (
    Message,
    MessageState,
    ModelChoice,
    Role,
    Session,
    TextPart,
)
from analytics_service.chat.plan import Caller, Plan, Question
from analytics_service.chat.sessions import title_of
from analytics_service.errors import invalid
from analytics_service.ports import NewTurn
from analytics_service.usage.records import UsageRecord

MAX_QUESTION = 100_000
"""Characters of a question."""
MAX_REQUEST_ID = 128
"""Characters of a request id."""


def check(question: Question) -> None:
    """Checks what can be checked without looking anything up.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not question.content.strip():
        raise invalid("content", "got nothing to answer, allowed: a question")
    if len(question.content) > MAX_QUESTION:
        raise invalid(
            "content",
            f"got {len(question.content)} characters, allowed: at most {MAX_QUESTION}",
        )
    if len(question.request_id) > MAX_REQUEST_ID:
        raise invalid(
            "request_id",
            f"got {len(question.request_id)} characters, allowed: at most {MAX_REQUEST_ID}",
        )
    if not question.request_id.isprintable():
        raise invalid("request_id", "got control characters, allowed: printable ones")


def session_after(session: Session, question: Question, choice: ModelChoice) -> Session:
    """The session as it shall be: what the caller chose persists."""
    if question.model_id:
        session = replace(session, model_id=choice.used)
    if question.follow_successor is not None:
        session = replace(session, follow_successor=question.follow_successor)
    if not session.title:
        session = replace(session, title=title_of(question.content))
    return session


def fingerprint(question: Question) -> str:
    """Tells a request from another one with the same id."""
    content = [
        question.content,
        question.session_id,
        question.model_id,
        question.follow_successor,
        question.max_output_tokens,
        question.temperature,
        question.jobs,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def new_turn(
    session: Session, question: Question, choice: ModelChoice, now: datetime, replica: str
) -> NewTurn:
    """What is recorded before the answer is got.

    Args:
        session: As it shall be.
        question: What is asked; without a session in it, that one is new.
        choice: Which model answers.
        now: The time.
        replica: Id of this process.
    """
    asked = Message(
        session_id=session.id,
        number=0,
        role=Role.USER,
        state=MessageState.COMPLETE,
        parts=(TextPart(question.content),),
        created=now,
        ended=now,
    )
    answer = replace(
        asked,
        role=Role.ASSISTANT,
        state=MessageState.RUNNING,
        parts=(),
        ended=None,
        model=choice,
    )
    return NewTurn(
        session=session,
        is_new=question.session_id is None,
        question=asked,
        answer=answer,
        request_id=question.request_id,
        fingerprint=fingerprint(question),
        replica=replica,
    )


def first_call(plan: Plan, new: NewTurn, caller: Caller, call_id: str) -> UsageRecord:
    """The record of a turn's first call; nothing is reserved yet."""
    return UsageRecord(
        id=call_id,
        time=new.answer.created,
        principal=caller.name,
        session_id=new.session.id,
        message_number=0,
        requested_model=plan.choice.requested,
        used_model=plan.model.id,
        provider=plan.model.provider,
        round=0,
        attempt=1,
        replica=new.replica,
        reserved=Decimal(0),
    )
