"""Tokens by kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one call, as far as they are known.

    No kind is part of another, but for `reasoning`, which `output` includes.

    Attributes:
        input: Tokens of the prompt that were read anew.
        output: Tokens of the answer, reasoning included.
        cache_read: Tokens of the prompt from the provider's cache.
        cache_write: Tokens of the prompt that were written to the provider's cache.
        reasoning: Tokens of the answer that were spent on reasoning.
    """

    input: int | None = None
    output: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None


UNKNOWN = TokenUsage()
"""Nothing is known."""
