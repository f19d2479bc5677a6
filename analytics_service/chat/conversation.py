"""Sessions and messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal, TypeAlias


class ModelSource(StrEnum):
    """Where the choice of a model came from."""

    REQUEST = "request"
    SESSION = "session"
    CONFIGURATION = "configuration"
    BUILT_IN = "built_in"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model was asked for, which one answers, and why.

    Attributes:
        requested: Id or alias as it was asked for.
        source: Who asked for it.
        used: Id of the model that is used.
        served: What the provider says has served; None: it has not said, or not yet.
        difference: Why these differ; empty: they do not.
        notice: What to know, such as that the model is shut down soon; empty: nothing.
    """

    requested: str
    source: ModelSource
    used: str
    served: str | None = None
    difference: str = ""
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation.

    Attributes:
        id: Unique id.
        principal: Name of the caller whose it is.
        title: For people.
        model_id: Id of the model that answers here; None: the service's default.
        follow_successor: A retired model is followed to its successor.
        created: When it was created.
        updated: When it or its messages last changed.
        message_count: Messages in it.
        cost: Known costs of its calls, in US dollars.
        unknown_cost_calls: Calls of which the cost is not known.
        version: Grows with every change.
    """

    id: str
    principal: str
    title: str
    model_id: str | None
    follow_successor: bool
    created: datetime
    updated: datetime
    message_count: int = 0
    cost: Decimal = Decimal(0)
    unknown_cost_calls: int = 0
    version: int = 1


class Role(StrEnum):
    """Who wrote a message."""

    USER = "user"
    ASSISTANT = "assistant"


class MessageState(StrEnum):
    """How far an answer got."""

    RUNNING = "running"
    COMPLETE = "complete"
    TRUNCATED = "truncated"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why something failed, as a status would tell it.

    Attributes:
        code: gRPC status code, as a number.
        reason: Constant in UPPER_SNAKE.
        message: What was wrong and what to do.
    """

    code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A call of a tool, and what came of it.

    Attributes:
        call_id: Id of the call within its message.
        tool: Name of the tool.
        arguments: What it was called with; None: the arguments could not be read.
        result: What it returned; None: not yet, or it failed.
        error: Why it failed; empty: it did not.
        by_service: The service called it by itself, for a model that can not call tools.
        duration: Seconds that it took; None: it is running.
        raw_arguments: The arguments as the model wrote them.
        round: Which round of the answer it belongs to.
    """

    call_id: str
    tool: str
    arguments: Mapping[str, Any] | None
    result: Mapping[str, Any] | None = None
    error: str = ""
    by_service: bool = False
    duration: float | None = None
    raw_arguments: str = "{}"
    round: int = 0
    kind: Literal["tool_call"] = "tool_call"


@dataclass(frozen=True, slots=True)
class ProposalPart:
    """A drafted change. The service never submits it.

    Attributes:
        request: midcourse.control.v1.UpdateParametersRequest, serialized.
        validated: midcourse.control.v1.Update as it would be accepted, serialized; None: it
            would not be.
        error: Why it would be refused; None: it would not.
        rationale: Why the model proposes it.
    """

    request: bytes
    validated: bytes | None
    error: ErrorInfo | None
    rationale: str = ""
    kind: Literal["proposal"] = "proposal"


Part: TypeAlias = TextPart | ToolCallPart | ProposalPart


@dataclass(frozen=True, slots=True)
class Citation:
    """Data that an answer rests on.

    Attributes:
        job: Id of the job.
        what: "metric", "job" or "updates".
        metric: Name of the metric; empty: it is not one.
        first_step: First optimizer step of the range; None: no steps.
        last_step: Last optimizer step of the range; None: no steps.
    """

    job: str
    what: str
    metric: str = ""
    first_step: int | None = None
    last_step: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message.

    Attributes:
        session_id: Its session.
        number: Its place, from 1 on.
        role: Who wrote it.
        state: How far it got.
        parts: In the order in which they came.
        created: When it was written, or begun.
        ended: When it came to its end; None: it is being written.
        model: Which model answered; None: the caller's message.
        citations: The data that the answer rests on.
        error: What went wrong; None: nothing.
        cost: Known costs of its calls, in US dollars.
        unknown_cost_calls: Calls of which the cost is not known.
    """

    session_id: str
    number: int
    role: Role
    state: MessageState
    parts: tuple[Part, ...]
    created: datetime
    ended: datetime | None
    model: ModelChoice | None = None
    citations: tuple[Citation, ...] = ()
    error: ErrorInfo | None = None
    cost: Decimal = Decimal(0)
    unknown_cost_calls: int = 0

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))
