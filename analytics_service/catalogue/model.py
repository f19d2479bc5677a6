"""What the catalogue says of a model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum


class Stage(StrEnum):
    """How long a model will be there."""

    ACTIVE = "active"
    DEPRECATED = "deprecated"
    """It serves until its shutdown date, and is retired from that day on."""
    RETIRED = "retired"


class Tier(StrEnum):
    """How strong a model is, roughly, beside others of its time."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class CostBand(StrEnum):
    """A band of costs; see `analytics_service.usage.prices.band`."""

    FREE = "free"
    LOW = "$"
    MEDIUM = "$$"
    HIGH = "$$$"
    VERY_HIGH = "$$$$"


class Protocol(StrEnum):
    """How a provider is talked to."""

    OPENAI = "openai"
    """OpenAI's chat completions, which many endpoints speak."""
    OPENAI_RESPONSES = "openai-responses"
    """OpenAI's Responses API, the only one in which its newer models call tools."""
    ANTHROPIC = "anthropic"
    LOCAL = "local"
    """In this process."""


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """A provider of the catalogue.

    Attributes:
        id: Unique id, such as "openai".
        display_name: Name for people.
        protocol: How it is talked to.
        base_url: Where it is; None: where its SDK says.
        api_key_env: Environment variable that holds the key; None: it needs none.
        price_list: Id of the provider in genai-prices; None: it is not in there.
    """

    id: str
    display_name: str
    protocol: Protocol
    base_url: str | None = None
    api_key_env: str | None = None
    price_list: str | None = None


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A model of the catalogue.

    Attributes:
        id: Unique id, as callers name it.
        display_name: Name for people.
        provider: Id of its provider.
        provider_model: The provider's own name of it.
        context_window: Most tokens of prompt and answer together.
        max_output_tokens: Most tokens of one answer.
        tools: It can call tools.
        tier: How strong it is.
        aliases: Other names that callers may use.
        stage: The stage as written down; see `stage_on`.
        shutdown: The first day without it; None: not known.
        successor: Id of the model that takes its place; None: none is named.
        note: What to know about it, for people.
    """

    id: str
    display_name: str
    provider: str
    provider_model: str
    context_window: int
    max_output_tokens: int
    tools: bool
    tier: Tier
    aliases: tuple[str, ...] = ()
    stage: Stage = Stage.ACTIVE
    shutdown: date | None = None
    successor: str | None = None
    note: str = ""

    def stage_on(self, day: date) -> Stage:
        """The stage on a day: whatever has a shutdown date is retired from then on."""
        if self.shutdown is not None and day >= self.shutdown:
            return Stage.RETIRED
        return self.stage
