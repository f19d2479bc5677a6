"""The `midcourse` command in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner, Result

from control_plane.cli.main import app


@dataclass(frozen=True)
class Midcourse:
    """Runs the command, and checks its exit code and that it complains in one line.

    Attributes:
        address: Of the control plane that it is told of by the environment.
    """

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
