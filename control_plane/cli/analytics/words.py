"""The analytics API's messages in words, for tables and lines. Pure.

Text of runs and models is made fit for a terminal here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.cli import format as fmt
from control_plane.cli import printable
from midcourse.analytics.v1 import analytics_pb2, model_pb2, session_pb2, usage_pb2

BANDS: Final = {
    model_pb2.COST_BAND_FREE: "free",
    model_pb2.COST_BAND_LOW: "$",
    model_pb2.COST_BAND_MEDIUM: "$$",
    model_pb2.COST_BAND_HIGH: "$$$",
    model_pb2.COST_BAND_VERY_HIGH: "$$$$",
}

_SOURCES: Final = {
    model_pb2.MODEL_SOURCE_REQUEST: "as asked for",
    model_pb2.MODEL_SOURCE_SESSION: "the session's",
    model_pb2.MODEL_SOURCE_CONFIGURATION: "the service's default",
    model_pb2.MODEL_SOURCE_BUILT_IN: "the default",
}

_Timed = session_pb2.Session | session_pb2.Message | usage_pb2.UsageRecord


def amount(text: str) -> Decimal | None:
    """Returns an amount of money; None if there is none."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def dollars(value: Decimal | None) -> str:
    """Formats US dollars, exactly: $0.0132, $12.50, $0; a dash for what is not known."""
    if value is None:
        return fmt.UNKNOWN
    if not value:
        return "$0"
    whole, _, fraction = f"{abs(value):f}".partition(".")
    fraction = fraction.rstrip("0").ljust(2, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}${int(whole):,}.{fraction}"


def money(text: str) -> str:
    """Formats an amount of the API's."""
    return dollars(amount(text))


def price(text: str) -> str:
    """Formats a price per million tokens, without the sign that a column's header has."""
    return money(text).removeprefix("$")


def count(number: int) -> str:
    """Formats a number of things: 12,345."""
    return f"{number:,}"


def plural(number: int, thing: str) -> str:
    """Formats a number of things with what they are: 1 call, 3 calls."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def known_count(tokens: usage_pb2.TokenUsage, kind: str) -> str:
    """Formats the tokens of a kind; a dash where nobody has said."""
    return count(getattr(tokens, kind)) if tokens.HasField(kind) else fmt.UNKNOWN  # type: ignore[arg-type]  # the name of a kind


def day(time: Timestamp) -> str:
    """Formats the day of a time, UTC."""
    return f"{time.ToDatetime():%Y-%m-%d}"


def age(message: _Timed, field: str, now: float) -> str:
    """Returns how long ago a time of a message was; a dash if it is absent."""
    if not message.HasField(field):  # type: ignore[arg-type]  # any field name of any of them
        return fmt.UNKNOWN
    time: Timestamp = getattr(message, field)
    return fmt.age(now - time.seconds - time.nanos / 1e9)


def session_id(name: str) -> str:
    """Returns a session's id: s1 for sessions/s1."""
    return printable.line(name.removeprefix("sessions/"))


def model_id(name: str) -> str:
    """Returns the id of a model, or what is meant where none is named."""
    return printable.line(name) or fmt.UNKNOWN


def lifecycle(model: model_pb2.Model, successor: str = "") -> str:
    """Returns how long a model will be there: until 2027-01-14, then gpt-6-luna.

    Args:
        model: The model.
        successor: What takes its place today; by default the successor that it names.
    """
    cycle = model.lifecycle
    when = f" {day(cycle.shutdown_time)}" if cycle.HasField("shutdown_time") else ""
    match cycle.stage:
        case model_pb2.LIFECYCLE_STAGE_ACTIVE:
            return "active"
        case model_pb2.LIFECYCLE_STAGE_DEPRECATED:
            words, then = f"until{when}" if when else "deprecated", "then"
        case model_pb2.LIFECYCLE_STAGE_RETIRED:
            words, then = f"ended{when}", "now"
        case _:
            return fmt.UNKNOWN
    successor = successor or cycle.successor
    return f"{words}, {then} {successor}" if successor else words


def live_successor(model: model_pb2.Model, by_id: Mapping[str, model_pb2.Model]) -> str:
    """Returns the id of the first successor that is not retired itself; empty if there is none."""
    seen = {model.model_id}
    successor = model.lifecycle.successor
    while successor and successor not in seen:
        seen.add(successor)
        following = by_id.get(successor)
        if following is None or following.lifecycle.stage != model_pb2.LIFECYCLE_STAGE_RETIRED:
            return successor
        successor = following.lifecycle.successor
    return ""


def choice(chosen: model_pb2.ModelChoice) -> str:
    """Returns which model answers: gpt-6-luna, the session's."""
    words = model_id(chosen.used_model)
    if chosen.requested_model and chosen.requested_model != chosen.used_model:
        words += f", asked for as {printable.line(chosen.requested_model)}"
    elif source := _SOURCES.get(chosen.source):
        words += f", {source}"
    return words


def citation(cited: session_pb2.Citation) -> str:
    """Returns the data that an answer rests on: my-run loss, steps 1–200."""
    words = printable.line(f"{cited.job.removeprefix('jobs/')} {cited.metric or cited.what}")
    if cited.HasField("first_step") and cited.HasField("last_step"):
        if cited.first_step == cited.last_step:
            return f"{words}, step {cited.first_step}"
        return f"{words}, steps {cited.first_step}–{cited.last_step}"
    return words


