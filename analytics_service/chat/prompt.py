"""What a model is told: its part, what was said before, the question, and what was read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from analytics_service.chat.conversation import (
    Message,
    MessageState,
    Part,
    Role,
    TextPart,
    ToolCallPart,
)
from analytics_service.chat.fence import clipped, fence_json, fence_text, rule, tags
from analytics_service.chat.plan import Limits, Plan
from analytics_service.chat.tools.sentences import Read, sentences
from analytics_service.errors import Reason, Refusal
from analytics_service.ports import Clock
from analytics_service.providers.base import (
    AssistantTurn,
    ProviderRequest,
    ToolRequest,
    ToolSpec,
    ToolTurn,
    Turn,
    UserTurn,
)

_INSTRUCTIONS: Final = """\
You help people understand their machine learning training runs: what happened, when, why, and \
what may help. The runs are watched and changed live through Midcourse's control plane. It is \
{now} UTC.{about}

- Read with the tools before you answer; take every number from what they return. Never invent, \
guess or recall a number, and do not work out anew what they have worked out.
- Cite what each statement rests on, with job, metric and range of steps, such as \
[job demo, loss, steps 10–20], [job demo, change 3] or [job demo].
- Where the data does not tell, say that it is not known, and what would tell. Keep apart what \
was measured and what you conclude from it: that one thing came after another does not show that \
it caused it.
- You can not change a run. Where a change is asked for or clearly called for, draft it with \
propose_update; a person decides whether to submit it. Never say that a change was made unless \
update_history shows it as applied.
- Answer in the language of the question, short and to the point, in Markdown.

