"""The rules: money, tokens, tools and Markdown in words."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from control_plane import changes
from control_plane._client.requests import UpdateOptions, update_request
from control_plane.cli import printable
from control_plane.cli.analytics import tables, tool_words, words
from control_plane.cli.analytics.apply import options_of
from control_plane.cli.analytics.markdown import split_finished
from control_plane.cli.exits import CommandError
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2
from tests.support import analytics_answers as made

AMOUNTS = st.decimals(
    min_value=Decimal(-(10**9)), max_value=Decimal(10**9), places=12, allow_nan=False
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.0132", "$0.0132"),
        ("0.000123", "$0.000123"),
        ("1E-7", "$0.0000001"),
        ("12.5", "$12.50"),
        ("1234567", "$1,234,567.00"),
        ("0", "$0"),
        ("0.000", "$0"),
        ("-0.0001", "-$0.0001"),
        ("", "–"),
        ("NaN", "–"),
        ("much", "–"),
    ],
)
def test_money(text: str, shown: str) -> None:
    assert words.money(text) == shown


@given(AMOUNTS)
def test_money_is_exact_and_never_zero_for_something(amount: Decimal) -> None:
    shown = words.dollars(amount)
    assert Decimal(shown.replace("$", "").replace(",", "")) == amount
    assert (shown == "$0") == (amount == 0)


def test_what_calls_cost() -> None:
    known, unknown = made.record(), made.record(cost=None, unknown_reason="no usage was sent")
    guessed = made.record(cost=None, unknown_reason="it was stopped", estimated_cost="0.002")
    free = made.record(cost="0", rates=usage_pb2.AppliedRates(input="0", output="0"))
    assert words.calls_cost([known, known]) == "$0.0264"
    assert words.calls_cost([free]) == "free"
    assert words.calls_cost([made.record(cost="0")]) == "$0"  # has a price: nothing was used
    assert words.calls_cost([unknown]) == "cost unknown: no usage was sent"
    assert words.calls_cost([known, unknown]) == (
        "cost unknown: no usage was sent (at least $0.0132)"
    )
    assert words.calls_cost([known, guessed]) == "cost unknown: it was stopped (about $0.0152)"
    assert words.calls_cost([]) == "cost unknown: the service has not told"


def test_tokens_that_nobody_has_told_are_not_zero() -> None:
    assert words.tokens(usage_pb2.TokenUsage()) == "tokens unknown"
    assert words.tokens(usage_pb2.TokenUsage(input=0, output=5)) == "0 in, 5 out"
    assert words.known_count(usage_pb2.TokenUsage(), "input") == "–"
    total = words.total_tokens([made.record(), made.record(), made.record(tokens=None)])
    assert words.tokens(total) == "2,468 in, 1,600 from cache, 112 out (24 reasoning)"


def test_calls_of_tools() -> None:
    assert tool_words.line(made.tool_result()) == (
        "metric_series my-run loss 1–200 → loss 200 samples, spike at 120 (12 ms)"
    )
    spikes = [
        {"start_step": 31, "peak_step": 33},
        {"start_step": 50, "peak_step": 50},
    ]
    found = made.struct(
        series=[{"metric": "loss", "statistics": {"count": 60}, "spikes": spikes}],
        no_samples_in_range=["grad_norm"],
        metrics_of_the_job=["loss"],
    )
    assert tool_words.result(made.tool_call(result=found)) == (
        "loss 60 samples, spikes at 31 (peak 33), 50; no samples of grad_norm"
    )
    failed = made.tool_call(error="there is no job\n'my-run'", duration=0.5)
    assert tool_words.line(failed) == (
        "metric_series my-run loss 1–200 → failed: there is no job 'my-run' (500 ms)"
    )
    other = session_pb2.ToolCall(
        tool="list_jobs",
        arguments=made.struct(selector="team=nlp", states=[], limit=20, last_step=1_234_567),
        result=made.struct(jobs=[{"job": "a"}, {"job": "b"}]),
        by_service=True,
    )
    assert tool_words.line(other) == (
        "list_jobs –1234567 limit=20 selector=team=nlp (by the service) → 2 jobs: a, b"
    )
    assert tool_words.line(session_pb2.ToolCall(tool="x")) == (
        "x with arguments that can not be read"
    )


def test_a_retired_model_shows_the_successor_that_serves() -> None:
    retired, active = model_pb2.LIFECYCLE_STAGE_RETIRED, model_pb2.LIFECYCLE_STAGE_ACTIVE

    def model(name: str, stage: model_pb2.LifecycleStage.ValueType, then: str) -> model_pb2.Model:
        return model_pb2.Model(
            model_id=name, lifecycle=model_pb2.Lifecycle(stage=stage, successor=then)
        )

    listing = [
        model("a", retired, "b"),
        model("b", retired, "c"),
        model("c", active, ""),
        model("x", retired, "y"),
        model("y", retired, "x"),
        model("z", retired, "elsewhere"),
    ]
    by_id = {each.model_id: each for each in listing}
    found = [words.live_successor(each, by_id) for each in listing]
    assert found == ["c", "c", "", "", "", "elsewhere"]
    console = Console(width=140)
    with console.capture() as shown:
        console.print(tables.models(listing))
    assert "ended, now c" in shown.get().splitlines()[1]


SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=60)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "job",
        "jobs",
        "metrics",
        "series",
        "spikes",
        "state",
        "valid",
        "updates",
        "step",
        "first_step",
    ]
)


@given(
    tool=st.sampled_from(["list_jobs", "get_job", "metric_series", "update_history", "new\x1b"]),
    arguments=st.dictionaries(KEYS, JSON),
    result=st.dictionaries(KEYS, JSON),
)
def test_any_call_is_one_printable_line(
    tool: str, arguments: dict[str, object], result: dict[str, object]
) -> None:
    line = tool_words.line(
        session_pb2.ToolCall(
            tool=tool, arguments=made.struct(**arguments), result=made.struct(**result)
        )
    )
    assert line == printable.line(line)


@given(st.text())
def test_nothing_controls_the_terminal(text: str) -> None:
    shown = printable.text(text)
    assert len(shown) == len(text)
    assert not {c for c in shown if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0} - {"\n", "\t"}
    assert "\n" not in printable.line(text)


def test_escape_sequences_show_and_do_nothing() -> None:
    assert (
        printable.text("a\x1b]0;owned\x07b\r\x9b31m") == "a␛]0;owned␇b␍\N{REPLACEMENT CHARACTER}31m"
    )


PIECES = st.sampled_from(
    ["text", "\n", "\n\n", "```", "~~~", "````py", "- item", "   more", "1. x", " ", "| a |"]
)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_markdown_is_split_where_no_fence_is_open(text: str) -> None:
    finished, rest = split_finished(text)
    assert finished + rest == text
    assert not finished or finished.endswith("\n")
    # What comes later never moves a split back.
    assert split_finished(text + "\nmore")[0].startswith(finished)


def test_code_is_one_block() -> None:
    code = "```py\na = 1\n\nb = 2\n"
    assert split_finished(f"First.\n\n{code}") == ("First.\n\n", code)
    assert split_finished(f"{code}```\n\nLast") == (f"{code}```\n\n", "Last")
    assert split_finished("- a\n\n  of a\n\nb") == ("- a\n\n  of a\n\n", "b")


DEADLINES = st.none() | st.datetimes(
    min_value=datetime(2000, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    max_value=datetime(2100, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)
STEPS = st.none() | st.integers(min_value=1, max_value=10**9)


@given(at=STEPS, most=STEPS, deadline=DEADLINES, revision=STEPS, force=st.booleans(), why=st.text())
def test_a_draft_is_submitted_as_it_stands(
    at: int | None,
    most: int | None,
    deadline: datetime | None,
    revision: int | None,
    force: bool,
    why: str,
) -> None:
    options: UpdateOptions = {
        "at_step": at,
        "max_step": most,
        "deadline": deadline,
        "expected_revision": revision,
        "force": force,
        "reason": why,
        "request_id": "r",
    }
    drafted = update_request("j", [changes.set_value("learning_rate", 1e-5)], None, options)
    again = update_request("j", drafted.spec.changes, None, options_of(drafted))
    assert again == drafted


def test_a_check_is_never_submitted() -> None:
    drafted = made.proposal().request
    drafted.validate_only = True
    with pytest.raises(CommandError, match="check only"):
        options_of(drafted)


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_tables_fit(columns: int) -> None:
    console = Console(width=columns, record=True, file=None, color_system=None)
    with console.capture() as capture:
        console.print(tables.models(made.models()))
        console.print(tables.sessions([made.session(unknown_cost_calls=2)], 0))
        console.print(tables.usage("model", [made.summary("gpt-6-luna")], made.summary()))
        console.print(tables.records([made.record(cost=None, unknown_reason="why " * 9)], 0))
        console.print(tables.budgets([made.budget(principal="alice")]))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in capture.get()
    for needed in ("smollm2-135m", "$5.00", "$1.2503", "XAI_API_KEY"):
        assert needed in capture.get()


@pytest.mark.parametrize("by", ["model", "session"])
@pytest.mark.parametrize("columns", range(20, 121, 10))
def test_usage_fits_with_or_without_each_kind_of_tokens(by: str, columns: int) -> None:
    console = Console(width=columns, color_system=None)
    for more in ({}, {"cache_write": 456_789}, {"reasoning": 12, "cache_write": 456_789}):
        used = usage_pb2.TokenUsage(input=1_234_567, output=345_678, **more)
        total = made.summary(tokens=used, unknown_cost_calls=2)
        with console.capture() as capture:
            console.print(tables.usage(by, [made.summary("gpt-6-luna", tokens=used)], total))
        assert capture.get().splitlines()[1].startswith("gpt-6-luna")


def test_why_a_retired_model_can_not_be_chosen_is_told_or_said_to_be_missing() -> None:
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(tables.models(made.models()))
    assert "ended 2025" in capture.get() or "LIFECYCLE" in capture.get()


@pytest.mark.parametrize(
    ("spent", "bar"),
    [
        ("0", "░" * 12 + " 0%"),
        ("0.00001", "█" + "░" * 11 + " <1%"),
        ("4.99999", "█" * 11 + "░ 99%"),
        ("1.45", "███" + "░" * 9 + " 29%"),  # 28.999… in binary
    ],
)
def test_a_bar_is_full_only_when_nothing_is_left(spent: str, bar: str) -> None:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(tables.budgets([made.budget(spent=spent, reserved="0")]))
    assert bar in capture.get()
