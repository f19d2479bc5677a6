"""The scripted analytics service in a thread of its own, and the command that is told of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli.main import app
from tests.support.fake_control_plane import FakeControlPlane, make_job
from tests.support.scripted_analytics import ScriptedAnalytics


class Service:
    """A scripted service that runs while the test blocks.

    Attributes:
        scripted: What it answers, to be set before it is asked.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted analytics")
        self._thread.start()
        self.scripted: ScriptedAnalytics = self.do(self._start)

    async def _start(self) -> ScriptedAnalytics:
        return await ScriptedAnalytics().__aenter__()

    def do(self, work: Callable[[], Any]) -> Any:
        """Runs a coroutine function where the service runs."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work(), self._loop)
        return future.result(20)

    @property
    def address(self) -> str:
        return self.scripted.address

    def close(self) -> None:
        self.do(self.scripted.__aexit__)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    yield running
    running.close()


@pytest.fixture
def scripted(service: Service) -> ScriptedAnalytics:
    return service.scripted


@pytest.fixture
def plane() -> Iterator[FakeControlPlane]:
    with FakeControlPlane() as fake:
        fake.add(make_job("my-run"))
        yield fake


@dataclass(frozen=True)
class Command:
    """The command in this process, told of the service by the environment."""

    address: str

    def __call__(
        self, *args: str, code: int = 0, stdin: str = "", columns: int = 140, **env: str
    ) -> Result:
        given = {"MIDCOURSE_ANALYTICS": self.address, "COLUMNS": str(columns), "NO_COLOR": "1"}
        result = CliRunner().invoke(app, args, input=stdin, env=given | env)
        assert result.exit_code == code, result.output
        return result


@pytest.fixture
def midcourse(service: Service) -> Command:
    return Command(service.address)
