"""The Dockerfile's own build steps, in temporary folders instead of images.

No container is made: what the steps build is run on this machine, with its Python. The steps and
the list of what is copied are read from the Dockerfile.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dockerfile import Stage, in_build_context, stages
from tests.support.processes import ROOT, free_port, until

STAGES = stages()

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def copy_context(stage: Stage, folder: Path) -> None:
    for source in stage.sources():
        for path in [ROOT / source, *(ROOT / source).rglob("*")]:
            name = path.relative_to(ROOT)
            if path.is_file() and in_build_context(str(name)):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)


def run(stage: Stage, root: Path) -> None:
    """Runs the steps of a stage with a folder for the root directory."""
    workdir = stage.all("WORKDIR")
    environment = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    for script in stage.scripts():
        here = re.sub(r"/(src|dist|opt/midcourse|constraints\.txt)\b", rf"{root}/\1", script)
        ran = subprocess.run(
            ["sh", "-euc", here],
            cwd=f"{root}{workdir[0]}" if workdir else root,
            env={
                **environment,
                **stage.environment(),
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{here}:\n{ran.stdout}{ran.stderr}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first two stages make; its folder stands for the root directory."""
    root = tmp_path_factory.mktemp("wheel")
    copy_context(STAGES["wheel"], root / "src")
    run(STAGES["wheel"], root)
    copy_context(STAGES["environment"], root)
    return root


def environment(wheel: Path, role: str, root: Path) -> Path:
    """Builds the environment of a role and returns the folder of its programs."""
    shutil.copytree(wheel / "dist", root / "dist")
    shutil.copy(wheel / "constraints.txt", root)
    run(STAGES["environment"], root)
    stage = STAGES[f"{role}-environment"]
    stage.instructions[:0] = [("ENV", line) for line in STAGES["environment"].all("ENV")]
    run(stage, root)
    return root / "opt" / "midcourse" / "bin"


def test_the_control_planes_image(wheel: Path, tmp_path: Path) -> None:
    programs = environment(wheel, "control-plane", tmp_path)
    image = STAGES["control-plane"]
    state, health, address = tmp_path / "state", free_port(), f"127.0.0.1:{free_port()}"
    state.mkdir()
    settings = {
        name: value.replace("/var/lib/midcourse", str(state))
        .replace("127.0.0.1:50080", f"127.0.0.1:{health}")
        .replace("0.0.0.0:50051", address)
        for name, value in image.environment().items()
    }
    check = image.last("HEALTHCHECK")
    asked = Stage("", "", [("CMD", check[check.index("[") :])]).command("CMD")[1:]
    asked[-1] = asked[-1].replace("50080", str(health))

    def healthy() -> bool:
        ran = subprocess.run([programs / "midcourse", *asked], capture_output=True, check=False)
        assert ran.returncode in (0, 5), ran.stderr
        return ran.returncode == 0

    # The environment of the image alone, and a working directory with nothing of ours in it.
    server = subprocess.Popen(
        [programs / "midcourse", *image.command("CMD")],
        cwd=state,
        env={"PATH": str(programs), "HOME": str(state), **settings},
        stderr=subprocess.PIPE,
    )
    try:
        until(healthy, "it is healthy")
        listed = subprocess.run(
            [programs / "midcourse", "--server", address, "jobs"],
            capture_output=True,
            text=True,
            check=False,
        )
        nothing = "no jobs yet that you may see\n"
        assert (listed.returncode, listed.stdout) == (0, nothing), listed.stderr
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
        assert server.returncode == 0, log.decode()
        assert not healthy()
    finally:
        server.kill()
    written = {path.name.partition(".db")[0] for path in state.rglob("*") if path.is_file()}
    assert written == {"control"}


@pytest.mark.parametrize(
    ("role", "module"),
    [("agent", "trainer_agent.agent.main"), ("analytics", "analytics_service.server")],
)
def test_the_other_images_have_all_that_they_import(
    wheel: Path, tmp_path: Path, role: str, module: str
) -> None:
    programs = environment(wheel, role, tmp_path)
    ran = subprocess.run(
        [programs / "python", "-P", "-c", f"import {module}, sys; print('torch' in sys.modules)"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr
