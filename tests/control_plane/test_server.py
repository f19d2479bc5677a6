"""The control plane put together: what becomes of it where a part of it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control_plane import server
from control_plane.config import ServerSettings
from control_plane.services.access import TokenService
from control_plane.store.store import SqlStore
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


async def test_the_store_is_closed_where_the_rest_can_not_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    close = SqlStore.close

    async def note(store: SqlStore) -> None:
        await close(store)
        closed.append("store")

    monkeypatch.setattr(SqlStore, "close", note)
    async with Service("127.0.0.1:0", domain="test.example") as other:
        settings = ServerSettings(
            listen="127.0.0.1:0",
            database=str(tmp_path / "control.db"),
            metrics_listen=str(other.address),
        )
        with pytest.raises(ListenError):
            async with server.ControlPlane.open(settings):
                pass
    assert closed == ["store"]
