"""Tokens at the analytics service: the control plane says whose they are, and gets them too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from analytics_service.client import (
    AsyncClient,
    PermissionDeniedError,
    RetryPolicy,
    UnauthenticatedError,
    UnavailableError,
)
from control_plane.services.ports import Transaction
from grpc_runtime.bearer import bearer_metadata
from grpc_runtime.client.credentials import CredentialsError
from tests.support.analytics import RunningAnalytics, running_analytics
from tests.support.domain_values import job
from tests.support.fake_provider import BOUND, Request
from tests.support.fake_provider_script import Reply, Stall, text, tool_call
from tests.support.secured import SecuredPlane, secured_plane


@dataclass
class Both:
    """A control plane and an analytics service that asks it."""

    secured: SecuredPlane
    analytics: RunningAnalytics


def _fill(tx: Transaction) -> None:
    for team in ("nlp", "cv"):
        tx.insert_job(job(id=f"run-{team}", uid=team, labels={"team": team}))


@contextlib.asynccontextmanager
async def both(folder: Path) -> AsyncIterator[Both]:
    async with secured_plane(folder / "control.db") as secured:
        await secured.plane._store.write(_fill)
        address = str(secured.plane.service.address)
        async with running_analytics(folder, control_plane=address, auth="token") as analytics:
            yield Both(secured, analytics)


async def test_a_question_is_answered_with_the_callers_own_rights(tmp_path: Path) -> None:
    results: list[str] = []

    def model(request: Request) -> Reply:
        told = json.dumps(request.body)
        if "run-" in told or "call_a" in told:
            results.append(told)
            return Reply((text("done"),))
        return Reply((tool_call("list_jobs", {}, "call_a"),))

    async with both(tmp_path) as here:
        here.analytics.fake.default = model
        who = await here.secured.caller("viewer", selector="team=nlp", principal="eve")
        client = here.analytics.client.with_metadata(who)
        session = (await client.ask("which runs?")).session
        assert (await client.get_session(session)).principal == "eve"
        (told,) = results
        assert "run-nlp" in told
        assert "run-cv" not in told


async def test_neither_tokens_nor_tools_need_the_threads_that_look_up_addresses(
    tmp_path: Path,
) -> None:
    loop, over = asyncio.get_running_loop(), threading.Event()
    few = ThreadPoolExecutor(1)
    async with both(tmp_path) as here:
        here.analytics.fake.reply(text("hello"))
        here.analytics.fake.reply(tool_call("list_jobs", {}, "call_a"))
        here.analytics.fake.reply(text("done"))
        who, other = [await here.secured.caller("viewer") for _ in range(2)]
        # The SDK too needs them for its first call.
        await here.analytics.client.with_metadata(other).ask("hello?")
        client = here.analytics.client.with_metadata(who)
        loop.set_default_executor(few)
        busy = loop.run_in_executor(None, over.wait)
        try:
            async with asyncio.timeout(BOUND):
                answer = await client.ask("which runs?")
        finally:
            over.set()
        await busy
    (part, _) = answer.message.parts
    assert part.tool_call.result["jobs"]


async def test_who_may_not_is_told_so(tmp_path: Path) -> None:
    async with both(tmp_path) as here:
        client = here.analytics.client
        with pytest.raises(UnauthenticatedError, match="MIDCOURSE_TOKEN_FILE"):
            await client.list_models()
        with pytest.raises(UnauthenticatedError, match="not one of this"):
            await client.with_metadata(bearer_metadata("mc_unknown")).list_models()
        viewer = client.with_metadata(await here.secured.caller("viewer"))
        assert await viewer.list_models()
        with pytest.raises(PermissionDeniedError, match="admin"):
            await viewer.set_budget(1, "day")
        agent = client.with_metadata(await here.secured.caller("agent", jobs=["x"]))
        with pytest.raises(PermissionDeniedError, match="viewer"):
            await agent.list_models()
        admin = client.with_metadata(await here.secured.caller("admin"))
        await admin.set_budget(1, "day")


async def refusal(client: AsyncClient) -> str:
    """Why the client is not served; empty: it is."""
    try:
        await client.list_models()
    except UnauthenticatedError as error:
        return error.message
    return ""


async def test_a_revoked_token_is_worth_nothing_here_either(tmp_path: Path) -> None:
    async with both(tmp_path) as here:
        name, secret = await here.secured.token("viewer")
        client = here.analytics.client.with_metadata(bearer_metadata(secret))
        await client.list_models()
        await here.secured.plane.tokens.revoke(name.removeprefix("tokens/"))
        # It may be remembered for two seconds.
        async with asyncio.timeout(10):
            while not (refused := await refusal(client)):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)
        assert "revoked" in refused


async def test_answers_end_with_the_tokens_that_asked(tmp_path: Path) -> None:
    async with both(tmp_path) as here:
        here.analytics.fake.default = lambda _: Reply((text("on and on"), Stall()))

        async def ending(lifetime: timedelta | None) -> str:
            name, secret = await here.secured.token("viewer", lifetime=lifetime)
            client = here.analytics.client.with_metadata(bearer_metadata(secret))
            chat = client.chat("for how long?")
            async for _ in chat:
                if lifetime is None:
                    await here.secured.plane.tokens.revoke(name.removeprefix("tokens/"))
            return "it ended well"

        async with asyncio.timeout(60):
            endings = await asyncio.gather(
                ending(None), ending(timedelta(seconds=2)), return_exceptions=True
            )
        for ended in endings:
            assert isinstance(ended, UnauthenticatedError)
            assert ended.reason == "TOKEN_ENDED"


async def test_without_the_control_plane_nobody_is_known(tmp_path: Path) -> None:
    async with both(tmp_path) as here:
        who = await here.secured.caller("viewer")
        await here.secured.plane.service.stop(0)
        once = RetryPolicy(attempts=1)
        async with AsyncClient(here.analytics.address, retry=once) as client:
            with pytest.raises(UnavailableError) as down:
                await client.with_metadata(who).list_models()
        assert down.value.reason == "CONTROL_PLANE_UNAVAILABLE"


async def test_a_control_plane_that_asks_nobody_for_a_token_can_not_tell(tmp_path: Path) -> None:
    async with secured_plane(tmp_path / "control.db", auth="none") as secured:
        address = str(secured.plane.service.address)
        async with running_analytics(tmp_path, control_plane=address, auth="token") as analytics:
            who = await secured.caller("admin")
            with pytest.raises(UnauthenticatedError, match="auth token"):
                await analytics.client.with_metadata(who).list_models()


async def test_callers_tokens_are_not_forwarded_in_clear(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"control_plane": "plane.example:50051", "auth": "token"}
    with pytest.raises(CredentialsError, match="without TLS"):
        async with running_analytics(tmp_path, **settings):
            pass
