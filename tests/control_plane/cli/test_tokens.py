"""`midcourse token` on a database itself, and what of its options can not be meant."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli.main import app
from grpc_runtime.bearer import hide_secrets
from tests.support.postgres import postgres_address, postgres_server

__all__ = ["postgres_address", "postgres_server"]

pytestmark = pytest.mark.usefixtures("_restored_logging")


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "140"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "control.db")
    address: str = request.getfixturevalue("postgres_address")
    return address


def test_tokens_of_a_database_without_a_server(database: str, tmp_path: Path) -> None:
    on = ("--database", database)
    dry = run("token", "create", "ops", "--role", "operator", *on, "--dry-run").stdout
    assert "was not" in dry
    assert re.search(r"until \d{4}-\d\d-\d\d; it can", dry)
    short = run("token", "create", "x", "-r", "viewer", "--lifetime", "1h", "--dry-run", *on).stdout
    assert re.search(r"until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; it can", short)
    assert "mc_" not in dry
    assert "no tokens" in run("token", "list", *on).stdout
    described, secret = run(
        *("token", "create", "ops", "--role", "operator", "-l", "team=nlp", "-j", "a", "-j", "b*"),
        *("--lifetime", "never", "-d", "for the tests", *on),
    ).stdout.splitlines()
    assert hide_secrets(secret) == "mc_…"
    assert described.endswith(": ops, operator, jobs a, b* with team=nlp, for ever")
    file = tmp_path / "root.token"
    made = json.loads(
        run(
            *("-o", "json", "token", "create", "root", "--role", "admin", *on),
            *("--save", str(file)),
        ).stdout
    )
    assert "secret" not in made
    assert hide_secrets(file.read_text().strip()) == "mc_…"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listing = run("token", "list", *on).stdout
    assert [line.split()[1] for line in listing.splitlines()[1:]] == ["root", "ops"]
    name = described.partition(":")[0]
    assert "ops" in run("token", "revoke", name, *on).stdout
    listing = run("token", "list", *on).stdout
    assert [line.split()[1] for line in listing.splitlines()[1:]] == ["root"]
    assert "revoked " in run("token", "list", "--all", *on).stdout
    assert "no token" in run("token", "revoke", "0" * 12, *on, code=3).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["ops"], 2, "--role"),
        (["ops", "--role", "boss"], 2, "boss"),
        (["Ops!", "--role", "viewer"], 4, "principal"),
        (["a", "--role", "agent"], 4, "its own jobs"),
        (["a", "--role", "admin", "-l", "team=nlp"], 4, "administrator with bounds"),
        (["a", "--role", "viewer", "-l", "team in ("], 4, "access.selector"),
        (["a", "--role", "viewer", "--lifetime", "soon"], 2, "or never"),
        (["a", "--role", "viewer", "--save", "/nowhere/token"], 2, "/nowhere/token"),
    ],
)
def test_what_can_not_be_meant_makes_nothing(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    on = ("--database", str(tmp_path / "control.db"))
    run("token", "create", "ops", "--role", "viewer", "--dry-run", *on)
    assert says in run("token", "create", *arguments, *on, code=code).stderr
    assert "no tokens" in run("token", "list", *on).stdout


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    on = ("--database", str(tmp_path / "control.db"))
    file = tmp_path / "token"
    file.write_text("precious")
    saved = ("--save", str(file))
    assert "exists" in run("token", "create", "a", "--role", "viewer", *saved, *on, code=2).stderr
    assert file.read_text() == "precious"
    assert not (tmp_path / "control.db").exists()
    # A file for a token that could not be made is not left behind.
    new = tmp_path / "new"
    run("token", "create", "a", "--role", "agent", "--save", str(new), *on, code=4)
    assert not new.exists()


def test_a_program_reads_the_first_token_of_a_new_database(tmp_path: Path) -> None:
    on = ("--database", str(tmp_path / "control.db"))
    made = run("token", "create", "root", "--role", "admin", *on, "-o", "json")
    assert json.loads(made.stdout)["secret"].startswith("mc_")
    assert "database migrated" in made.stderr


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "0" * 12]])
def test_a_database_that_is_not_there_is_not_made_to_look_into_it(
    tmp_path: Path, arguments: list[str]
) -> None:
    mistyped = tmp_path / "contrl" / "control.db"
    said = run("token", *arguments, "--database", str(mistyped), code=2).stderr
    assert f"there is no database {mistyped}; " in said
    assert not list(tmp_path.iterdir())


def test_a_database_that_is_none(tmp_path: Path) -> None:
    assert "in memory" in run("token", "list", "--database", ":memory:", code=2).stderr


def test_without_a_verb_it_says_which_there_are() -> None:
    said = run("token")
    assert said.stdout == run("token", "--help").stdout
    assert not said.stderr
