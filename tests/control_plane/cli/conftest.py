from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli.main import app
from tests.support.fake_control_plane import FakeControlPlane, make_job


@pytest.fixture
def server() -> Iterator[FakeControlPlane]:
    with FakeControlPlane() as fake:
        fake.add(make_job("my-run"))
        yield fake


@dataclass(frozen=True)
class Midcourse:
    """Runs the command in this process."""

    address: str

    def __call__(self, *args: str, code: int = 0) -> Result:
        env = {"MIDCOURSE_CONTROL_PLANE": self.address, "COLUMNS": "120", "NO_COLOR": "1"}
        result = CliRunner().invoke(app, args, env=env)
        assert result.exit_code == code, result.output
        if code:
            assert result.stderr.startswith("midcourse: ")
            assert result.stderr.count("\n") == 1, result.stderr
        else:
            assert not result.stderr
        return result

    def json(self, *args: str, code: int = 0) -> Any:
        result = self(*args, "-o", "json", code=code)
        return json.loads(result.stdout)


@pytest.fixture
def midcourse(server: FakeControlPlane) -> Midcourse:
    return Midcourse(server.address)
