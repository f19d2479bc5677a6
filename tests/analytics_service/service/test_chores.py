"""What becomes of the service where one of its chores fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analytics_service import server
from analytics_service.config import AnalyticsSettings
from analytics_service.upkeep import Upkeep
from grpc_runtime.server import ServerCrashedError


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
