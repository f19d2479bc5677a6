"""What docs/deploy.md and the example files name is there."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from control_plane.cli.main import app
from control_plane.config import ServerSettings
from tests.support.known_variables import NAME, known_variables
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "deploy.md"
TEXT = PAGE.read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
UNIT = ROOT / "deploy" / "systemd" / "midcourse.service"
SCRIPTS = sorted((ROOT / "deploy" / "slurm").glob("*.sbatch"))
FILES = [PAGE, UNIT, *SCRIPTS, *sorted((ROOT / "examples" / "node").glob("*.js"))]
# Of the Node example alone.
OWN = {"MIDCOURSE_PROTOS"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_variables_are_read_by_something(path: Path) -> None:
    named = set(NAME.findall(path.read_text()))
    assert named <= known_variables() | OWN


def anchors(text: str) -> set[str]:
    """What can be linked to on a page: its headings, as they are known to whoever shows it."""
    return {
        re.sub(r"[^a-z0-9 _-]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#][^)]*)\)", text)
    for target in targets:
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            assert (page.parent / file).exists(), target
            assert not anchor or anchor in anchors((page.parent / file).read_text()), target
    for anchor in re.findall(r"\]\(#([^)]+)\)", text):
        assert anchor in anchors(text), anchor


def test_the_settings_file_is_taken(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    file = tmp_path / "midcourse.toml"
    file.write_text(text)
    settings = ServerSettings.load(config_file=file)
    assert settings.listen == "0.0.0.0:50051"
    assert set(tomllib.loads(text)) == {ServerSettings.table}


def commands() -> list[str]:
    """The lines that run `midcourse`, each as one line."""
    blocks = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", TEXT, re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    ours = (
        re.search(r"(?:^|\s|/)(midcourse (?:health|token|watch|serve)\b.*)", line) for line in lines
    )
    return [found[1].partition("#")[0].rstrip("' ") for found in ours if found]


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    verbs = words[: 2 if words[0] == "token" else 1]
    shown = CliRunner().invoke(app, [*verbs, "--help"])
    assert shown.exit_code == 0, shown.output
    for option in (word for word in words if word.startswith("--")):
        assert option in shown.output


def test_the_unit_gives_a_stop_its_time() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    assert service["ExecStart"].endswith("/bin/midcourse serve")
    assert float(service["TimeoutStopSec"]) >= ServerSettings().grace + 10
    assert service["ProtectSystem"] == "strict"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_bash_reads(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert re.search(r"^#SBATCH --job-name=", path.read_text(), re.MULTILINE)
