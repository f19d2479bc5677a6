"""What an answer is to be got with: settled before anything is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analytics_service.catalogue.model import CatalogueModel
from analytics_service.chat.conversation import Message, ModelChoice
from analytics_service.chat.tools import Toolbox


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: Unique name.
        is_admin: May see and set what is not its own.
        metadata: The caller's credentials, for asking the control plane with its own rights.
    """

    name: str
    is_admin: bool = False
    metadata: tuple[tuple[str, str | bytes], ...] = ()

    def __repr__(self) -> str:
        """Leaves the credentials out."""
        return f"Caller({self.name!r}, is_admin={self.is_admin})"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        content: The question.
        session_id: Where; None: in a new session.
        model_id: Id or alias of the model that is to answer; None: the session's.
        follow_successor: Take a retired model's successor; None: as session and settings say.
        max_output_tokens: Most tokens of one answer of the model; None: as the settings say.
        temperature: Sampling temperature; None: none is sent.
        jobs: Ids of the jobs that it is about; empty: the model finds out.
        request_id: The caller's id of the request; empty: none.
    """

    content: str
    session_id: str | None = None
    model_id: str | None = None
    follow_successor: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    jobs: tuple[str, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an answer is to be got.

    Attributes:
        question: What is asked.
        choice: Which model answers, and why.
        model: That model.
        failover: Models to try where it can not be reached, in order.
        history: What was said before.
        toolbox: The tools, with the caller's rights.
        boundary: Fences what comes from runs.
        max_output_tokens: Most tokens of one answer of the model.
    """

    question: Question
    choice: ModelChoice
    model: CatalogueModel
    failover: Sequence[CatalogueModel]
    history: Sequence[Message]
    toolbox: Toolbox
    boundary: str
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of every answer.

    Attributes:
        max_output_tokens: Most tokens of one answer of the model, unless asked otherwise.
        max_rounds: Most calls of the model for one answer, attempts aside.
        turn_seconds: Most seconds for one answer.
        idle_seconds: Seconds of a provider's silence after which a call has failed.
    """

    max_output_tokens: int = 4_096
    max_rounds: int = 8
    turn_seconds: float = 300.0
    idle_seconds: float = 60.0
