"""What a failure at a provider means, told without a key: pure.

Both protocols tell what went wrong by an HTTP status, by a name in the body, or only in words.
Names win over the status (an exhausted quota comes as 429 like a rate limit, but does not go
away), and failures in the middle of a stream have a name alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from analytics_service.providers.base import Fault, ProviderError
from grpc_runtime.logging import REDACTED, redact

_LONGEST = 500
"""Characters of a provider's own words that an error repeats."""

_NAMES = {
    "authentication_error": Fault.UNAUTHENTICATED,
    "invalid_api_key": Fault.UNAUTHENTICATED,
    "permission_error": Fault.UNAUTHENTICATED,
    "insufficient_quota": Fault.REFUSED,
    "billing_error": Fault.REFUSED,
    "billing_hard_limit_reached": Fault.REFUSED,
    "rate_limit_error": Fault.RATE_LIMITED,
    "rate_limit_exceeded": Fault.RATE_LIMITED,
    "overloaded_error": Fault.UNAVAILABLE,
    "api_error": Fault.UNAVAILABLE,
    "server_error": Fault.UNAVAILABLE,
    "internal_server_error": Fault.UNAVAILABLE,
    "timeout_error": Fault.TIMEOUT,
    "model_not_found": Fault.MODEL_NOT_FOUND,
    "not_found_error": Fault.MODEL_NOT_FOUND,
    "context_length_exceeded": Fault.CONTEXT_TOO_LONG,
    "exceed_context_size_error": Fault.CONTEXT_TOO_LONG,
    "request_too_large": Fault.CONTEXT_TOO_LONG,
    "invalid_prompt": Fault.REFUSED,
    "bio_policy": Fault.REFUSED,
    "misalignment_policy_violation": Fault.REFUSED,
    "data_residency_mismatch": Fault.REFUSED,
}
_ANY_REQUEST_ERROR = "invalid_request_error"
"""Says less than the status and the words that come with it."""
_STATUSES: dict[int, Fault] = {
    HTTPStatus.UNAUTHORIZED: Fault.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: Fault.UNAUTHENTICATED,
    HTTPStatus.NOT_FOUND: Fault.MODEL_NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT: Fault.TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Fault.CONTEXT_TOO_LONG,
    HTTPStatus.TOO_MANY_REQUESTS: Fault.RATE_LIMITED,
}
# vLLM, llama.cpp, xAI and Anthropic have no name for these.
_TOO_LONG = re.compile(
    r"context[ _-](length|size|window|limit)|maximum prompt length|prompt is too long"
    r"|too many (input )?tokens",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"\bmodel\b.{0,120}\b(not found|does not exist|not exist)", re.IGNORECASE)

_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|rk|key|xai|gsk|hf)[-_](?=[\w*.\-]*[\d*])[\w*.\-]{6,}"  # with a usual prefix
    r"|[^\s'\":,;]{0,64}\*{3,}[^\s'\":,;]{0,64}"  # one with its middle starred out, as OpenAI's
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is called, for the errors.

    Attributes:
        name: The provider's name for people.
        key_env: Environment variable that the key came from; None: it needs none.
        key: The key; kept out of every text.
    """

    name: str
    key_env: str | None = None
    key: str = field(default="", repr=False)

    def error(
        self,
        fault: Fault,
        what: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        is_unbilled: bool | None = None,
    ) -> ProviderError:
        """An error about this endpoint, its text freed of keys."""
        message = f"{self.name}: {self.clean(what, 2 * _LONGEST)}"
        if fault is Fault.UNAUTHENTICATED and self.key_env is not None:
            message += f" (its key is read from {self.key_env})"
        return ProviderError(
            fault, message, status=status, retry_after=retry_after, is_unbilled=is_unbilled
        )

    def refusal(
        self,
        body: object,
        *,
        words: str = "",
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        now: datetime | None = None,
    ) -> ProviderError:
        """The error that an answer with an error status, or an error in a stream, stands for.

        Args:
            body: The body, read from JSON if it was JSON.
            words: What to say if the body says nothing.
            status: HTTP status; None: the error came in a stream that had begun.
            headers: Of the answer.
            now: The present, for a Retry-After that is a date; by default the clock's.
        """
        names, said = _names_and_words(body)
        said = self.clean(said)
        has_begun = status is None
        if status is None and (number := _status_among(names)) is not None:
            status = number  # routers send the upstream's status as the name
        fault = fault_of(status, names, said)
        told = said or words or "no reason given"
        if status is not None:
            told = f"HTTP {status}: {told}"
        if status == HTTPStatus.BAD_REQUEST and "stream_options" in told:
            told += (
                "; the endpoint does not take stream_options.include_usage, without which the"
                " cost of an answer is unknown: use a version of it that does"
            )
        wait = retry_after(headers or {}, now or datetime.now(UTC))
        return self.error(fault, told, status=status, retry_after=wait, is_unbilled=not has_begun)

    def clean(self, text: str, longest: int = _LONGEST) -> str:
        """One line of at most so many characters, without keys and control characters."""
        text = " ".join(text.split())
        if self.key:
            text = text.replace(self.key, REDACTED)
        text = _KEY_LIKE.sub(REDACTED, text[: 4 * longest])
        text = str(redact(None, "", {"text": text})["text"])
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        return text if len(text) <= longest else f"{text[: longest - 1]}…"


def fault_of(status: int | None, names: tuple[str, ...], words: str) -> Fault:
    """The kind of failure.

    Args:
        status: HTTP status; None: there was none.
        names: The body's names of the error, the most telling first.
        words: What the body says for people.
    """
    if status is not None and status >= 500:
        return Fault.UNAVAILABLE
    for name in names:
        if name in _NAMES:
            return _NAMES[name]
    if status != HTTPStatus.TOO_MANY_REQUESTS:  # which may speak of too many tokens a minute
        if _TOO_LONG.search(words):
            return Fault.CONTEXT_TOO_LONG
        if _NO_MODEL.search(words):
            return Fault.MODEL_NOT_FOUND
    if status is not None:
        return _STATUSES.get(status, Fault.REFUSED)
    return Fault.REFUSED if _ANY_REQUEST_ERROR in names else Fault.STREAM_BROKEN


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds that an answer asks to wait; None: it does not say, or not readably.

    Reads `retry-after-ms` and `retry-after`, the latter in seconds or as an HTTP date.

    Args:
        headers: Of the answer; their names in lower case, or in any case if it does not care.
        now: The present.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _seconds(text)
    if seconds is not None or text is None:
        return seconds
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:  # "-0000", a time without a zone, is UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


def _seconds(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _names_and_words(body: object) -> tuple[tuple[str, ...], str]:
    """What a body calls the error, the most telling name first, and what it says of it."""
    if isinstance(body, str):
        return (), body
    if not isinstance(body, Mapping):
        return (), ""
    inner: Mapping[str, Any] = body
    if isinstance(body.get("error"), Mapping):
        inner = body["error"]
    elif isinstance(body.get("error"), str):  # Ollama, xAI
        return (str(body.get("code") or ""),), body["error"]
    names = tuple(str(inner[key]) for key in ("code", "type") if inner.get(key))
    message = inner.get("message")
    return names, message if isinstance(message, str) else ""


def _status_among(names: tuple[str, ...]) -> int | None:
    for name in names:
        if re.fullmatch(r"[45]\d\d", name):
            return int(name)
    return None
