"""Answers of an analytics service, as an ordinary one would give them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane import changes
from midcourse.analytics.v1 import analytics_pb2 as pb
from midcourse.analytics.v1 import model_pb2, session_pb2, usage_pb2
from midcourse.control.v1 import control_pb2, update_pb2
from tests.support.scripted_analytics import MESSAGE, SESSION, Step, delta


def moment(year: int, month: int, day: int, second: float = 0) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime(year, month, day, tzinfo=UTC))
    made.FromNanoseconds(made.ToNanoseconds() + round(second * 1e9))
    return made


def struct(**values: Any) -> Struct:
    return ParseDict(values, Struct())


def models() -> list[model_pb2.Model]:
    return [
        model_pb2.Model(
            name="models/smollm2-135m",
            model_id="smollm2-135m",
            display_name="SmolLM2 135M",
            provider="local",
            cost_band=model_pb2.COST_BAND_FREE,
            prices=model_pb2.Prices(input="0", output="0", source="catalogue file"),
            lifecycle=model_pb2.Lifecycle(stage=model_pb2.LIFECYCLE_STAGE_ACTIVE),
            context_window=8192,
            available=True,
            note="proves the path, not the quality",
        ),
        model_pb2.Model(
            name="models/gpt-6-luna",
            model_id="gpt-6-luna",
            display_name="GPT-6 Luna",
            provider="openai",
            aliases=["luna"],
            cost_band=model_pb2.COST_BAND_LOW,
            prices=model_pb2.Prices(input="0.10", output="0.4", source="genai-prices 0.2.3"),
            lifecycle=model_pb2.Lifecycle(stage=model_pb2.LIFECYCLE_STAGE_ACTIVE),
            context_window=1_000_000,
            supports_tools=True,
            available=True,
        ),
        model_pb2.Model(
            name="models/gpt-4o-mini",
            model_id="gpt-4o-mini",
            display_name="GPT-4o mini",
            provider="openai",
            cost_band=model_pb2.COST_BAND_LOW,
            prices=model_pb2.Prices(input="0.15", output="0.6"),
            lifecycle=model_pb2.Lifecycle(
                stage=model_pb2.LIFECYCLE_STAGE_DEPRECATED,
                shutdown_time=moment(2027, 1, 14),
                successor="gpt-6-luna",
            ),
            context_window=128_000,
            supports_tools=True,
            available=True,
            is_default=True,
        ),
        model_pb2.Model(
            name="models/gpt-6.1-sol",
            model_id="gpt-6.1-sol",
            provider="openai",
            cost_band=model_pb2.COST_BAND_HIGH,
            prices=model_pb2.Prices(input="2.5", output="15", rises_with_length=True),
            lifecycle=model_pb2.Lifecycle(stage=model_pb2.LIFECYCLE_STAGE_ACTIVE),
            context_window=1_000_000,
            supports_tools=True,
            available=True,
        ),
        model_pb2.Model(
            name="models/claude-3-5-sonnet",
            model_id="claude-3-5-sonnet",
            provider="anthropic",
            cost_band=model_pb2.COST_BAND_HIGH,
            prices=model_pb2.Prices(input="3", output="15"),
            lifecycle=model_pb2.Lifecycle(
                stage=model_pb2.LIFECYCLE_STAGE_RETIRED,
                shutdown_time=moment(2025, 10, 28),
                successor="claude-sonnet-5-5",
            ),
            context_window=200_000,
            supports_tools=True,
            unavailable_reason="it was shut down on 2025-10-28; take claude-sonnet-5-5",
        ),
        model_pb2.Model(
            name="models/grok-4.7",
            model_id="grok-4.7",
            provider="xai",
            cost_band=model_pb2.COST_BAND_HIGH,
            lifecycle=model_pb2.Lifecycle(stage=model_pb2.LIFECYCLE_STAGE_ACTIVE),
            context_window=256_000,
            supports_tools=True,
            unavailable_reason="its key is missing: set XAI_API_KEY where the service runs",
        ),
    ]


def tool_call(**more: Any) -> session_pb2.ToolCall:
    return session_pb2.ToolCall(
        call_id="c1",
        tool="metric_series",
        arguments=struct(job="my-run", metrics=["loss"], first_step=1, last_step=200),
        **more,
    )


def tool_result() -> session_pb2.ToolCall:
    return tool_call(
        result=struct(
            job="my-run",
            series=[
                {"metric": "loss", "statistics": {"count": 200}, "spikes": [{"peak_step": 120}]}
            ],
        ),
        duration=0.012,
    )


def record(**more: Any) -> usage_pb2.UsageRecord:
    values: dict[str, Any] = {
        "name": "usage/u1",
        "time": moment(2026, 11, 23),
        "principal": "ops",
        "session": SESSION,
        "message": MESSAGE,
        "requested_model": "gpt-6-luna",
        "used_model": "gpt-6-luna",
        "served_model": "gpt-6-luna-2026",
        "provider": "openai",
        "attempt": 1,
        "outcome": usage_pb2.CALL_OUTCOME_COMPLETED,
        "tokens": usage_pb2.TokenUsage(input=1234, output=56, cache_read=800, reasoning=12),
        "cost": "0.0132",
        "rates": usage_pb2.AppliedRates(input="0.1", output="0.4"),
        "time_to_first_token": 0.35,
        "duration": 3.2,
    }
    values |= more
    return usage_pb2.UsageRecord(**{k: v for k, v in values.items() if v is not None})


def proposal(**more: Any) -> session_pb2.ProposedUpdate:
    spec = update_pb2.UpdateSpec(
        changes=[changes.set_value("learning_rate", 1e-5)], reason="the loss spikes"
    )
    request = control_pb2.UpdateParametersRequest(
        job="jobs/my-run", spec=spec, request_id="draft-1", expected_revision=0
    )
    return session_pb2.ProposedUpdate(
        **{
            "request": request,
            "validated": update_pb2.Update(spec=spec),
            "rationale": "the loss spikes",
            **more,
        }
    )


CITATIONS = [
    session_pb2.Citation(
        job="jobs/my-run", metric="loss", first_step=1, last_step=200, what="metric"
    ),
    session_pb2.Citation(job="jobs/my-run", what="updates"),
]


def choice(**more: Any) -> model_pb2.ModelChoice:
    values: dict[str, Any] = {
        "requested_model": "gpt-6-luna",
        "source": model_pb2.MODEL_SOURCE_SESSION,
        "used_model": "gpt-6-luna",
    }
    return model_pb2.ModelChoice(**(values | more))


def started(**more: Any) -> pb.ChatResponse:
    return pb.ChatResponse(
        started=pb.ChatStarted(session=SESSION, message=MESSAGE, model=choice(), **more)
    )


def answer(text: str, **more: Any) -> session_pb2.Message:
    values: dict[str, Any] = {
        "name": MESSAGE,
        "role": session_pb2.ROLE_ASSISTANT,
        "state": session_pb2.MESSAGE_STATE_COMPLETE,
        "parts": [
            session_pb2.Part(text="I look at the loss."),
            session_pb2.Part(tool_call=tool_result()),
            session_pb2.Part(text=text),
        ],
        "model": choice(served_model="gpt-6-luna-2026"),
        "citations": CITATIONS,
        "create_time": moment(2026, 11, 23),
        "end_time": moment(2026, 11, 23, 3.2),
        "cost": "0.0132",
    }
    return session_pb2.Message(**(values | more))


def done(text: str, **more: Any) -> pb.ChatResponse:
    return pb.ChatResponse(done=pb.ChatDone(message=answer(text, **more)))


TEXT = "The loss **spiked** at step 120:\n\n- before: 1.2\n- after: 3.4\n\nSee `loss`."


def with_tools() -> tuple[Step, ...]:
    """An answer that calls a tool and drafts a change."""
    return (
        started(),
        delta("I look at the loss."),
        pb.ChatResponse(tool_call=tool_call()),
        pb.ChatResponse(tool_result=tool_result()),
        *(delta(TEXT[i : i + 7]) for i in range(0, len(TEXT), 7)),
        pb.ChatResponse(proposed_update=proposal()),
        pb.ChatResponse(usage=record()),
        done(TEXT),
    )


def session(**more: Any) -> session_pb2.Session:
    values: dict[str, Any] = {
        "name": SESSION,
        "title": "Why did the loss spike?",
        "model_id": "gpt-6-luna",
        "principal": "ops",
        "create_time": moment(2026, 11, 22),
        "update_time": moment(2026, 11, 23),
        "message_count": 2,
        "cost": "0.0132",
        "etag": "3",
    }
    return session_pb2.Session(**(values | more))


def summary(key: str = "", **more: Any) -> usage_pb2.UsageSummary:
    values: dict[str, Any] = {
        "key": key,
        "calls": 3,
        "tokens": usage_pb2.TokenUsage(input=12_345, output=678, cache_read=800),
        "cost": "1.5",
    }
    return usage_pb2.UsageSummary(**(values | more))


def budget(**more: Any) -> usage_pb2.Budget:
    values: dict[str, Any] = {
        "name": "budgets/-/-/day",
        "period": usage_pb2.BUDGET_PERIOD_DAY,
        "limit": "5",
        "spent": "1.2503",
        "reserved": "0.01",
        "start_time": moment(2026, 11, 23),
        "end_time": moment(2026, 11, 24),
    }
    return usage_pb2.Budget(**(values | more))
