"""What every tool is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from analytics_service.chat.conversation import Citation, ProposalPart
from analytics_service.chat.tools.arguments import Arguments, parameters_schema
from analytics_service.providers.base import ToolSpec
from control_plane.client import Client

A = TypeVar("A", bound=Arguments)


class ToolError(Exception):
    """A tool can not do what the model asks; the message tells the model why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a tool has read.

    Attributes:
        result: For the model, as JSON; free text of runs is cut to length.
        citations: The data that it consists of.
        proposal: The change that was drafted; None: none.
    """

    result: Mapping[str, Any]
    citations: tuple[Citation, ...] = ()
    proposal: ProposalPart | None = None


@dataclass(frozen=True, slots=True)
class Tool(Generic[A]):
    """A tool that the model may call.

    Attributes:
        name: Unique name.
        description: What it does and when to use it, for the model.
        arguments: What it takes.
        run: Reads; blocks, and raises MidcourseError and ToolError.
    """

    name: str
    description: str
    arguments: type[A]
    run: Callable[[Client, A], Reading]

    @property
    def spec(self) -> ToolSpec:
        """What a provider is told about it."""
        return _spec(self.name, self.description, self.arguments)

    def read(self, client: Client, arguments: Mapping[str, Any]) -> Reading:
        """Checks the arguments and reads.

        Raises:
            pydantic.ValidationError: The arguments are wrong.
            ToolError: It can not do what they ask.
            MidcourseError: The control plane refused, or could not be asked.
        """
        return self.run(client, self.arguments.model_validate(dict(arguments)))


@cache
def _spec(name: str, description: str, arguments: type[Arguments]) -> ToolSpec:
    """Made once: a schema takes more than a millisecond, and every question needs all of them."""
    return ToolSpec(name, description, parameters_schema(arguments))