{rule}"""

LEFT_OUT: Final = "[Earlier messages of this conversation were left out for want of room.]"
_RAW_LENGTH: Final = 500


def system_prompt(*, boundary: str, now: datetime, tools: bool, jobs: Sequence[str] = ()) -> str:
    """The instructions.

    Args:
        boundary: Of this turn's fence.
        now: The time, UTC.
        tools: The model can call tools; one that can not gets few words.
        jobs: Ids of the jobs that the question is about; empty: whichever.
    """
    if not tools:
        return (
            "You answer questions about machine learning training runs. Use only the facts "
            "given with the question. Name the job, the metric and the steps. If the facts do "
            "not say it, say that you do not know. Answer in the language of the question, in "
            f"one or two sentences. {rule(boundary)}"
        )
    about = f" The question is about these jobs: {', '.join(jobs)}." if jobs else ""
    return _INSTRUCTIONS.format(now=f"{now:%Y-%m-%d %H:%M}", about=about, rule=rule(boundary))


def build_turns(
    history: Sequence[Message],
    question: str,
    outcomes_by_service: Sequence[Read],
    boundary: str,
    *,
    so_far: Sequence[Part] = (),
    tools: bool = True,
) -> tuple[Turn, ...]:
    """Renders a conversation for a provider.

    Every call of a tool is followed by its result, whatever became of it. The ids of calls are
    made anew: not every provider's are unique.

    Args:
        history: What was said before, in order.
        question: What is asked now.
        outcomes_by_service: What the service has read by itself for it.
        boundary: Of this turn's fence.
        so_far: Parts of the answer to it that there are already.
        tools: Calls of tools are rendered as such. Otherwise those of earlier answers are left
            out, and what was read for this one goes along with the question.
    """
    turns: list[Turn] = []
    for message in history:
        if message.role is Role.USER:
            turns.append(UserTurn(message.text))
        else:
            turns.extend(_answer(message, boundary, tools=tools))
    calls = [part for part in so_far if isinstance(part, ToolCallPart)]
    given = [fence_text(sentences(outcomes_by_service), boundary)] if outcomes_by_service else []
    if not tools:
        given += [tool_content(each, boundary) for each in calls]
    turns.append(UserTurn("\n\n".join([*given, question])))
    if tools:
        turns.extend(_rounds(so_far, f"{len(history) + 1}", boundary))
    return tuple(turns)


def tool_content(of: Read | ToolCallPart, boundary: str) -> str:
    """What a call of a tool came to, as the model reads it."""
    if of.result is not None:
        return fence_json(of.result, boundary)
    return fence_json({"error": of.error or "the call did not come to its end"}, boundary)


def fit(turns: Sequence[Turn], max_tokens: int, count: Callable[[Turn], int]) -> tuple[Turn, ...]:
    """Leaves out the oldest exchanges, as many as must be, and says so in the first turn kept.

    An exchange is what somebody says and all that is answered to it, calls of tools with their
    results included; it stays whole or goes whole, and the newest stays.

    Args:
        turns: From `build_turns`.
        max_tokens: Room that there is.
        count: Tokens of a turn.

    Raises:
        Refusal: CONTEXT_TOO_LONG; not even the newest exchange fits.
    """
    exchanges = _exchanges(turns)
    sizes = [sum(map(count, exchange)) for exchange in exchanges]
    if sum(sizes) <= max_tokens:
        return tuple(turns)
    for dropped in range(1, len(exchanges)):
        first, *rest = exchanges[dropped]
        assert isinstance(first, UserTurn)
        noted = UserTurn(f"{LEFT_OUT}\n\n{first.text}")
        if sum(sizes[dropped:]) - count(first) + count(noted) <= max_tokens:
            later = [turn for exchange in exchanges[dropped + 1 :] for turn in exchange]
            return (noted, *rest, *later)
    raise Refusal(
        Reason.CONTEXT_TOO_LONG,
        f"the question and what was read for it take about {sizes[-1]} tokens, and the model has "
        f"room for {max(0, max_tokens)}; ask for less, or choose a model with a larger context "
        "window",
        metadata={"tokens": str(sizes[-1]), "room": str(max(0, max_tokens))},
    )


class Prompt:
    """Makes the requests of an answer."""

    def __init__(self, count: Callable[[Turn], int], clock: Clock) -> None:
        """Takes its parts.

        Args:
            count: Tokens of a turn; rather too many than too few.
            clock: Tells the time.
        """
        self._count = count
        self._clock = clock

    def request(
        self, plan: Plan, parts: Sequence[Part], *, limits: Limits, with_tools: bool = True
    ) -> ProviderRequest:
        """What the model is asked in one round.

        Args:
            plan: How the answer is to be got.
            parts: Of the answer, as far as there are any.
            limits: Bounds.
            with_tools: The model may call tools in this round.

        Raises:
            Refusal: CONTEXT_TOO_LONG.
        """
        model, question = plan.model, plan.question
        tools = with_tools and model.tools
        specs = plan.toolbox.specs if tools else ()
        system = system_prompt(
            boundary=plan.boundary, now=self._clock(), tools=model.tools, jobs=question.jobs
        )
        # An answer may be long, but the question needs room too.
        max_output = min(plan.max_output_tokens, model.max_output_tokens, model.context_window // 2)
        by_service = [p for p in parts if isinstance(p, ToolCallPart) and p.by_service]
        turns = build_turns(
            plan.history,
            question.content,
            by_service,
            plan.boundary,
            so_far=[part for part in parts if part not in by_service],
            tools=tools,
        )
        room = model.context_window - max_output - self._count(UserTurn(system + _said(specs)))
        return ProviderRequest(
            model.provider_model,
            system,
            fit(turns, room, self._count),
            specs,
            max_output,
            question.temperature,
            limits.idle_seconds,
            # A model that writes these repeats what it has read, and goes on to do so.
            stop=tags(plan.boundary),
        )


def _said(specs: Iterable[ToolSpec]) -> str:
    return "".join(each.name + each.description + each.parameters_json for each in specs)


def _exchanges(turns: Iterable[Turn]) -> list[list[Turn]]:
    exchanges: list[list[Turn]] = []
    for turn in turns:
        if isinstance(turn, UserTurn) or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    return exchanges


_UNFINISHED: Final[Mapping[MessageState, str]] = {
    MessageState.RUNNING: "[This answer is not finished.]",
    MessageState.TRUNCATED: "[This answer was cut off at its longest.]",
    MessageState.CANCELLED: "[This answer was stopped by the person who asked.]",
    MessageState.FAILED: "[This answer failed.]",
    MessageState.INTERRUPTED: "[This answer was interrupted.]",
}


def _answer(message: Message, boundary: str, *, tools: bool) -> Iterator[Turn]:
    parts = [p for p in message.parts if tools or isinstance(p, TextPart)]
    turns = list(_rounds(parts, str(message.number), boundary))
    note = _UNFINISHED.get(message.state, "")
    match turns:
        case [*_, AssistantTurn(text)]:
            turns[-1] = AssistantTurn(f"{text}\n\n{note}" if note else text)
        case _:  # an answer always ends with something said
            turns.append(AssistantTurn(note or "[This answer has no text.]"))
    yield from turns


@dataclass(slots=True)
class _Round:
    """Text, and the calls that came with it."""

    text: str = ""
    calls: list[ToolCallPart] = field(default_factory=list)

    def takes(self, call: ToolCallPart) -> bool:
        """Whether a call belongs to it."""
        return not self.calls or self.calls[0].round == call.round


def _rounds(parts: Iterable[Part], prefix: str, boundary: str) -> Iterator[Turn]:
    """Renders an answer's parts round by round: text with calls of tools, then their results."""
    rounds = [_Round()]
    waiting = ""  # text after a call belongs to the next round, unless the same one goes on
    for part in parts:
        match part:
            case TextPart(text):
                if rounds[-1].calls:
                    waiting += text
                else:
                    rounds[-1].text += text
            case ToolCallPart():
                if not rounds[-1].takes(part):
                    rounds.append(_Round(waiting))
                else:
                    rounds[-1].text += waiting
                waiting = ""
                rounds[-1].calls.append(part)
            case _:  # what came of a draft, the result of its call says
                pass
    if waiting:
        rounds.append(_Round(waiting))
    number = 0
    for each in rounds:
        ids = [f"call_{prefix}_{number + i}" for i in range(len(each.calls))]
        number += len(ids)
        requests = tuple(map(_request, ids, each.calls))
        if each.text.strip() or requests:
            yield AssistantTurn(each.text, requests)
        for call_id, call in zip(ids, each.calls, strict=True):
            yield ToolTurn(call_id, _content(call, boundary), is_error=call.result is None)


def _request(call_id: str, call: ToolCallPart) -> ToolRequest:
    """A call; where its arguments could not be read, its result tells what they were."""
    arguments: Mapping[str, Any] = call.arguments or {}
    return ToolRequest(call_id, call.tool, arguments, json.dumps(arguments))


def _content(call: ToolCallPart, boundary: str) -> str:
    content = tool_content(call, boundary)
    if call.arguments is None:
        wrote = fence_json({"arguments": clipped(call.raw_arguments, _RAW_LENGTH)}, boundary)
        return f"{content}\n{wrote}"
    return content
