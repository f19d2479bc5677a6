#!/usr/bin/env python3
"""Does what a newcomer does, from nothing: clone, wheel, install, the README, examples, demos.

Everything happens in an empty folder, with environments, a home and ports of its own. The commands
are those of the README, taken out of its code blocks in their order, so that it can not rot. Needs
nothing but Python 3.11, git and make. Prints what ran, how long it took and what came of it; exits
with 1 if something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
JOB = "my-run"
"""The job that the README speaks of."""
MINUTES = 60.0

# Runs in the environment that the wheel was installed into, with nothing else.
WALK_THE_VERBS = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from control_plane.cli.main import app
def walk(command, words):
    yield words
    for name, sub in getattr(command, "commands", {}).items():
        yield from walk(sub, [*words, name])
verbs = list(walk(get_command(app), []))
assert len(verbs) > 40, verbs
for words in verbs:
    shown = CliRunner().invoke(app, [*words, "--help"])
    output = shown.output + shown.stderr
    lacks = shown.exit_code and "pip install 'midcourse[" in output
    if not lacks and (shown.exit_code or "Usage:" not in output):
        sys.exit(f"midcourse {words} --help: {shown.exit_code} {output} {shown.exception!r}")
print(len(verbs), "verbs")
"""


class FailedError(Exception):
    """A step did not come to what it should."""


class SkippedError(Exception):
    """A step was left out; says why."""


