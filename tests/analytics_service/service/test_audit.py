"""The analytics service's record of who changed what, over a real channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory

from analytics_service.client import AsyncClient, MidcourseError, PermissionDeniedError
from analytics_service.rpc.auditing import CHANGES
from analytics_service.store import schema
from midcourse.analytics.v1 import analytics_pb2
from tests.support.analytics import RunningAnalytics, running_analytics
from tests.support.callers import Names, named
from tests.support.fake_provider_script import Reply, text

READS = ("Get", "List", "Recommend")


def test_every_method_that_changes_something_is_described() -> None:
    asked = {
        message_factory.GetMessageClass(method.input_type)
        for service in analytics_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.name.startswith(READS)
    }
    assert asked == set(CHANGES), "say in analytics_service.rpc.auditing what is told of it"


async def told(client: AsyncClient, **query: Any) -> list[tuple[str, str, str, str]]:
    """The records, the oldest first."""
    found = [each async for each in client.list_audit_records(**query)]
    return [
        (each.principal, each.resource, each.summary, each.error_reason or each.code)
        for each in reversed(found)
    ]


async def use_everything(analytics: RunningAnalytics) -> list[tuple[str, str, str, str]]:
    """Does whatever can be done; returns what is to be on record."""
    analytics.fake.default = lambda _: Reply((text("42"),))
    root = named(analytics.client, "root*admin")
    eve = named(analytics.client, "eve")
    await root.set_budget("2.50", "day", principal="eve")
    with pytest.raises(MidcourseError):
        await root.set_budget(-1, "month")
    made = await eve.create_session(title="mine")
    await eve.update_session(made.name, title="ours")
    answer = await eve.ask("how many?", session=made.name, request_id="r-1")
    await eve.ask("how many?", session=made.name, request_id="r-1")
    await eve.cancel_chat(answer.message.name)
    with pytest.raises(PermissionDeniedError):
        await eve.set_budget(99, "day")
    await eve.delete_session(made.name)
    # Neither reading nor advice changes anything.
    await eve.list_models()
    await eve.recommend_model("how many?")
    return [
        ("root", "budgets", "2.50 USD per day for eve on all models", "OK"),
        ("root", "budgets", "-1 USD per month for everybody on all models", "INVALID_ARGUMENT"),
        ("eve", made.name, "create", "OK"),
        ("eve", made.name, "change title", "OK"),
        ("eve", answer.message.name, "ask, 9 characters", "OK"),
        ("eve", made.name, "ask, 9 characters", "OK"),
        ("eve", answer.message.name, "cancel", "OK"),
        ("eve", "budgets", "99 USD per day for everybody on all models", "ROLE_REQUIRED"),
        ("eve", made.name, "delete", "OK"),
    ]


async def test_changes_and_refusals_are_recorded(tmp_path: Path) -> None:
    async with running_analytics(tmp_path, authenticator=Names()) as analytics:
        expected = await use_everything(analytics)
        root = named(analytics.client, "root*admin")
        assert sorted(await told(root)) == sorted(expected)
        session = expected[2][1]
        below = [each for each in expected if each[1].startswith(session)]
        assert sorted(await told(root, resource=session)) == sorted(below)
        assert {each[0] for each in await told(root, principal="eve", page_size=2)} == {"eve"}
        with pytest.raises(PermissionDeniedError):
            await told(named(analytics.client, "eve"))


async def test_changes_and_refusals_are_recorded_in_postgresql(
    tmp_path: Path, postgres_address: str
) -> None:
    async with running_analytics(
        tmp_path, database=postgres_address, authenticator=Names()
    ) as analytics:
        expected = await use_everything(analytics)
        root = named(analytics.client, "root*admin")
        assert sorted(await told(root)) == sorted(expected)


async def test_a_change_and_its_record_are_one(tmp_path: Path) -> None:
    """Without the record there is no change."""
    async with running_analytics(tmp_path) as analytics:
        store: Any = analytics.service.chat._store
        await store._write(schema.audit_records.drop)
        with pytest.raises(MidcourseError):
            await analytics.client.create_session(title="mine")
        assert [each async for each in analytics.client.list_sessions()] == []
        analytics.service.audit._waiting.clear()
