"""The answer to a request that was made before, told once more."""

from __future__ import annotations

from analytics_service.chat.conversation import (
    Message,
    MessageState,
    ProposalPart,
    TextPart,
    ToolCallPart,
)
from analytics_service.chat.events import (
    ChatEvent,
    Delta,
    Done,
    Failed,
    Proposed,
    Started,
    ToolCalled,
    ToolReturned,
)
from analytics_service.chat.stream import EventStream
from analytics_service.errors import Reason, Refusal


class Replay:
    """Stands in for the turn that got an answer before.

    Attributes:
        events: What happened then.
        failure: How it failed; None: it did not.
    """

    def __init__(self, answer: Message) -> None:
        """Tells it.

        Raises:
            Refusal: SESSION_BUSY, as it is still being written.
        """
        told, self.failure = _told(answer)
        self.events = EventStream()
        for event in told:
            self.events.push(event)
        self.events.close()

    def stop(self, state: MessageState, error: Refusal | None = None) -> None:
        """Does nothing, as nothing is going on."""


def _told(answer: Message) -> tuple[list[ChatEvent], Refusal | None]:
    """What was told when the answer was got, calls to providers aside, and how it failed."""
    if answer.state is MessageState.RUNNING:
        raise Refusal(
            Reason.SESSION_BUSY,
            f"the answer to this request is being written: "
            f"sessions/{answer.session_id}/messages/{answer.number}; ask again, or cancel it",
            retry_delay=1.0,
        )
    assert answer.model is not None  # every answer has a choice
    events: list[ChatEvent] = [Started(answer, answer.model, replayed=True)]
    for part in answer.parts:
        match part:
            case TextPart(text):
                events.append(Delta(text))
            case ToolCallPart():
                events += [ToolCalled(part), ToolReturned(part)]
            case ProposalPart():
                events.append(Proposed(part))
    if answer.error is None:
        events.append(Done(answer))
        return events, None
    error = Refusal(_reason(answer.error.reason), answer.error.message)
    events.append(Failed(answer, error))
    return events, error


def _reason(name: str) -> Reason:
    """A recorded reason; one of another version is an unexpected one here."""
    return Reason(name) if name in Reason.__members__ else Reason.CHAT_FAILED
