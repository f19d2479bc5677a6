"""An analytics service in the test's own event loop, behind a real port, with a fake provider."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from analytics_service.client import AsyncClient
from analytics_service.config import AnalyticsSettings
from analytics_service.ports import Clock
from analytics_service.server import Analytics, utc_now
from grpc_runtime.auth import Authenticator
from tests.support.fake_provider import BOUND, FakeProvider, fake_provider

OPENAI_MODEL = "gpt-6-luna"
ANTHROPIC_MODEL = "claude-haiku-5-5"
XAI_MODEL = "grok-4.3"

NOBODY = "127.0.0.1:1"
"""Where no control plane listens."""

_KEYS = {"OPENAI_API_KEY": "sk-test-1", "ANTHROPIC_API_KEY": "sk-test-2", "XAI_API_KEY": "sk-t-3"}


async def until(condition: Callable[[], object], seconds: float = BOUND) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody of its changes
            await asyncio.sleep(0.001)  # between two looks


@dataclass(frozen=True)
class RunningAnalytics:
    """The service, a client of it and the fake that it asks."""

    service: Analytics
    client: AsyncClient
    fake: FakeProvider

    @property
    def address(self) -> str:
        return str(self.service.service.address)


def catalogue_of(fake: FakeProvider) -> str:
    """A catalogue file that sends every provider's calls to the fake."""
    return "".join(
        f'[[providers]]\nid = "{provider}"\nbase_url = "{url}"\n\n'
        for provider, url in (
            ("openai", fake.openai_url),
            ("anthropic", fake.anthropic_url),
            ("xai", fake.openai_url),
        )
    )


@contextlib.contextmanager
def provider_keys(**changes: str | None) -> Any:
    """Sets the providers' keys in the environment, and nothing else of theirs."""
    keys = {**_KEYS, **changes}
    with mock.patch.dict(os.environ, {k: v for k, v in keys.items() if v is not None}):
        for name, value in keys.items():
            if value is None:
                os.environ.pop(name, None)
        os.environ.pop("ANALYTICS_DEFAULT_MODEL", None)
        # Reading the system's certificates is most of what building a client takes.
        os.environ.pop("SSL_CERT_FILE", None)
        os.environ["SSL_CERT_DIR"] = os.devnull
        yield


@contextlib.asynccontextmanager
async def running_analytics(
    folder: Path,
    *,
    fake: FakeProvider | None = None,
    database: str | None = None,
    keys: dict[str, str | None] | None = None,
    clock: Clock = utc_now,
    authenticator: Authenticator | None = None,
    **settings: Any,
) -> AsyncIterator[RunningAnalytics]:
    """Serves on a free port while the block runs.

    Args:
        folder: For the catalogue's file and, unless one is given, the database.
        fake: Asked instead of the providers; None: one is made.
        database: Address of a database; None: a file in the folder.
        keys: Providers' keys to set otherwise, or to leave out.
        clock: Tells the service the time.
        authenticator: Tells it who calls.
        settings: Settings of the service.
    """
    async with contextlib.AsyncExitStack() as stack:
        if fake is None:
            fake = await stack.enter_async_context(fake_provider())
        stack.enter_context(provider_keys(**(keys or {})))
        catalogue = folder / "models.toml"
        catalogue.write_text(catalogue_of(fake) + settings.pop("more_catalogue", ""))
        options = {
            "listen": "127.0.0.1:0",
            "control_plane": NOBODY,
            "default_model": OPENAI_MODEL,
            "grace": 2.0,
            **settings,
        }
        made = await stack.enter_async_context(
            Analytics.open(
                AnalyticsSettings(
                    database=database or str(folder / "analytics.db"),
                    catalogue=catalogue,
                    **options,
                ),
                clock=clock,
                authenticator=authenticator,
            )
        )
        client = await stack.enter_async_context(AsyncClient(str(made.service.address)))
        yield RunningAnalytics(made, client, fake)
