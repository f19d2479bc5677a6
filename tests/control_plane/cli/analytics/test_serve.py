"""`midcourse analytics serve`: serves, stops, and says what is wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from analytics_service.client import Client, RetryPolicy, UnavailableError
from analytics_service.config import AnalyticsSettings
from control_plane.cli.exits import ExitCode
from control_plane.cli.main import app
from tests.support.processes import ROOT, Process, free_port, until

SERVE = ("-m", "control_plane.cli", "analytics", "serve")


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    port = free_port()
    database = tmp_path / "analytics.db"
    process = Process(
        "analytics", [*SERVE, f"--listen=127.0.0.1:{port}", f"--database={database}"], tmp_path
    )
    try:
        with Client(f"127.0.0.1:{port}", retry=RetryPolicy(attempts=1)) as client:

            def listed() -> bool:
                try:
                    return bool(client.list_models())
                except UnavailableError:
                    assert process.exit_code is None, process.tail()
                    return False

            until(listed, "the service answers")
        assert process.kill(signal.SIGTERM) == ExitCode.OK
    finally:
        process.end()
    assert "Traceback" not in process.tail()


def failing(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *SERVE, f"--database={tmp_path / 'a.db'}", "--listen=127.0.0.1:0", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def failing_here(tmp_path: Path, *args: str) -> Result:
    """The same in this process, which has loaded what it takes."""
    done = CliRunner().invoke(
        app,
        [*SERVE[2:], f"--database={tmp_path / 'a.db'}", "--listen=127.0.0.1:0", *args],
    )
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    return done


def test_every_problem_of_a_catalogue_is_told(tmp_path: Path) -> None:
    catalogue = tmp_path / "models.toml"
    catalogue.write_text('[[models]]\nid = "x"\ncolour = "red"\n')
    done = failing(tmp_path, f"--catalogue={catalogue}")
    assert done.returncode == ExitCode.FAILURE
    first, *problems = done.stderr.splitlines()
    assert first == f"midcourse: the catalogue has {len(problems)} problems"
    assert any(f"{catalogue}:3: models[0].colour" in problem for problem in problems)


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--catalogue=/nowhere.toml"], ExitCode.FAILURE, "/nowhere.toml"),
        (["--database=/proc/none/a.db"], ExitCode.FAILURE, "can not open the database"),
        (["--default-model=gpt-4o-mimi"], ExitCode.USAGE, "gpt-4o-mini"),
        (["--default-model=nope"], ExitCode.USAGE, "default_model: got 'nope'"),
        (['--failover=["haiku-5-5", "nope"]'], ExitCode.USAGE, "failover: got 'nope'"),
        (["--retain-usage-days=inf"], ExitCode.USAGE, "less than or equal to 36500"),
        (["--retain-sessions-days=1e9"], ExitCode.USAGE, "less than or equal to 36500"),
        (["--listen=nowhere"], ExitCode.USAGE, "has no port"),
        (["--listen=0.0.0.0:0"], ExitCode.FAILURE, "0.0.0.0"),
        (["--grace=soon"], ExitCode.USAGE, "--grace"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path, args: list[str], code: ExitCode, said: str
) -> None:
    done = failing_here(tmp_path, *args)
    assert done.exit_code == code
    complaint = done.stderr.splitlines()[-1]
    assert complaint.startswith("midcourse: ")
    assert said in complaint


@pytest.mark.usefixtures("_restored_logging")
def test_a_model_that_is_not_there_leaves_no_database_behind(tmp_path: Path) -> None:
    failing_here(tmp_path, "--default-model=nope")
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_is_set_to_nothing_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANALYTICS_DEFAULT_MODEL", "")
    monkeypatch.setenv("MIDCOURSE_ANALYTICS_CATALOGUE", "")
    settings = AnalyticsSettings.load()
    assert (settings.default_model, settings.catalogue) == (None, None)


def test_addresses_of_others_are_no_place_to_listen() -> None:
    for option in ("--server", "--analytics"):
        done = CliRunner().invoke(app, [option, "h:1", "analytics", "serve"])
        assert done.exit_code == ExitCode.USAGE
        assert "--listen" in done.stderr
