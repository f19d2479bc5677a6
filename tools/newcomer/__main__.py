"""python -m tools.newcomer: clone, wheel, install, the README, examples, demos, from nothing.

Does what a newcomer does. Everything happens in an empty folder, with environments, a home and
ports of its own. The commands are those of the README, taken out of its code blocks in their
order. Needs nothing but Python 3.11, git and make. Prints what ran, how long it took and what came
of it; exits with 1 if something failed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tools.newcomer import examples, readme, wheel
from tools.newcomer.place import MINUTES, ROOT, Place


def get(place: Place) -> None:
    """A fresh clone of what is committed, or a copy of the working tree."""
    if not place.asked.working_tree:
        place.run("git", "clone", "--quiet", "--no-hardlinks", ROOT, place.clone, cwd=ROOT)
        return
    listed = place.run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (place.clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place.clone / name)


def go(place: Place) -> None:
    """All of it."""
    if not place.step("clone", lambda: get(place)):
        return
    if place.step("sdist, and the wheel out of it", lambda: wheel.build(place)):
        place.step("what is in them", lambda: wheel.contents(place))
        if place.step("base install in a new environment", lambda: wheel.base(place)):
            base = place.folder / "base" / "bin" / "python"
            place.step("--help of every verb, completion", lambda: wheel.verbs(place, base))
    if place.asked.quick:
        return
    python = place.clone / ".venv" / "bin" / "python"
    if place.step("make setup", lambda: place.run("make", "setup", seconds=30 * MINUTES)[-60:]):
        readme.follow(place, python)
        examples.run(place, python)
        place.step("make demo-cluster", lambda: examples.demo_cluster(place))


def main() -> int:
    """Goes the way that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tools.newcomer", description=__doc__)
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
    place = Place(folder, asked)
    try:
        go(place)
    finally:
        place.show()
        if asked.keep:
            print(f"everything is in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if place.failed else 0


if __name__ == "__main__":
    sys.exit(main())
