"""What every provider of answers has in common: what it is asked, what it streams, how it fails."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, TypeAlias

from analytics_service.usage.tokens import TokenUsage


@dataclass(frozen=True)  # without slots, so that it can keep its JSON
class ToolSpec:
    """A tool that the model may call.

    Attributes:
        name: Unique name; letters, digits and underscores.
        description: What it does and when to use it, for the model.
        parameters: JSON schema of its arguments, an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    @cached_property
    def parameters_json(self) -> str:
        """The schema as JSON, made once: every call of a model counts its length."""
        return json.dumps(self.parameters, default=dict)  # a mapping need not be a dict


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A call of a tool, as the model wrote it. Both an event and a part of a prompt.

    Attributes:
        call_id: The provider's id of the call.
        name: Name of the tool; perhaps one that does not exist.
        arguments: What to call it with; None: they could not be read, see `error`.
        raw: The arguments as text.
        error: Why the arguments could not be read; empty: they could.
    """

    call_id: str
    name: str
    arguments: Mapping[str, Any] | None
    raw: str = "{}"
    error: str = ""


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What the caller said."""

    text: str


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """What the model said."""

    text: str
    tool_requests: tuple[ToolRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """What came of one call of a tool; follows the AssistantTurn that has the call.

    Attributes:
        call_id: Of the ToolRequest.
        content: Text for the model.
        is_error: The call failed.
    """

    call_id: str
    content: str
    is_error: bool = False


Turn: TypeAlias = UserTurn | AssistantTurn | ToolTurn


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """One call to a provider.

    Attributes:
        model: The provider's own name of the model.
        system: Instructions.
        turns: The conversation; the last one is not the model's.
        tools: Tools that it may call; empty: none.
        max_output_tokens: Most tokens to write, reasoning included.
        temperature: Sampling temperature; None: none is sent.
        idle_timeout: Seconds of silence after which the call has failed.
        stop: Texts that end the answer; only the local model is told, as hosted ones need it not.
    """

    model: str
    system: str
    turns: tuple[Turn, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_output_tokens: int = 4096
    temperature: float | None = None
    idle_timeout: float = 60.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text."""

    text: str


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Tokens so far; each report replaces the one before."""

    tokens: TokenUsage


@dataclass(frozen=True, slots=True)
class Served:
    """The model that serves, as the provider names it. Comes at most once, early."""

    model: str


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    REFUSAL = "refusal"
    """The provider declines to answer, or filtered the answer."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole. A usage report may come before it, nothing after it."""

    reason: FinishReason


ProviderEvent: TypeAlias = TextDelta | ToolRequest | UsageReport | Served | Finished


class Fault(StrEnum):
    """Kinds of failure."""

    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    """It can not be reached, is overloaded, or failed by itself (5xx)."""
    TIMEOUT = "timeout"
    """It was silent for too long."""
    STREAM_BROKEN = "stream_broken"
    """The stream ended without a finish, or could not be read."""
    UNAUTHENTICATED = "unauthenticated"
    """The key is missing, wrong or has no rights."""
    REFUSED = "refused"
    """It does not take the request as it is."""
    CONTEXT_TOO_LONG = "context_too_long"
    MODEL_NOT_FOUND = "model_not_found"


class ProviderError(Exception):
    """A call to a provider failed.

    Attributes:
        fault: What kind of failure.
        message: What went wrong, for people; never a key.
        status: HTTP status; None: there was none.
        retry_after: Seconds that the provider asked to wait; None: it did not.
        is_unbilled: The provider has certainly not charged for the call. That holds where it
            answered with an HTTP error instead of a stream, or was never reached.
    """

    def __init__(
        self,
        fault: Fault,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        is_unbilled: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.is_unbilled = status is not None if is_unbilled is None else is_unbilled

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed a little later."""
        return self.fault in (
            Fault.RATE_LIMITED,
            Fault.UNAVAILABLE,
            Fault.TIMEOUT,
            Fault.STREAM_BROKEN,
        )


class Provider(Protocol):
    """Answers. One object serves many calls at once."""

    def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Streams one answer; ends with `Finished`.

        To close the generator or to cancel the task that awaits it stops
        the call at the provider.

        Raises:
            ProviderError: The call failed; also when the stream ends without a finish.
        """

    async def close(self) -> None:
        """Closes connections."""
