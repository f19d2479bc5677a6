"""What happens while an answer is got, as it is told to whoever asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from analytics_service.chat.conversation import (
    Message,
    ModelChoice,
    ProposalPart,
    ToolCallPart,
)
from analytics_service.errors import Refusal
from analytics_service.usage.records import UsageRecord


@dataclass(frozen=True, slots=True)
class Started:
    """The answer begins.

    Attributes:
        answer: As recorded.
        choice: Which model answers.
        replayed: It is an earlier answer to the same request.
    """

    answer: Message
    choice: ModelChoice
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """More text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A tool is called."""

    call: ToolCallPart


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """What came of a call."""

    call: ToolCallPart


@dataclass(frozen=True, slots=True)
class Proposed:
    """The model has drafted a change."""

    proposal: ProposalPart


@dataclass(frozen=True, slots=True)
class CallEnded:
    """A call to a provider has ended."""

    record: UsageRecord


@dataclass(frozen=True, slots=True)
class Retried:
    """An attempt failed, and another is made.

    Attributes:
        error: What went wrong.
        delay: Seconds until the next attempt.
        choice: The model of the next attempt.
    """

    error: str
    delay: float
    choice: ModelChoice


@dataclass(frozen=True, slots=True)
class Done:
    """The answer has come to its end, or was stopped."""

    answer: Message


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer has failed.

    Attributes:
        answer: As recorded.
        error: Why.
    """

    answer: Message
    error: Refusal


ChatEvent: TypeAlias = (
    Started | Delta | ToolCalled | ToolReturned | Proposed | CallEnded | Retried | Done | Failed
)
