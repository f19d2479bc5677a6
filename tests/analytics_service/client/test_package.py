"""What the client exports, and what it needs."""

from __future__ import annotations

import subprocess
import sys

from analytics_service import client
from control_plane import client as control_plane_client


def test_everything_exported_exists() -> None:
    assert [name for name in client.__all__ if not hasattr(client, name)] == []


def test_both_services_clients_raise_the_same_exceptions() -> None:
    shared = {
        name
        for name in client.__all__
        if isinstance(getattr(client, name), type)
        and issubclass(getattr(client, name), client.MidcourseError)
    }
    assert len(shared) > 10
    for name in shared:
        assert getattr(client, name) is getattr(control_plane_client, name)


def test_the_client_needs_only_the_base_install() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, analytics_service.client; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    extras = {
        "alembic",
        "anthropic",
        "control_plane",
        "genai_prices",
        "openai",
        "pydantic",
        "pydantic_settings",
        "sklearn",
        "sqlalchemy",
        "torch",
        "transformers",
        "uvloop",
    }
    ours = {name for name in loaded if name.startswith("analytics_service.")}
    assert "analytics_service.client" in ours
    assert extras & set(loaded) == set()
    assert {name.split(".")[1] for name in ours} == {"client", "_client"}