@dataclass
class Newcomer:
    """Goes the way, step by step.

    Attributes:
        folder: Where everything happens.
        asked: The options.
        rows: What ran: name, seconds, result.
    """

    folder: Path
    asked: argparse.Namespace
    rows: list[tuple[str, float, str]] = field(default_factory=list)
    failed: bool = False

    def __post_init__(self) -> None:
        """Makes an environment in which nothing of this user's is left."""
        self.clone = self.folder / "clone"
        self.dist = self.folder / "dist"
        self.plane, self.analytics = (f"127.0.0.1:{free_port()}" for _ in range(2))
        home = self.folder / "home"
        home.mkdir()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"PYTHON|VIRTUAL_ENV|MIDCOURSE|XDG|JOB_ID|.*_API_KEY", name)
        }
        self.env = kept | {
            "HOME": str(home),
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "MIDCOURSE_LISTEN": self.plane,
            "MIDCOURSE_CONTROL_PLANE": self.plane,
            "MIDCOURSE_ANALYTICS_LISTEN": self.analytics,
            "MIDCOURSE_ANALYTICS_CONTROL_PLANE": self.plane,
            "MIDCOURSE_ANALYTICS": self.analytics,
            # There is no key here, so that questions go to the model that needs none.
            "ANALYTICS_DEFAULT_MODEL": "smollm2-135m",
        }

    # ------------------------------------------------------------------------------- one step

    def step(self, name: str, what: Callable[[], str | None]) -> bool:
        """Does a step and notes what came of it; returns whether it went well."""
        print(f"… {name}", flush=True)
        began = time.monotonic()
        try:
            result = what() or "ok"
        except SkippedError as why:
            result = f"skipped: {why}"
        except (FailedError, OSError, subprocess.SubprocessError) as error:
            self.failed = True
            result = "FAILED"
            print(textwrap.indent(str(error), "    "), flush=True)
        self.rows.append((name, time.monotonic() - began, result))
        return result != "FAILED"

    def run(
        self,
        *command: str | Path,
        seconds: float = 300,
        cwd: Path | None = None,
        text: str | None = None,
        codes: tuple[int, ...] = (0,),
        python: Path | None = None,
    ) -> str:
        """Runs a program to its end; returns what it printed.

        Raises:
            FailedError: It ended otherwise than it should, or not in time.
        """
        words = [str(word) for word in command]
        with subprocess.Popen(  # noqa: S603 - the commands are ours and the README's
            words,
            cwd=cwd or self.clone,
            env=self._env(python),
            stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(text, timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                raise FailedError(f"not within {seconds:.0f} s\n{output[-3000:]}") from None
        if process.returncode not in codes:
            raise FailedError(f"exit code {process.returncode}\n{output[-3000:]}")
        return output

    def _env(self, python: Path | None) -> dict[str, str]:
        """The environment, activated for one of our virtual ones."""
        if python is None:
            return self.env
        return self.env | {
            "VIRTUAL_ENV": str(python.parent.parent),
            "PATH": f"{python.parent}{os.pathsep}{self.env['PATH']}",
        }

    @contextlib.contextmanager
    def background(self, command: str, python: Path, stop: int = signal.SIGTERM) -> Iterator[Path]:
        """Has a command run while the block does; its output is in the file."""
        log = self.folder / f"{re.sub(r'[^a-z]+', '-', command.lower()).strip('-')[:40]}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - likewise
                ["bash", "-c", f"exec {command}"],  # noqa: S607 - the one on the path
                cwd=self.clone,
                env=self._env(python),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield log
            if process.poll() is None:
                process.send_signal(stop)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                raise FailedError(f"{command} does not end:\n{log.read_text()[-3000:]}") from None
            if process.returncode not in (0, 130):
                raise FailedError(f"exit code {process.returncode}\n{log.read_text()[-3000:]}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def until(self, what: Callable[[], bool], why: str, seconds: float = 180) -> None:
        """Waits until something is so."""
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise FailedError(f"waited {seconds:.0f} s in vain: {why}")
            time.sleep(0.2)

    def succeeds(self, python: Path, command: str) -> bool:
        """Whether a command ends well."""
        try:
            self.run("bash", "-c", command, python=python, seconds=60)
        except FailedError:
            return False
        return True

    # --------------------------------------------------------------- clone, wheel and installing

    def get(self) -> None:
        """A fresh clone of what is committed, or a copy of the working tree."""
        if not self.asked.working_tree:
            self.run("git", "clone", "--quiet", "--no-hardlinks", ROOT, self.clone, cwd=ROOT)
            return
        listed = self.run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.clone / name)

    def build(self) -> str:
        """The source distribution, and the wheel out of that."""
        python = self.venv("build", "build")
        self.run(python, "-m", "build", "--outdir", self.dist, python=python, seconds=600)
        return ", ".join(
            f"{path.name} {path.stat().st_size / 1e6:.2f} MB"
            for path in sorted(self.dist.iterdir())
        )

    def venv(self, name: str, *packages: str) -> Path:
        """A new virtual environment with packages; returns its interpreter."""
        folder = self.folder / name
        self.run(sys.executable, "-m", "venv", folder)
        python = folder / "bin" / "python"
        self.run(
            *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--constraint", "constraints.txt", *packages),
            seconds=1_200,
        )
        return python

    def contents(self) -> str:
        """What is in the wheel and what is not."""
        (wheel,) = self.dist.glob("*.whl")
        (source,) = self.dist.glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            texts = {name: archive.read(name) for name in names}
        check_wheel(names)
        for name, text in texts.items():
            for path in (str(ROOT), str(self.folder), str(Path.home())):
                if len(path) > len("/root") and path.encode() in text:
                    raise FailedError(f"{name} names a folder of this machine: {path}")
        with tarfile.open(source) as archive:
            inside = {name.partition("/")[2] for name in archive.getnames()}
        wanted = {"LICENSE", "README.md", "Makefile", "pyproject.toml", "tests/conftest.py"}
        if wanted - inside:
            raise FailedError(f"the source distribution lacks {sorted(wanted - inside)}")
        return f"{len(names)} files in the wheel, {len(inside)} in the source distribution"

    def base(self) -> str:
        """The wheel alone: a client, without torch, servers or a database."""
        (wheel,) = self.dist.glob("*.whl")
        python = self.venv("base", str(wheel))
        self.run(python, "-m", "pip", "check", cwd=self.folder)
        there = self.run(python, "-m", "pip", "list", "--format=freeze", cwd=self.folder).lower()
        for package in ("torch", "sqlalchemy", "transformers", "pytest", "alembic"):
            if f"\n{package}==" in there:
                raise FailedError(f"the base install has brought {package} along")
        self.run(
            *(python, "-c", "import control_plane.client, analytics_service.client, trainer_agent"),
            cwd=self.folder,
        )
        (version,) = re.findall(r"midcourse==(\S+)", there)
        shown = self.run("midcourse", "--version", python=python, cwd=self.folder)
        if version not in shown:
            raise FailedError(f"midcourse --version says {shown!r}, installed is {version}")
        for verb in ("serve", "analytics serve", "train --config x"):
            said = self.run(
                "bash", "-c", f"midcourse {verb}", python=python, cwd=self.folder, codes=(1, 2)
            )
            if "pip install 'midcourse[" not in said:
                raise FailedError(f"midcourse {verb} does not say what to install: {said}")
        return f"{len(there.split())} packages"

    def verbs(self, python: Path) -> str:
        """Each verb's --help, and what completes them in a shell."""
        found = self.run(python, "-c", WALK_THE_VERBS, cwd=self.folder).splitlines()[-1]
        for shell in ("bash", "zsh", "fish"):
            script = self.run(
                "env",
                f"_MIDCOURSE_COMPLETE=source_{shell}",
                "midcourse",
                python=python,
                cwd=self.folder,
            )
            if "_MIDCOURSE_COMPLETE" not in script:
                raise FailedError(f"no completion for {shell}: {script}")
        return found

    # ------------------------------------------------------------------------------- the README

    def readme(self, python: Path) -> None:
        """The README's code blocks, in their order."""
        text = (self.clone / "README.md").read_text()
        with contextlib.ExitStack() as servers:
            for language, block in re.findall(r"```(console|python)\n(.*?)```", text, re.DOTALL):
                if language == "python":
                    self.step(f"README: {first_line(block)}", lambda b=block: self.code(b, python))  # type: ignore[misc]
                    continue
                for line in block.splitlines():
                    command = line.removeprefix("$ ").partition("   #")[0].strip()
                    self.step(
                        f"README: {command}",
                        lambda c=command: self.command(c, text, python, servers),  # type: ignore[misc]
                    )
            self.step("README: the servers end", servers.close)

    def code(self, block: str, python: Path) -> str | None:
        """A Python block: run if it stands for itself, else compiled."""
        block = block.replace("127.0.0.1:50051", self.plane).replace(
            "127.0.0.1:50052", self.analytics
        )
        compile(block, "README.md", "exec")
        if "Client(" not in block:
            return "compiled: it needs a trainer"
        if "analytics" in block:
            raise SkippedError("it needs a key of OpenAI's")
        self.run(python, "-c", block, python=python)
        return None

    def command(
        self, command: str, readme: str, python: Path, servers: contextlib.ExitStack
    ) -> str | None:
        """One line of a console block."""
        if command == "make test" and not self.asked.tests:
            raise SkippedError("--tests runs them")
        if command.startswith("make "):
            if not self.asked.demos:
                raise SkippedError("--no-demos")
            self.run("bash", "-c", command, seconds=30 * MINUTES)
        elif command in ("midcourse serve", "midcourse analytics serve"):
            servers.enter_context(self.background(command, python))
            address = self.analytics if "analytics" in command else self.plane
            ask = f"midcourse health --address {address}"
            self.until(lambda: self.succeeds(python, ask), f"{command} serves")
        elif command == "midcourse watch":
            self.begin_run(readme, python, servers)
            self.run(
                "timeout", "--signal=INT", "8", *command.split(), python=python, codes=(0, 130)
            )
        elif command.startswith("midcourse chat"):
            if not self.asked.models:
                raise SkippedError("--no-models")
            talk = "/help\n/cost\n" if command == "midcourse chat" else None
            self.run("bash", "-c", command, text=talk, python=python, seconds=600)
        elif command.startswith("midcourse pause -l"):
            self.run("midcourse", "label", JOB, "team=nlp", python=python)
            self.run("bash", "-c", command, python=python)
            self.run("midcourse", "resume", JOB, "--wait", python=python)
        else:
            if command.startswith("python -m examples.train.prepare"):
                self.run("midcourse", "stop", JOB, "--wait", python=python)
            self.run("bash", "-c", command, python=python, seconds=600)
        return None

    def begin_run(self, readme: str, python: Path, running: contextlib.ExitStack) -> None:
        """The run that the README's commands change, started as the README says."""
        (command,) = re.findall(rf"`(JOB_ID={JOB} python -m \S+)`", readme)
        running.enter_context(self.background(f"env {command}", python))
        ask = f"midcourse job {JOB} | grep -qi running"
        self.until(lambda: self.succeeds(python, ask), f"{JOB} runs")

    # ------------------------------------------------------------------------ examples and demos

    def examples(self, python: Path) -> None:
        """Those that the README's commands do not run."""
        with contextlib.ExitStack() as servers:

            def serve() -> None:
                servers.enter_context(self.background("midcourse serve", python))
                ask = f"midcourse health --address {self.plane}"
                self.until(lambda: self.succeeds(python, ask), "the control plane serves")

            def raw_loop() -> None:
                raw = ("examples/raw_loop.py", "--job=raw", "--steps=300")
                self.run(python, *raw, f"--directory={self.folder / 'raw'}", python=python)
                self.run("midcourse", "job", "raw", python=python)

            def backend_service() -> str:
                simulated = "midcourse simulate --jobs 3 --label team=nlp --report-every 0.5"
                guard = "python examples/backend_service.py --selector team=nlp --metric loss"
                with (
                    self.background(simulated, python, signal.SIGINT),
                    self.background(f"{guard} --rises 1", python) as log,
                ):
                    self.until(lambda: "light-" in log.read_text(), "it does something")
                return log.read_text().splitlines()[-1][:60]

            def lightning() -> str:
                if self.succeeds(python, "python -c 'import lightning'"):
                    self.run(python, "examples/lightning_loop.py", python=python)
                    return "ok"
                raise SkippedError("lightning is not among the requirements")

            self.step("example: a control plane for them", serve)
            self.step("example: raw_loop.py", raw_loop)
            self.step("example: backend_service.py, over light jobs", backend_service)
            self.step("example: lightning_loop.py", lightning)
            self.step("example: the control plane ends", servers.close)

    def demo_cluster(self) -> None:
        """The one that the README tells of in passing."""
        if not self.asked.demos:
            raise SkippedError("--no-demos")
        self.run("make", "demo-cluster", seconds=10 * MINUTES)

    def go(self) -> None:
        """All of it."""
        if not self.step("clone", self.get):
            return
        if self.step("sdist, and the wheel out of it", self.build):
            self.step("what is in them", self.contents)
            if self.step("base install in a new environment", self.base):
                base = self.folder / "base" / "bin" / "python"
                self.step("--help of every verb, completion", lambda: self.verbs(base))
        if self.asked.quick:
            return
        python = self.clone / ".venv" / "bin" / "python"
        if self.step("make setup", lambda: self.run("make", "setup", seconds=30 * MINUTES)[-60:]):
            self.readme(python)
            self.examples(python)
            self.step("make demo-cluster", self.demo_cluster)

    def show(self) -> None:
        """The table."""
        width = min(100, max(len(name) for name, _, _ in self.rows))
        print(f"\n{'what':{width}}  seconds  result")
        for name, seconds, result in self.rows:
            print(f"{name[:width]:{width}}  {seconds:7.1f}  {' '.join(result.split())[:90]}")


def check_wheel(names: list[str]) -> None:
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


def first_line(block: str) -> str:
    """What a block of Python is called."""
    return next(line for line in block.splitlines() if line and not line.startswith("from"))


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    """Goes the way that the command line asks for."""
    parser = argparse.ArgumentParser(prog="tools/newcomer.py", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="up to the base install and the verbs' --help")
    add("--working-tree", action="store_true", help="try what is here, not what is committed")
    add("--tests", action="store_true", help="run make test too")
    add("--no-demos", action="store_false", dest="demos", help="leave out the demos")
    add("--no-models", action="store_false", dest="models", help="ask no model")
    add("--keep", action="store_true", help="leave the folder there, and say where")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    folder.chmod(0o755)  # PostgreSQL of the demo runs as somebody else where this user is root
    newcomer = Newcomer(folder, asked)
    try:
        newcomer.go()
    finally:
        newcomer.show()
        if asked.keep:
            print(f"everything is in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if newcomer.failed else 0


if __name__ == "__main__":
    sys.exit(main())
