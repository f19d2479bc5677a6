"""What becomes of the service where a part of it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analytics_service import server
from analytics_service.config import AnalyticsSettings
from analytics_service.upkeep import Upkeep
from grpc_runtime.listen import ListenError
from grpc_runtime.server import ServerCrashedError, Service


async def test_a_chore_that_fails_is_no_good_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody would start it again."""

    async def fail(_self: Any) -> None:
        raise LookupError("no such table")

    monkeypatch.setattr(Upkeep, "run", fail)
    settings = AnalyticsSettings(listen="127.0.0.1:0", database=str(tmp_path / "analytics.db"))
    with pytest.raises(ServerCrashedError, match="task 'upkeep' failed: no such table"):
        await server._serve(settings)


async def test_who_may_not_listen_for_metrics_leaves_no_database_behind(tmp_path: Path) -> None:
    async with Service("127.0.0.1:0", domain="test.example") as other:
        settings = AnalyticsSettings(
            listen="127.0.0.1:0",
            database=str(tmp_path / "analytics.db"),
            metrics_listen=str(other.address),
        )
        with pytest.raises(ListenError):
            async with server.Analytics.open(settings):
                pass
    assert _is_empty(tmp_path)


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())
