"""The control plane put together: what becomes of it where a part of it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control_plane import server
from control_plane.config import ServerSettings
from control_plane.services.access import TokenService
from grpc_runtime.listen import ListenError
from grpc_runtime.server import ServerCrashedError, Service


async def test_a_chore_that_fails_is_no_good_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody would start it again."""

    async def fail(_self: Any) -> None:
        raise LookupError("no such table")

    monkeypatch.setattr(TokenService, "run", fail)
    settings = ServerSettings(listen="127.0.0.1:0", database=str(tmp_path / "control.db"))
    with pytest.raises(ServerCrashedError, match="task 'tokens' failed: no such table"):
        await server._serve(settings)


async def test_who_may_not_listen_for_metrics_leaves_no_database_behind(tmp_path: Path) -> None:
    async with Service("127.0.0.1:0", domain="test.example") as other:
        settings = ServerSettings(
            listen="127.0.0.1:0",
            database=str(tmp_path / "control.db"),
            metrics_listen=str(other.address),
        )
        with pytest.raises(ListenError):
            async with server.ControlPlane.open(settings):
                pass
    assert _is_empty(tmp_path)


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())
