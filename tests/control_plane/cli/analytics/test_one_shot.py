"""One question, one answer: what goes to stdout and stderr."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from control_plane.cli.exits import ExitCode
from grpc_runtime.errors import StatusError
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import session_pb2, usage_pb2
from tests.control_plane.cli.analytics.conftest import Command
from tests.support import analytics_answers as made
from tests.support.scripted_analytics import ScriptedAnalytics, delta

TOKENS = "1,234 in, 800 from cache, 56 out (12 reasoning)"


def test_the_answer_and_nothing_else_is_on_stdout(
    midcourse: Command, scripted: ScriptedAnalytics
) -> None:
    scripted.chats = [made.with_tools()]
    result = midcourse(
        *("chat", "Why", "did it spike?", "--model", "luna", "--session", "s1"),
        *("--job", "my-run", "-j", "other", "--max-output-tokens", "99", "--temperature", "0.5"),
        *("--follow-successor", "--timeout", "1m"),
    )
    assert result.stdout == f"I look at the loss.\n\n{made.TEXT}\n"
    assert result.stderr.splitlines() == [
        "gpt-6-luna, the session's · session s1",
        "⚙ metric_series my-run loss 1–200 → loss 200 samples, spike at 120 (12 ms)",
        "proposed: my-run: learning_rate → 1e-05 at the next boundary",
        "  why: the loss spikes",
        "sources: my-run loss, steps 1–200 · my-run updates",
        f"gpt-6-luna (served gpt-6-luna-2026) · {TOKENS} · $0.0132 · 3.2 s",
    ]
    (request,) = scripted.requests("Chat")
    assert request.content == "Why did it spike?"
    assert (request.session, request.model_id) == ("sessions/s1", "luna")
    assert list(request.jobs) == ["jobs/my-run", "jobs/other"]
    assert (request.max_output_tokens, request.temperature) == (99, 0.5)
    assert request.follow_successor


def test_quiet(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.chats = [made.with_tools()]
    result = midcourse("chat", "-q", "why?")
    assert result.stdout.endswith("See `loss`.\n")
    assert result.stderr == ""


@pytest.mark.parametrize("args", [["chat"], ["chat", "-"]])
def test_the_question_comes_from_a_pipe(
    midcourse: Command, scripted: ScriptedAnalytics, args: list[str]
) -> None:
    midcourse(*args, stdin="Why?\nTell me.\n")
    assert scripted.requests("Chat")[0].content == "Why?\nTell me."
    assert "is empty" in midcourse(*args, stdin=" \n", code=ExitCode.USAGE).stderr


def test_json_is_one_event_a_line(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.chats = [made.with_tools()]
    result = midcourse("chat", "why?", "-o", "json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [next(iter(event)) for event in events if "textDelta" not in event] == [
        *("started", "toolCall", "toolResult", "proposedUpdate", "usage", "done"),
    ]
    assert result.stderr == ""


def test_go_on_with_the_last_session(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.responses["ListSessions"] = [
        pb.ListSessionsResponse(sessions=[made.session(name="sessions/s7")]),
        pb.ListSessionsResponse(),
    ]
    midcourse("chat", "-c", "and then?")
    assert scripted.requests("Chat")[0].session == "sessions/s7"
    assert "no session to go on" in midcourse("chat", "-c", "x", code=ExitCode.NOT_FOUND).stderr
    both = midcourse("chat", "-c", "--session", "s1", "x", code=ExitCode.USAGE)
    assert "give it or --session" in both.stderr


def test_the_model_may_not_control_the_terminal(
    midcourse: Command, scripted: ScriptedAnalytics
) -> None:
    scripted.chats = [(made.started(), delta("a\x1b"), delta("[2Jb"), made.done("a"))]
    assert midcourse("chat", "x").stdout == "a␛[2Jb\n"


def test_a_model_that_differs_is_told(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    chosen = made.choice(
        requested_model="grok-4",
        used_model="grok-4.7",
        difference="grok-4 was retired on 2026-05-15",
        notice="grok-4.7 ends soon",
    )
    retry = pb.ChatRetry(error="429 Too Many Requests", delay=2, model=made.choice())
    scripted.chats = [
        (
            pb.ChatResponse(started=pb.ChatStarted(session="sessions/s1", model=chosen)),
            pb.ChatResponse(retry=retry),
            made.done("x", state=session_pb2.MESSAGE_STATE_TRUNCATED),
        )
    ]
    notes = midcourse("chat", "x").stderr.splitlines()
    assert notes[:5] == [
        "grok-4.7, asked for as grok-4 · session s1",
        "grok-4 was retired on 2026-05-15",
        "grok-4.7 ends soon",
        "429 Too Many Requests; trying with gpt-6-luna in 2.0 s",
        "cut at the limit of its length; --max-output-tokens makes it longer",
    ]


def test_a_difference_is_told_once(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    why = "grok-4 was retired"
    chosen = made.choice(requested_model="grok-4", difference=why, served_model="")
    over = made.done("x")
    over.done.message.model.difference = why
    started = pb.ChatResponse(started=pb.ChatStarted(session="sessions/s1", model=chosen))
    scripted.chats = [(started, over)]
    assert midcourse("chat", "x").stderr.count(why) == 1
    over.done.message.model.difference = "the provider says that grok-5 has served"
    notes = midcourse("chat", "x").stderr
    assert notes.count(why) == notes.count("grok-5 has served") == 1


def test_an_answer_that_takes_too_long(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.chats = [(made.started(), delta("It "), asyncio.Event())]
    result = midcourse("chat", "x", "--timeout", "1s", code=ExitCode.UNREACHABLE)
    assert result.stdout == "It \n"
    assert result.stderr.splitlines()[-1] == (
        "midcourse: the answer was not whole in time and is stopped; what there is of it is kept;"
        " --timeout gives it longer"
    )


def test_bytes_that_are_no_text(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    for args in (["chat", "hi \udcff"], ["chat", "hi", "-j", "\udcff"], ["recommend", "\udcff"]):
        refused = midcourse(*args, code=ExitCode.USAGE)
        assert refused.stderr == "midcourse: what was given is no UTF-8 text\n"
    assert not scripted.calls


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"cost": None, "unknown_reason": "no usage was sent"}, "cost unknown: no usage was sent"),
        ({"cost": "0", "rates": usage_pb2.AppliedRates(input="0", output="0")}, "free"),
        ({"cost": "0.000000123"}, "$0.000000123"),
    ],
)
def test_costs(
    midcourse: Command, scripted: ScriptedAnalytics, record: dict[str, object], told: str
) -> None:
    usage = pb.ChatResponse(usage=made.record(**record))
    scripted.chats = [(made.started(), usage, made.done("x"))]
    assert f" · {told} · " in midcourse("chat", "x").stderr.splitlines()[-1]


def test_an_answer_that_fails_midway(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    broken = StatusError(
        grpc.StatusCode.UNAVAILABLE, "openai broke off", reason="PROVIDER_STREAM_BROKEN"
    )
    usage = pb.ChatResponse(usage=made.record(cost=None, unknown_reason="the stream broke"))
    scripted.chats = [(made.started(), delta("It "), usage, broken)]
    result = midcourse("chat", "x", code=ExitCode.UNREACHABLE)
    assert result.stdout == "It \n"
    assert result.stderr.splitlines()[-2:] == [
        f"gpt-6-luna · {TOKENS} · cost unknown: the stream broke",
        "midcourse: openai broke off",
    ]


def test_an_answer_that_somebody_else_stopped(
    midcourse: Command, scripted: ScriptedAnalytics
) -> None:
    scripted.chats = [(made.started(), made.done("x", state=session_pb2.MESSAGE_STATE_CANCELLED))]
    result = midcourse("chat", "x", code=ExitCode.FAILURE)
    assert result.stderr.endswith("midcourse: the answer was cancelled\n")
