"""What the Dockerfile names is there; what it runs exists."""

from __future__ import annotations

import re
import tomllib

import pytest
from typer.testing import CliRunner

from control_plane.cli.main import app
from tests.support.dockerfile import Stage, in_build_context, stages
from tests.support.known_variables import known_variables
from tests.support.processes import ROOT
from trainer_agent.agent.options import parse_options

STAGES = stages()
ROLES = ("agent", "analytics", "control-plane")
SERVERS = ("analytics", "control-plane")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_role_has_an_image_and_the_control_plane_is_the_default() -> None:
    assert set(ROLES) < set(STAGES)
    assert list(STAGES)[-1] == "control-plane"


def test_everything_that_is_copied_is_there_and_let_through() -> None:
    sources = [source for stage in STAGES.values() for source in stage.sources()]
    assert sources
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        files = [path] if path.is_file() else list(path.rglob("*.py"))
        assert files
        for file in files:
            assert in_build_context(str(file.relative_to(ROOT))), file


@pytest.mark.parametrize(
    "path", [".venv/bin/python", ".git/config", "tests/conftest.py", "out/control.db",
             "control_plane/__pycache__/x.pyc", "grpc_runtime/sql/__pycache__/x.cpython-313.pyc"],
)  # fmt: skip
def test_nothing_else_gets_into_the_build(path: str) -> None:
    assert not in_build_context(path)


def test_the_wheel_is_built_from_all_that_it_holds() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(STAGES["wheel"].sources())
    assert {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= set(
        STAGES["wheel"].sources()
    )


@pytest.mark.parametrize("role", ROLES)
def test_the_extras_exist(role: str) -> None:
    (script,) = STAGES[f"{role}-environment"].scripts()
    found = re.search(r"midcourse\[([a-z,]+)\]", script)
    assert found is not None
    assert set(found[1].split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    assert "--constraint /constraints.txt" in script


@pytest.mark.parametrize("role", ROLES)
def test_an_image_runs_as_a_numbered_user_without_a_shell(role: str) -> None:
    image, runtime = STAGES[role], STAGES["runtime"]
    assert image.base == "runtime"
    assert runtime.last("USER") == "10001:10001"  # a name would not pass runAsNonRoot
    assert not image.all("USER")
    assert not image.all("RUN")
    assert image.command("ENTRYPOINT")


def test_base_images_are_pinned() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", image)
    assert {stage.base for stage in STAGES.values()} <= {"${PYTHON_IMAGE}", *STAGES}


@pytest.mark.parametrize("role", SERVERS)
def test_a_servers_commands_exist(role: str) -> None:
    image = STAGES[role]
    assert image.command("ENTRYPOINT") == ["midcourse"]
    check = re.sub(r"^(--\S+\s+)*CMD\s+", "", image.last("HEALTHCHECK"))
    health = Stage("", "", [("CMD", check)]).command("CMD")
    assert health[0] == "midcourse"
    for command in (image.command("CMD"), health[1:]):
        shown = CliRunner().invoke(app, [*command, "--help"])
        assert shown.exit_code == 0, shown.output
    listener = f"MIDCOURSE_{'ANALYTICS_' if role == 'analytics' else ''}HEALTH_LISTEN"
    assert image.environment()[listener] == health[-1]


def test_the_agents_command_exists() -> None:
    assert STAGES["agent"].command("ENTRYPOINT")[-2:] == ["-m", "trainer_agent"]
    assert parse_options(["--linger", "60"], {"JOB_ID": "j"}).job_id == "j"


@pytest.mark.parametrize("role", ROLES)
def test_the_environment_names_settings(role: str) -> None:
    ours = {name for name in STAGES[role].environment() if name.startswith("MIDCOURSE_")}
    assert ours <= known_variables()
    assert bool(ours) == (role in SERVERS)


def test_state_is_kept_in_a_volume() -> None:
    for role in SERVERS:
        assert STAGES[role].command("VOLUME") == ["/var/lib/midcourse"]
        database = next(v for k, v in STAGES[role].environment().items() if "DATABASE" in k)
        assert database.startswith("/var/lib/midcourse/")
