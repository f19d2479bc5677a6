"""The source distribution and the wheel: what is in them, and what the wheel alone can do."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

from tools.newcomer.place import ROOT, FailedError, Place

# Runs in the environment that the wheel was installed into, with nothing else.
WALK_THE_VERBS = """
import os
import subprocess
import sys
from typer.main import get_command
from typer.testing import CliRunner
from control_plane.cli.main import app
def walk(command, words):
    yield words
    for name, sub in getattr(command, "commands", {}).items():
        yield from walk(sub, [*words, name])
def hand_over(program, command, environment):
    shown = subprocess.run(command, env=environment, capture_output=True, text=True)
    print(shown.stdout + shown.stderr)
    sys.exit(shown.returncode)
os.execve = hand_over  # else what comes after it would not be walked
verbs = list(walk(get_command(app), []))
assert len(verbs) > 40, verbs
for words in verbs:
    shown = CliRunner().invoke(app, [*words, "--help"])
    output = shown.output + shown.stderr
    lacks = shown.exit_code and "pip install 'midcourse[" in output
    if not lacks and (shown.exit_code or "usage:" not in output.lower()):
        sys.exit(f"midcourse {words} --help: {shown.exit_code} {output} {shown.exception!r}")
print(len(verbs), "verbs")
"""


def build(place: Place) -> str:
    """The source distribution, and the wheel out of that."""
    python = place.venv("build", "build")
    place.run(python, "-m", "build", "--outdir", place.dist, python=python, seconds=600)
    return ", ".join(
        f"{path.name} {path.stat().st_size / 1e6:.2f} MB" for path in sorted(place.dist.iterdir())
    )


def contents(place: Place) -> str:
    """What is in the wheel and what is not."""
    (wheel,) = place.dist.glob("*.whl")
    (source,) = place.dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = {name: archive.read(name) for name in names}
    _check(names)
    for name, text in texts.items():
        for path in (str(ROOT), str(place.folder), str(Path.home())):
            if len(path) > len("/root") and path.encode() in text:
                raise FailedError(f"{name} names a folder of this machine: {path}")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "README.md", "Makefile", "pyproject.toml", "tests/conftest.py"}
    if wanted - inside:
        raise FailedError(f"the source distribution lacks {sorted(wanted - inside)}")
    return f"{len(names)} files in the wheel, {len(inside)} in the source distribution"


def base(place: Place) -> str:
    """The wheel alone: a client, without torch, servers or a database."""
    (wheel,) = place.dist.glob("*.whl")
    python = place.venv("base", str(wheel))
    place.run(python, "-m", "pip", "check", cwd=place.folder)
    there = place.run(python, "-m", "pip", "list", "--format=freeze", cwd=place.folder).lower()
    for package in ("torch", "sqlalchemy", "transformers", "pytest", "alembic"):
        if f"\n{package}==" in there:
            raise FailedError(f"the base install has brought {package} along")
    place.run(
        *(python, "-c", "import control_plane.client, analytics_service.client, trainer_agent"),
        cwd=place.folder,
    )
    (version,) = re.findall(r"midcourse==(\S+)", there)
    shown = place.run("midcourse", "--version", python=python, cwd=place.folder)
    if version not in shown:
        raise FailedError(f"midcourse --version says {shown!r}, installed is {version}")
    for verb in ("serve", "analytics serve", "train --config x"):
        said = place.run(
            "bash", "-c", f"midcourse {verb}", python=python, cwd=place.folder, codes=(1, 2)
        )
        if "pip install 'midcourse[" not in said:
            raise FailedError(f"midcourse {verb} does not say what to install: {said}")
    return f"{len(there.split())} packages"


def verbs(place: Place, python: Path) -> str:
    """Each verb's --help, and what completes them in a shell."""
    found = place.run(python, "-c", WALK_THE_VERBS, cwd=place.folder).splitlines()[-1]
    for shell in ("bash", "zsh", "fish"):
        script = place.run(
            "env",
            f"_MIDCOURSE_COMPLETE=source_{shell}",
            "midcourse",
            python=python,
            cwd=place.folder,
        )
        if "_MIDCOURSE_COMPLETE" not in script:
            raise FailedError(f"no completion for {shell}: {script}")
    return found


def _check(names: list[str]) -> None:
    """Checks what files are in the wheel.

    Raises:
        FailedError: Something is missing, or does not belong there.
    """
    packages = ("analytics_service", "control_plane", "grpc_runtime", "trainer_agent", "midcourse")
    wanted = [f"{package}/py.typed" for package in packages]
    wanted += [
        "midcourse/control/v1/control.proto",
        "midcourse/control/v1/control_pb2.pyi",
        "analytics_service/catalogue/models.toml",
    ]
    missing = [name for name in wanted if name not in names]
    if not any(re.fullmatch(r".*\.dist-info/licenses/LICENSE", name) for name in names):
        missing.append("LICENSE")
    if not any("store/migrations/versions/" in name for name in names):
        missing.append("migrations")
    if missing:
        raise FailedError(f"the wheel lacks {', '.join(missing)}")
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    if tops != set(packages):
        raise FailedError(f"the wheel has {sorted(tops)}, and should have {sorted(packages)}")
    stray = [name for name in names if re.search(r"__pycache__|(^|/)tests?/|\.(db|log|pyc)$", name)]
    if stray:
        raise FailedError(f"the wheel should not have {', '.join(stray)}")
