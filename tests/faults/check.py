"""python -m tests.faults.check FILE: checks a recorded history; exits with 1 at a violation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tests.faults.history import History
from tests.faults.report import show
from tests.faults.validators import validate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.check", description=__doc__)
    parser.add_argument("file", type=Path, help="a history, as tests.faults.run writes it")
    history = History.load(parser.parse_args().file)
    violations = validate(history)
    show(history, violations, Console())
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
