"""An answer, put together from the events of a chat: pure."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from analytics_service._client.money import cost
from grpc_runtime.client.errors import MidcourseError, UnavailableError
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's answer, come to its end.

    Attributes:
        message: The answer as it is recorded; its state says whether it is whole, was cut at the
            limit of its length, or was stopped.
        session: Resource name of the session.
        model: Which model was asked for, used and served, and why they differ.
        usage: What each call to a provider used and cost, failed attempts included.
        replayed: It is an earlier answer to the same request id.
    """

    message: session_pb2.Message
    session: str
    model: model_pb2.ModelChoice
    usage: tuple[usage_pb2.UsageRecord, ...]
    replayed: bool

    @property
    def text(self) -> str:
        """The answer's text; Markdown."""
        return text_of(self.message)

    @property
    def cost(self) -> Decimal | None:
        """What it cost, in US dollars; None if that is not known."""
        return cost(self.message)

    @property
    def proposed_updates(self) -> list[session_pb2.ProposedUpdate]:
        """The changes that the model has drafted; nobody has submitted them."""
        return [
            part.proposed_update
            for part in self.message.parts
            if part.WhichOneof("kind") == "proposed_update"
        ]


def text_of(message: session_pb2.Message) -> str:
    """Returns the text of a message, without calls of tools and proposals."""
    return "".join(part.text for part in message.parts if part.WhichOneof("kind") == "text")


class Collector:
    """What is known of an answer while it comes.

    Attributes:
        started: The first event; None before it.
        message: The answer at its end; None before that.
        usage: What calls to providers used and cost so far.
        proposed_updates: The changes that the model has drafted so far.
    """

    def __init__(self) -> None:
        self.started: pb.ChatStarted | None = None
        self.message: session_pb2.Message | None = None
        self.usage: list[usage_pb2.UsageRecord] = []
        self.proposed_updates: list[session_pb2.ProposedUpdate] = []
        self.begun = False
        self._model: model_pb2.ModelChoice | None = None
        self._deltas: list[str] = []

    @property
    def text(self) -> str:
        """The text so far; at the end, as it is recorded."""
        return "".join(self._deltas) if self.message is None else text_of(self.message)

    @property
    def model(self) -> model_pb2.ModelChoice | None:
        """Which model answers; None before the first event."""
        if self.message is not None and self.message.HasField("model"):
            return self.message.model
        return self._model

    def feed(self, event: pb.ChatResponse) -> None:
        """Takes the next event; kinds that a newer service may send are passed over."""
        self.begun = True
        match event.WhichOneof("event"):
            case "started":
                self.started = event.started
                self._model = event.started.model
            case "text_delta":
                self._deltas.append(event.text_delta)
            case "proposed_update":
                self.proposed_updates.append(event.proposed_update)
            case "usage":
                self.usage.append(event.usage)
            case "retry":
                self._model = event.retry.model
            case "done":
                self.message = event.done.message
            case _:
                pass  # told by other events too, or by the status that ends the stream

    def truncation(self) -> MidcourseError | None:
        """Returns the error of a stream that ended well and too early; None if it is whole."""
        if self.message is not None:
            return None
        where = f"; {self.started.message} has what there is of it" if self.started else ""
        return UnavailableError(f"the stream ended before the answer did{where}")

    def answer(self) -> Answer:
        """Returns the answer, once it is there."""
        assert self.message is not None
        started = self.started or pb.ChatStarted()
        return Answer(
            message=self.message,
            session=started.session,
            model=self.model or started.model,
            usage=tuple(self.usage),
            replayed=started.replayed,
        )
