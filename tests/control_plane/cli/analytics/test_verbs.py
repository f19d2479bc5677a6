"""models, recommend, sessions, usage and budget against a real gRPC server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from control_plane.cli.exits import ExitCode
from grpc_runtime.errors import StatusError
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2
from midcourse.control.v1 import access_pb2
from tests.control_plane.cli.analytics.conftest import Command
from tests.support import analytics_answers as made
from tests.support.scripted_analytics import ScriptedAnalytics


def test_models(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.responses["ListModels"] = [pb.ListModelsResponse(models=made.models())]
    shown = midcourse("models", columns=200).stdout.splitlines()
    by_id = {line.split()[0]: " ".join(line.split()) for line in shown if line}
    assert by_id["gpt-6-luna"] == "gpt-6-luna openai $ 0.10 0.40 1,000,000 yes yes active"
    assert by_id["smollm2-135m"].startswith(
        "smollm2-135m local free 0 0 8,192 no yes active proves"
    )
    assert "yes, default until 2027-01-14, then gpt-6-luna" in by_id["gpt-4o-mini"]
    assert "2.50+ 15.00+" in by_id["gpt-6.1-sol"]
    assert "yes no ended 2025-10-28, now claude-sonnet-5-5" in by_id["claude-3-5-sonnet"]
    assert "$$$ – – 256,000 yes no, see 1 active" in by_id["grok-4.7"]
    assert by_id["1"] == "1 its key is missing: set XAI_API_KEY where the service runs"
    midcourse("models", "--available")
    assert [r.available_only for r in scripted.requests("ListModels")] == [False, True]
    answer = json.loads(midcourse("models", "-o", "json").stdout)
    assert answer["models"][0]["prices"]["input"] == "0"


def test_no_model(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.responses["ListModels"] = [pb.ListModelsResponse()]
    assert "`midcourse models` says why" in midcourse("models", "--available").stdout


def test_recommend(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    advice = pb.RecommendModelResponse(
        model_id="gpt-6-luna",
        score=0.32,
        reasons=["It is the cheapest that is likely good enough."],
        options=[
            model_pb2.ModelOption(
                model_id="gpt-6-luna", estimated_cost="0.00123", good_enough=True
            ),
            model_pb2.ModelOption(model_id="grok-4.7", excluded=True, reasons=["No key."]),
        ],
        evaluation="Evaluated on 533 questions.",
    )
    scripted.responses["RecommendModel"] = [advice]
    shown = midcourse(
        *("recommend", "why", "did it spike?", "--max-cost", "$0.05", "--max-band", "$$"),
    ).stdout
    for needed in (
        "gpt-6-luna  (need for a strong model 0.32 of 1)",
        "$0.00123",
        "left out: grok-4.7. No key.",
        "533",
    ):
        assert needed in shown
    (request,) = scripted.requests("RecommendModel")
    assert request.content == "why did it spike?"
    assert request.max_cost == "0.05"
    assert request.max_cost_band == model_pb2.COST_BAND_MEDIUM
    scripted.responses["RecommendModel"] = [pb.RecommendModelResponse(reasons=["All cost money."])]
    refused = midcourse("recommend", "why?", code=ExitCode.REFUSED)
    assert refused.stderr == "midcourse: no model fits: All cost money.\n"


def test_sessions(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.responses |= {
        "ListSessions": [
            pb.ListSessionsResponse(sessions=[made.session()], next_page_token="2"),
            pb.ListSessionsResponse(
                sessions=[made.session(name="sessions/s2", title="A\x1b[2Jb", unknown_cost_calls=1)]
            ),
        ],
        "UpdateSession": [pb.UpdateSessionResponse(session=made.session(title="Spike"))],
        "DeleteSession": [pb.DeleteSessionResponse()],
    }
    _, first, second = midcourse("sessions").stdout.splitlines()
    assert first.split()[:7] == ["s1", "Why", "did", "the", "loss", "spike?", "gpt-6-luna"]
    assert "A␛[2Jb" in second
    assert "$0.0132 + 1 call of unknown cost" in second
    assert midcourse("sessions", "rename", "s1", "Spike").stdout == "s1 is now Spike\n"
    (renamed,) = scripted.requests("UpdateSession")
    assert (renamed.session.title, list(renamed.update_mask.paths)) == ("Spike", ["title"])
    scripted.responses["UpdateSession"] = [pb.UpdateSessionResponse(session=made.session(title=""))]
    assert midcourse("sessions", "rename", "s1", "").stdout == "s1 has no title now\n"
    assert midcourse("sessions", "delete", "s1").stdout == "s1 deleted\n"
    assert json.loads(midcourse("-o", "json", "sessions").stdout)["sessions"][0]["etag"] == "3"
    scripted.responses["ListSessions"] = [pb.ListSessionsResponse()]
    assert "`midcourse chat` begins one" in midcourse("sessions").stdout


def test_a_transcript(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    question = session_pb2.Message(
        role=session_pb2.ROLE_USER,
        state=session_pb2.MESSAGE_STATE_COMPLETE,
        parts=[session_pb2.Part(text="Why?\x07")],
    )
    failed = made.answer(
        "It",
        state=session_pb2.MESSAGE_STATE_FAILED,
        error=session_pb2.Error(code=14, message="the provider broke off"),
    )
    failed.parts.add(proposed_update=made.proposal())
    scripted.responses |= {
        "GetSession": [pb.GetSessionResponse(session=made.session())],
        "ListMessages": [pb.ListMessagesResponse(messages=[question, failed])],
    }
    shown = midcourse("sessions", "show", "s1").stdout
    for needed in (
        "s1  Why did the loss spike?",
        "Why?␇",
        "⚙ metric_series my-run loss 1–200",
        "proposed: my-run: learning_rate → 1e-05 at the next boundary",
        "sources: my-run loss, steps 1–200 · my-run updates",
        "$0.0132 · failed",
        "the provider broke off",
    ):
        assert needed in shown
    answer = json.loads(midcourse("sessions", "show", "s1", "-o", "json").stdout)
    assert len(answer["messages"]) == 2


def test_usage(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.responses["GetUsage"] = [
        pb.GetUsageResponse(
            summaries=[
                made.summary("gpt-6-luna"),
                made.summary("grok-4.7", cost="0", unknown_cost_calls=2, estimated_cost="0.002"),
            ],
            total=made.summary(calls=6, unknown_cost_calls=2, estimated_cost="0.002"),
        )
    ]
    before = datetime.now(UTC) - timedelta(days=7)
    lines = midcourse("usage", "--by", "model", "--since", "7d", "--model", "luna").stdout
    header, first, second, total = (line.split() for line in lines.splitlines())
    assert header == ["MODEL", "CALLS", "IN", "OUT", "FROM", "CACHE", "COST"]
    assert first == ["gpt-6-luna", "3", "12,345", "678", "800", "$1.50"]
    assert " ".join(second[5:]) == "2 calls of unknown cost (about $0.002)"
    assert " ".join(total[5:]) == "$1.50 + 2 calls of unknown cost (about $0.002)"
    (request,) = scripted.requests("GetUsage")
    assert request.group_by == usage_pb2.USAGE_GROUP_MODEL
    assert request.model_id == "luna"
    assert abs(request.start_time.ToDatetime(UTC) - before) < timedelta(minutes=1)
    midcourse("usage", "--by", "day", "--since", "2026-11-01", "--principal", "ops")
    request = scripted.requests("GetUsage")[-1]
    assert request.start_time.ToDatetime(UTC) == datetime(2026, 11, 1, tzinfo=UTC)
    assert json.loads(midcourse("usage", "-o", "json").stdout)["total"]["unknownCostCalls"] == "2"


def test_no_usage(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    scripted.responses["GetUsage"] = [pb.GetUsageResponse()]
    assert midcourse("usage").stdout == "no calls to providers yet that you may see\n"
    assert midcourse("usage", "--session", "s1").stdout == "no calls\n"
    assert midcourse("usage", "--records").stdout == "no calls\n"


def test_who_used_it(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    record = access_pb2.AuditRecord(
        principal="eve",
        peer="ipv4:10.0.0.9:4711",
        method="/midcourse.analytics.v1.AnalyticsService/SetBudget",
        resource="budgets",
        summary="9 USD per day for everybody on all models",
        code="PERMISSION_DENIED",
        error_reason="ROLE_REQUIRED",
    )
    scripted.responses["ListAuditRecords"] = [pb.ListAuditRecordsResponse(records=[record])]
    header, row = midcourse(
        "analytics", "audit", "-p", "eve", "-r", "budgets", "--since", "2h", columns=200
    ).stdout.splitlines()
    assert header.split()[:3] == ["TIME", "WHO", "FROM"]
    for needed in ("eve", "10.0.0.9", "SetBudget", "9 USD per day for everybody", "ROLE_REQUIRED"):
        assert needed in row
    (request,) = scripted.requests("ListAuditRecords")
    assert (request.principal, request.resource, request.page_size) == ("eve", "budgets", 50)
    since = datetime.now(UTC) - request.start_time.ToDatetime(UTC)
    assert timedelta(hours=2) <= since < timedelta(hours=2, minutes=1)
    found = json.loads(midcourse("analytics", "audit", "-n", "1", "-o", "json").stdout)
    assert [each["principal"] for each in found["records"]] == ["eve"]
    scripted.responses["ListAuditRecords"] = [pb.ListAuditRecordsResponse()]
    assert midcourse("analytics", "audit").stdout == "nothing was recorded\n"
    assert midcourse("analytics", "audit", "-p", "x", "--since", "1h").stdout == (
        "nothing of that was recorded in that time\n"
    )


def test_usage_call_by_call(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    unknown = made.record(cost=None, unknown_reason="no usage was sent", tokens=None)
    scripted.responses["GetUsage"] = [pb.GetUsageResponse(records=[made.record(), unknown])]
    _, first, second = midcourse("usage", "--records", columns=200).stdout.splitlines()
    for needed in ("gpt-6-luna-2026", "s1", "ops", "1.1", "$0.0132", "350 ms", "completed"):
        assert needed in first
    assert "cost unknown: no usage was sent" in second
    one = json.loads(midcourse("usage", "--records", "-n", "1", "-o", "json").stdout)
    assert len(one["records"]) == 1


def test_budgets(midcourse: Command, scripted: ScriptedAnalytics) -> None:
    overdrawn = made.budget(principal="alice", limit="0.5", spent="0.5001", estimated="0.1")
    scripted.responses |= {
        "ListBudgets": [pb.ListBudgetsResponse(budgets=[made.budget(), overdrawn])],
        "SetBudget": [pb.SetBudgetResponse(budget=made.budget())],
    }
    _, first, second = midcourse("budget").stdout.splitlines()
    assert first.split()[:7] == ["everybody", "all", "day", "$5.00", "$1.2503", "$0.01", "$3.7397"]
    assert "≤ $0.5001" in second
    assert "-$0.0101" in second
    set_ = midcourse("budget", "set", "$2.50", "--per", "month", "--principal", "bob").stdout
    assert "$5.00" in set_
    midcourse("budget", "set", "0", "--per", "day", "--model", "luna")
    lifted = midcourse("budget", "unset", "--per", "day").stdout
    assert lifted == "no limit per day for everybody on all models any more\n"
    month, zero, none = scripted.requests("SetBudget")
    assert (month.limit, month.period, month.principal) == (
        *("2.50", usage_pb2.BUDGET_PERIOD_MONTH, "bob"),
    )
    assert zero.limit == "0"
    assert zero.HasField("limit")
    assert not none.HasField("limit")
    answer = json.loads(midcourse("budget", "-o", "json").stdout)
    assert len(answer["budgets"]) == 2
    scripted.responses["ListBudgets"] = [pb.ListBudgetsResponse()]
    assert "`midcourse budget set 5 --per day` makes one" in midcourse("budget").stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["budget", "set", "much", "--per", "day"], "'much' is no amount of US dollars"),
        (["budget", "set", "nan", "--per", "day"], "no amount"),
        (["budget", "set", "--per", "day", "--", "-5"], "no amount"),
        (["budget", "set", "5"], "--per"),
        (["budget", "set", "5", "--per", "year"], "'day', 'month'"),
        (["usage", "--since", "yesterday"], "such as 7d or 12h"),
        (["usage", "--last", "3"], "--records"),
        (["usage", "--by", "job"], "'principal'"),
        (["recommend"], "QUESTION"),
        (["sessions", "shw", "s1"], "'show'"),
        (["model"], "'models'"),
        (["models", "--analytics", "http://here:1"], "no http://"),
    ],
)
def test_a_wrong_command_line(midcourse: Command, args: list[str], said: str) -> None:
    stderr = midcourse(*args, code=ExitCode.USAGE).stderr
    assert said in stderr
    assert stderr.startswith("midcourse: ")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND", ExitCode.NOT_FOUND),
        (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_RETIRED", ExitCode.REFUSED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED", ExitCode.REFUSED),
        (grpc.StatusCode.INTERNAL, "CHAT_FAILED", ExitCode.FAILURE),
    ],
)
def test_refusals(
    midcourse: Command,
    scripted: ScriptedAnalytics,
    code: grpc.StatusCode,
    reason: str,
    exit_code: ExitCode,
) -> None:
    scripted.failures["GetSession"] = [StatusError(code, "no \x1b[5m such thing", reason=reason)]
    stderr = midcourse("sessions", "show", "s9", code=exit_code).stderr
    assert stderr.startswith("midcourse: no ␛[5m such thing")
    assert stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["models"], ["budget"], ["sessions"], ["usage"], ["chat", "hi"]])
def test_nobody_answers(midcourse: Command, args: list[str]) -> None:
    stderr = midcourse(*args, "--analytics", "127.0.0.1:1", code=ExitCode.UNREACHABLE).stderr
    assert stderr.startswith("midcourse: no analytics service answers at 127.0.0.1:1 ")
    assert "is `midcourse analytics serve` running there?" in stderr
    before = midcourse("--analytics", "127.0.0.1:1", *args, code=ExitCode.UNREACHABLE).stderr
    assert before == stderr