def citations(cited: Iterable[session_pb2.Citation]) -> str:
    """Returns all of them, each once."""
    return " · ".join(dict.fromkeys(map(citation, cited)))


def proposal(proposed: session_pb2.ProposedUpdate) -> list[str]:
    """Returns a drafted change: what to change in which job, when and why, and whether it may be.

    In the words in which `midcourse history` and `set` tell of updates.
    """
    from control_plane.cli import describe
    from midcourse.control.v1 import update_pb2

    request = proposed.request
    update = update_pb2.Update(spec=request.spec)
    job = printable.line(request.job.removeprefix("jobs/"))
    changes = ", ".join(printable.line(words) for words in describe.changes(update))
    lines = [f"{job}: {changes} {describe.when_due(request.spec)}"]
    if why := printable.line(proposed.rationale or request.spec.reason):
        lines.append(f"why: {why}")
    if proposed.HasField("error"):
        lines.append(
            f"the control plane says no: {printable.line(proposed.error.message)}"
            if not proposed.HasField("validated")
            else printable.line(proposed.error.message)
        )
    return lines


def tokens(used: usage_pb2.TokenUsage) -> str:
    """Returns tokens by kind: 1,200 in, 800 from cache, 56 out (12 reasoning)."""
    words = [
        f"{count(getattr(used, kind))} {label}"
        for kind, label in (
            ("input", "in"),
            ("cache_read", "from cache"),
            ("cache_write", "to cache"),
            ("output", "out"),
        )
        if used.HasField(kind) and (getattr(used, kind) or kind in ("input", "output"))  # type: ignore[arg-type]  # the name of a kind
    ]
    if words and used.reasoning:
        words[-1] += f" ({count(used.reasoning)} reasoning)"
    return ", ".join(words) or "tokens unknown"


def total_tokens(records: Iterable[usage_pb2.UsageRecord]) -> usage_pb2.TokenUsage:
    """Returns the sums of what is known."""
    total = usage_pb2.TokenUsage()
    for record in records:
        for field, number in record.tokens.ListFields():
            setattr(total, field.name, getattr(total, field.name) + number)
    return total


def calls_cost(records: Iterable[usage_pb2.UsageRecord]) -> str:
    """Returns what calls cost together: $0.0132, free, or what is known and why not all is."""
    records = list(records)
    known = [amount(record.cost) for record in records if record.HasField("cost")]
    spent = sum((cost for cost in known if cost is not None), Decimal(0))
    unknown = [record for record in records if not record.HasField("cost")]
    if not unknown:
        if not spent and records and all(_is_free(record) for record in records):
            return "free"
        return dollars(spent) if records else "cost unknown: the service has not told"
    why = "; ".join(
        dict.fromkeys(printable.line(record.unknown_reason) or "not told" for record in unknown)
    )
    words = f"cost unknown: {why}"
    guesses = [amount(record.estimated_cost) for record in unknown]
    if all(guess is not None for guess in guesses):
        guess = sum((guess for guess in guesses if guess is not None), Decimal(0))
        words += f" (about {dollars(spent + guess)})"
    elif spent:
        words += f" (at least {dollars(spent)})"
    return words


def _is_free(record: usage_pb2.UsageRecord) -> bool:
    rates = record.rates
    return amount(rates.input) == 0 and amount(rates.output) == 0


def sum_cost(text: str, unknown_calls: int, estimated: str = "") -> str:
    """Returns the cost of something with many calls: $0.0132 + 2 calls of unknown cost."""
    if not unknown_calls:
        return money(text)
    guess = amount(estimated)
    about = f" (about {dollars(guess)})" if guess else ""
    known = amount(text)
    unknown = f"{plural(unknown_calls, 'call')} of unknown cost{about}"
    return f"{dollars(known)} + {unknown}" if known else unknown


def outcome(record: usage_pb2.UsageRecord) -> str:
    """Returns how a call ended: completed, failed (…)."""
    name = usage_pb2.CallOutcome.Name(record.outcome).removeprefix("CALL_OUTCOME_").lower()
    return f"{name} ({printable.line(record.error)})" if record.error else name


def message_state(state: session_pb2.MessageState.ValueType) -> str:
    """Returns cancelled for MESSAGE_STATE_CANCELLED."""
    return session_pb2.MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()


def period(budget: usage_pb2.Budget) -> str:
    """Returns day or month."""
    return usage_pb2.BudgetPeriod.Name(budget.period).removeprefix("BUDGET_PERIOD_").lower()


def left(budget: usage_pb2.Budget) -> Decimal | None:
    """Returns what is left of a budget, below 0 where it is overdrawn; None without a limit."""
    limit = amount(budget.limit) if budget.HasField("limit") else None
    if limit is None:
        return None
    return limit - (amount(budget.spent) or Decimal(0)) - (amount(budget.reserved) or Decimal(0))


def share_used(budget: usage_pb2.Budget) -> Decimal | None:
    """Returns the part of a budget that is spent or reserved, from 0 on; None without a limit."""
    limit, rest = amount(budget.limit) if budget.HasField("limit") else None, left(budget)
    if limit is None or rest is None:
        return None
    return (limit - rest) / limit if limit else Decimal(1)


def estimate(option: model_pb2.ModelOption) -> str:
    """Returns what a question would cost."""
    value = amount(option.estimated_cost)
    return "free" if value == 0 else dollars(value)


def score(advice: analytics_pb2.RecommendModelResponse) -> str:
    """Returns how much the question seems to need a strong model."""
    return f"need for a strong model {advice.score:.2f} of 1"
