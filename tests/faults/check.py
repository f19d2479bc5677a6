"""python -m tests.faults.check FILE: checks a recorded history.

Exits with 1 at a violation, at an error that no caller should see, or where the history does not
hold enough to tell.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tests.faults.history import History
from tests.faults.report import lacking, show, unexpected
from tests.faults.validators import validate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.check", description=__doc__)
    parser.add_argument("file", type=Path, help="a history, as tests.faults.run writes it")
    history = History.load(parser.parse_args().file)
    violations = validate(history)
    console = Console()
    show(history, violations, console)
    troubles = [*(f"nobody should see: {each}" for each in unexpected(history)), *lacking(history)]
    for trouble in troubles:
        console.print(trouble, markup=False, highlight=False)
    return 1 if violations or troubles else 0


if __name__ == "__main__":
    sys.exit(main())
