"""The Dockerfile and .dockerignore as a test reads them."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import ROOT


@dataclass
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [argument for word, argument in self.instructions if word == keyword]

    def last(self, keyword: str) -> str:
        return self.all(keyword)[-1]

    def command(self, keyword: str) -> list[str]:
        """An instruction in exec form; anything else is no JSON."""
        words = json.loads(self.last(keyword))
        assert all(isinstance(word, str) for word in words)
        return list(words)

    def environment(self) -> dict[str, str]:
        pairs = (pair.partition("=") for line in self.all("ENV") for pair in line.split())
        return {name: value for name, _, value in pairs}

    def sources(self) -> list[str]:
        """What is copied from the build context."""
        copies = [line for line in self.all("COPY") if not line.startswith("--from=")]
        return [source for line in copies for source in line.split()[:-1]]

    def scripts(self) -> list[str]:
        """What RUN gives to the shell."""
        return [re.sub(r"^(--\S+\s+)*", "", line) for line in self.all("RUN")]


def stages(path: Path = ROOT / "Dockerfile") -> dict[str, Stage]:
    """The stages by name, in order."""
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in _instructions(path.read_text()):
        keyword, _, argument = line.partition(" ")
        if keyword == "FROM":
            base, _, name = argument.partition(" AS ")
            current = found[name] = Stage(name, base)
        elif current is not None:
            current.instructions.append((keyword, argument.strip()))
    return found


def _instructions(text: str) -> Iterator[str]:
    lines = [line.strip() for line in text.splitlines()]
    joined = "\n".join(line for line in lines if line and not line.startswith("#"))
    yield from re.sub(r"\s*\\\n", " ", joined).splitlines()


def in_build_context(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last pattern that fits has the say."""
    let_through = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        if _fits(path, pattern.removeprefix("!")):
            let_through = pattern.startswith("!")
    return let_through


def _fits(path: str, pattern: str) -> bool:
    """Whether a pattern names the file or a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, pattern[3:]) for part in parts)
    return any(fnmatch.fnmatchcase(each, pattern) for each in above)
