"""What Prometheus reads of a control plane that has something to do."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from control_plane.config import ServerSettings
from control_plane.server import ControlPlane
from grpc_runtime.listen import ListenError
from tests.support.plane import RunningPlane, error_of, running_plane

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "docs" / "grafana" / "midcourse.json"


class Reader:
    """Reads the metrics as Prometheus does."""

    def __init__(self, plane: RunningPlane) -> None:
        self._url = f"http://{plane.plane.observation.metrics_address}/metrics"

    async def families(self) -> dict[str, Any]:
        with await asyncio.to_thread(urllib.request.urlopen, self._url, timeout=10) as answer:
            text = answer.read().decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    async def value(self, sample: str, **labels: str) -> float | None:
        """The value of a sample; None: there is none."""
        for family in (await self.families()).values():
            for each in family.samples:
                if each.name == sample and labels.items() <= each.labels.items():
                    return float(each.value)
        return None


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[RunningPlane]:
    async with running_plane(tmp_path / "control.db", metrics_listen="127.0.0.1:0") as running:
        yield running


@pytest.fixture
def read(plane: RunningPlane) -> Reader:
    return Reader(plane)


async def test_updates_are_counted_by_state_and_timed(plane: RunningPlane, read: Reader) -> None:
    agent = await plane.agent()
    assert await read.value("midcourse_sessions") == 1
    assert await read.value("midcourse_updates_total", state="applied") == 0
    update = await plane.update(request_id="once")
    await plane.update(request_id="once")
    await plane.update(validate_only=True)
    await agent.apply(update.revision)
    await plane.wait(update.revision)
    assert await read.value("midcourse_updates_total", state="pending") == 1
    assert await read.value("midcourse_updates_total", state="applied") == 1
    assert await read.value("midcourse_update_seconds_count") == 1
    await agent.apply(update.revision)
    assert await read.value("midcourse_updates_total", state="applied") == 1, "told twice"


async def test_calls_are_timed_by_method_and_status(plane: RunningPlane, read: Reader) -> None:
    await error_of(plane.get_job("nobody"))
    count = "grpc_server_handling_seconds_count"
    assert await read.value(count, grpc_method="GetJob", grpc_code="NOT_FOUND") == 1
    for name in ("/made.up/One", "/made.up/Two"):
        call: Any = plane.channel.unary_unary(name)
        await error_of(call(b""))
    families = await read.families()
    methods = {
        each.labels["grpc_method"] for each in families["grpc_server_handling_seconds"].samples
    }
    assert methods == {"GetJob", "unknown"}, "a caller can not make up series"


async def test_the_store_is_timed_and_refusals_are_not_its_failures(
    plane: RunningPlane, read: Reader
) -> None:
    await error_of(plane.update("nobody"))
    assert (await read.value("midcourse_store_seconds_count", kind="write") or 0) >= 1
    assert await read.value("midcourse_store_transactions", kind="write") == 0
    assert not await read.value("midcourse_store_failures_total", kind="write")


async def test_the_dashboard_and_the_docs_name_what_there_is(
    plane: RunningPlane, read: Reader
) -> None:
    agent = await plane.agent()
    update = await plane.update()
    await agent.apply(update.revision)
    await plane.wait(update.revision)
    families = await read.families()
    there = {each.name for family in families.values() for each in family.samples}
    there |= {f"{name}_total" for name in families}  # perhaps without a sample so far
    pages = ("observability.md", "operations.md", "prometheus/alerts.yaml")
    for text in (DASHBOARD.read_text(), *((ROOT / "docs" / page).read_text() for page in pages)):
        named = set(re.findall(r"\b(?:midcourse|grpc_server)_[a-z_]*[a-z]\b", text))
        assert len(named) >= 8
        assert named <= there | {re.sub(r"_(bucket|count|sum|total)$", "", each) for each in there}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert all(target["expr"] for panel in panels for target in panel.get("targets", []))


async def test_an_address_that_is_taken_is_an_error_in_one_line(
    plane: RunningPlane, tmp_path: Path
) -> None:
    taken = str(plane.plane.observation.metrics_address)
    settings = ServerSettings(
        database=str(tmp_path / "other.db"), listen="127.0.0.1:0", metrics_listen=taken
    )
    with pytest.raises(ListenError, match=f"cannot serve metrics on {re.escape(taken)}: Address"):
        async with ControlPlane.open(settings):
            raise AssertionError("it was opened")


async def test_without_the_setting_nothing_is_measured(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "control.db") as running:
        assert running.plane.observation.metrics_address is None
