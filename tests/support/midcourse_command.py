"""The `midcourse` command in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner, Result

from control_plane.cli.exits import ExitCode
from control_plane.cli.main import app


@dataclass(frozen=True)
class Midcourse:
    """Runs the command, and checks its exit code and that it complains in one line.

    Attributes:
        address: Of the control plane that it is told of by the environment.
    """

    address: str

    def __call__(self, *args: str, code: int = 0, notes: str = "") -> Result:
        """Runs it; ``notes`` is what it says on stderr beside what it complains of."""
        env = {"MIDCOURSE_CONTROL_PLANE": self.address, "COLUMNS": "120", "NO_COLOR": "1"}
        result = CliRunner().invoke(app, args, env=env)
        assert result.exit_code == code, result.output
        assert result.stderr.startswith(notes)
        complaint = result.stderr.removeprefix(notes)
        if code not in (0, ExitCode.INTERRUPTED):
            assert complaint.startswith("midcourse: ")
            assert complaint.count("\n") == 1, result.stderr
        else:
            assert not complaint
        return result

    def json(self, *args: str, code: int = 0) -> Any:
        result = self(*args, "-o", "json", code=code)
        return json.loads(result.stdout)
