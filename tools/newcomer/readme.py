"""The README's code blocks, in their order: so it can not rot."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from tools.newcomer.place import MINUTES, Place, SkippedError

JOB = "my-run"
"""The job that the README speaks of."""


def follow(place: Place, python: Path) -> None:
    """The README's code blocks, in their order."""
    text = (place.clone / "README.md").read_text()
    with contextlib.ExitStack() as servers:
        for language, block in re.findall(r"```(console|python)\n(.*?)```", text, re.DOTALL):
            if language == "python":
                place.step(f"README: {_first_line(block)}", lambda b=block: _code(place, b, python))  # type: ignore[misc]
                continue
            for line in block.splitlines():
                command = line.removeprefix("$ ").partition("   #")[0].strip()
                place.step(
                    f"README: {command}",
                    lambda c=command: _command(place, c, text, python, servers),  # type: ignore[misc]
                )
        place.step("README: the servers end", servers.close)


def _code(place: Place, block: str, python: Path) -> str | None:
    """A Python block: run if it stands for itself, else compiled."""
    block = block.replace("127.0.0.1:50051", place.plane).replace(
        "127.0.0.1:50052", place.analytics
    )
    compile(block, "README.md", "exec")
    if "Client(" not in block:
        return "compiled: it needs a trainer"
    if "analytics" in block:
        raise SkippedError("it needs a key of OpenAI's")
    place.run(python, "-c", block, python=python)
    return None


def _command(
    place: Place, command: str, readme: str, python: Path, servers: contextlib.ExitStack
) -> str | None:
    """One line of a console block."""
    if command == "make test" and not place.asked.tests:
        raise SkippedError("--tests runs them")
    if command.startswith("make "):
        if not place.asked.demos:
            raise SkippedError("--no-demos")
        place.run("bash", "-c", command, seconds=30 * MINUTES)
    elif command in ("midcourse serve", "midcourse analytics serve"):
        servers.enter_context(place.background(command, python))
        address = place.analytics if "analytics" in command else place.plane
        ask = f"midcourse health --address {address}"
        place.until(lambda: place.succeeds(python, ask), f"{command} serves")
    elif command == "midcourse watch":
        _begin_run(place, readme, python, servers)
        place.run(
            "timeout",
            "--preserve-status",
            "--signal=INT",
            "8",
            *command.split(),
            python=python,
            codes=(0, 130),
        )
    elif command.startswith("midcourse chat"):
        if not place.asked.models:
            raise SkippedError("--no-models")
        talk = "/help\n/cost\n" if command == "midcourse chat" else None
        place.run("bash", "-c", command, text=talk, python=python, seconds=600)
    elif command.startswith("midcourse pause -l"):
        place.run("midcourse", "label", JOB, "team=nlp", python=python)
        place.run("bash", "-c", command, python=python)
        place.run("midcourse", "resume", JOB, "--wait", python=python)
    else:
        if command.startswith("python -m examples.train.prepare"):
            place.run("midcourse", "stop", JOB, "--wait", python=python)
        place.run("bash", "-c", command, python=python, seconds=600)
    return None


def _begin_run(place: Place, readme: str, python: Path, running: contextlib.ExitStack) -> None:
    """The run that the README's commands change, started as the README says."""
    (command,) = re.findall(rf"`(JOB_ID={JOB} python -m \S+)`", readme)
    running.enter_context(place.background(f"env {command}", python))
    ask = f"midcourse job {JOB} | grep -qi running"
    place.until(lambda: place.succeeds(python, ask), f"{JOB} runs")


def _first_line(block: str) -> str:
    """What a block of Python is called."""
    return next(line for line in block.splitlines() if line and not line.startswith("from"))
