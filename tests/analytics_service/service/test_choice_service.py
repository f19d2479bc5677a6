"""Which model answers, as callers see it: asked for, used, served, why; or refused, unrecorded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from analytics_service.client import (
    FailedPreconditionError,
    InvalidArgumentError,
    MidcourseError,
)
from analytics_service.config import AnalyticsSettings
from analytics_service.errors import Refusal
from midcourse.analytics.v1 import model_pb2
from tests.support.analytics import RunningAnalytics, running_analytics
from tests.support.fake_provider import Reply, text

ACTIVE = "gpt-6-luna"
OTHER = "claude-haiku-5-5"
DEPRECATED = "gpt-4o-mini"
RETIRED, SUCCESSOR = "claude-3-5-sonnet", "claude-sonnet-5-5"
KEYLESS = "grok-4.3"
KEYLESS_RETIRED = "grok-beta"
UNKNOWN = "gpt-7-nova"

REQUEST = model_pb2.MODEL_SOURCE_REQUEST
SESSION = model_pb2.MODEL_SOURCE_SESSION
CONFIGURATION = model_pb2.MODEL_SOURCE_CONFIGURATION
BUILT_IN = model_pb2.MODEL_SOURCE_BUILT_IN


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@dataclass(frozen=True)
class Case:
    """Who names which model, and what comes of it: a model, or a reason."""

    request: str
    session: str
    default: str | None
    outcome: str
    source: model_pb2.ModelSource.ValueType | None = None
    follow: bool | None = None


CASES = [
    Case(ACTIVE, OTHER, OTHER, ACTIVE, REQUEST),
    Case("", OTHER, ACTIVE, OTHER, SESSION),
    Case("", "", OTHER, OTHER, CONFIGURATION),
    Case("", "", None, DEPRECATED, BUILT_IN),
    Case(DEPRECATED, "", ACTIVE, DEPRECATED, REQUEST),
    Case("", DEPRECATED, ACTIVE, DEPRECATED, SESSION),
    Case(UNKNOWN, ACTIVE, ACTIVE, "MODEL_UNKNOWN"),
    Case(RETIRED, ACTIVE, ACTIVE, "MODEL_RETIRED"),
    Case(RETIRED, ACTIVE, ACTIVE, SUCCESSOR, REQUEST, follow=True),
    Case(RETIRED, ACTIVE, ACTIVE, "MODEL_RETIRED", follow=False),
    Case("", "", RETIRED, "MODEL_RETIRED"),
    Case("", "", RETIRED, SUCCESSOR, CONFIGURATION, follow=True),
    Case(ACTIVE, "", RETIRED, ACTIVE, REQUEST),
    Case(KEYLESS, ACTIVE, ACTIVE, "MODEL_UNAVAILABLE"),
    Case("", "", KEYLESS, "MODEL_UNAVAILABLE"),
    Case(KEYLESS_RETIRED, ACTIVE, ACTIVE, "MODEL_UNAVAILABLE", follow=True),
    Case("claude-haiku", "", ACTIVE, "MODEL_UNKNOWN"),
]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def analytics(tmp_path: Path, clock: Clock) -> AsyncIterator[RunningAnalytics]:
    async with running_analytics(
        tmp_path, clock=clock, keys={"XAI_API_KEY": None}, default_model=None
    ) as running:
        running.fake.default = Reply((text("hi"),))
        yield running


def set_default(analytics: RunningAnalytics, model: str | None) -> None:
    chat = analytics.service.chat
    chat._policy = type(chat._policy)(default=model)


async def recorded(analytics: RunningAnalytics) -> tuple[int, int, int]:
    """Sessions, messages and calls."""
    sessions = [session async for session in analytics.client.list_sessions()]
    calls = [record async for record in analytics.client.list_usage()]
    return len(sessions), sum(each.message_count for each in sessions), len(calls)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_who_decides_and_what_is_told(analytics: RunningAnalytics, case: Case) -> None:
    set_default(analytics, case.default)
    session = ""
    if case.session:
        session = (await analytics.client.create_session(model=case.session)).name
    before = await recorded(analytics)
    if case.source is None:
        with pytest.raises(MidcourseError) as refused:
            await analytics.client.ask(
                "hello?", session=session, model=case.request, follow_successor=case.follow
            )
        error = refused.value
        assert error.reason == case.outcome
        kind = InvalidArgumentError if case.outcome == "MODEL_UNKNOWN" else FailedPreconditionError
        assert isinstance(error, kind)
        named = case.request or case.session or case.default
        assert named
        assert f'"{named}"' in error.message
        assert error.metadata["requested"] == named
        assert ACTIVE in error.message or SUCCESSOR in error.message  # what to do
        assert await recorded(analytics) == before
        assert analytics.fake.requests == []
        return
    answer = await analytics.client.ask(
        "hello?", session=session, model=case.request, follow_successor=case.follow
    )
    choice = answer.model
    assert choice.requested_model == (case.request or case.session or case.default or DEPRECATED)
    assert choice.used_model == case.outcome
    assert choice.source == case.source
    assert choice.served_model
    assert bool(choice.difference) == (choice.requested_model != choice.used_model)
    assert bool(choice.notice) == (case.outcome == DEPRECATED)
    assert answer.message.model == choice
    (record,) = [record async for record in analytics.client.list_usage()]
    assert record.requested_model == choice.requested_model
    assert record.used_model == choice.used_model
    assert record.served_model == choice.served_model
    sessions, messages, calls = await recorded(analytics)
    assert (sessions, messages, calls) == (1, 2, 1)
    # What the request named stays; what it did not name is not written into the session.
    kept = (await analytics.client.get_session(answer.session)).model_id
    assert kept == (case.outcome if case.request else case.session)


async def test_a_session_whose_model_retires_meanwhile(
    analytics: RunningAnalytics, clock: Clock
) -> None:
    set_default(analytics, ACTIVE)
    first = await analytics.client.ask("one?", model=DEPRECATED)
    assert "2027-01-14" in first.model.notice
    clock.now = datetime(2027, 1, 14, tzinfo=UTC) + timedelta(hours=1)
    before = await recorded(analytics)
    with pytest.raises(FailedPreconditionError) as refused:
        await analytics.client.ask("two?", session=first.session)
    assert refused.value.reason == "MODEL_RETIRED"
    assert refused.value.metadata["successor"] == ACTIVE
    assert refused.value.metadata["source"] == "session"
    assert await recorded(analytics) == before
    # Its transcript stays, and so does its choice, until somebody decides.
    session = await analytics.client.get_session(first.session)
    assert (session.model_id, session.message_count) == (DEPRECATED, 2)
    await analytics.client.update_session(first.session, follow_successor=True)
    second = await analytics.client.ask("two?", session=first.session)
    assert (second.model.requested_model, second.model.used_model) == (DEPRECATED, ACTIVE)
    assert second.model.difference
    # The day's list says the same.
    listed = {model.model_id: model for model in await analytics.client.list_models()}
    assert listed[DEPRECATED].lifecycle.stage == model_pb2.LIFECYCLE_STAGE_RETIRED


async def test_the_same_request_is_answered_again_after_its_model_has_retired(
    analytics: RunningAnalytics, clock: Clock
) -> None:
    first = await analytics.client.ask("one?", model=DEPRECATED, request_id="r")
    clock.now = datetime(2027, 2, 1, tzinfo=UTC)
    again = await analytics.client.ask("one?", model=DEPRECATED, request_id="r")
    assert again.replayed
    assert again.message == first.message
    assert len(analytics.fake.requests) == 1


async def test_a_default_that_is_retired_and_followed_by_configuration(tmp_path: Path) -> None:
    async with running_analytics(
        tmp_path, default_model=RETIRED, follow_successors=True
    ) as analytics:
        analytics.fake.default = Reply((text("hi"),))
        answer = await analytics.client.ask("hello?")
        assert answer.model.source == CONFIGURATION
        assert answer.model.used_model == SUCCESSOR
        with pytest.raises(FailedPreconditionError):
            await analytics.client.ask("hello?", follow_successor=False)


async def test_a_default_that_is_retired_is_logged_at_the_start(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running_analytics(tmp_path, default_model=RETIRED):
            pass
    (entry,) = [each for each in logs if "retired" in each["event"]]
    assert (entry["log_level"], entry["model"], entry["successor"]) == (
        "warning", RETIRED, SUCCESSOR,
    )  # fmt: skip


async def test_no_retired_model_takes_over(tmp_path: Path) -> None:
    async with running_analytics(tmp_path, failover=[RETIRED, OTHER], attempts=1) as analytics:
        analytics.fake.fail(503)
        analytics.fake.reply(text("hi"))
        answer = await analytics.client.ask("hello?")
        assert answer.model.used_model == OTHER


async def test_a_session_created_with_a_retired_model_tells_of_it_with_each_answer(
    analytics: RunningAnalytics,
) -> None:
    session = await analytics.client.create_session(model=RETIRED, follow_successor=True)
    assert session.model_id == RETIRED
    for _ in range(2):
        answer = await analytics.client.ask("hello?", session=session.name)
        assert (answer.model.requested_model, answer.model.used_model) == (RETIRED, SUCCESSOR)
        assert "retired" in answer.model.difference


async def test_the_environment_names_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANALYTICS_DEFAULT_MODEL", OTHER)
    assert AnalyticsSettings.load().default_model == OTHER


async def test_a_default_that_nobody_knows_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        async with running_analytics(tmp_path, default_model=UNKNOWN):
            pass
    assert refused.value.reason == "MODEL_UNKNOWN"
    async with running_analytics(tmp_path):
        pass  # the database was left as it should be
