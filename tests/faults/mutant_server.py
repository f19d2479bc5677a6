"""python -m tests.faults.mutant_server MUTANT serve ...: the midcourse command with a mutant in it.

With "" for the mutant it is the command as it is.
"""

from __future__ import annotations

import contextlib
import sys

from control_plane.cli.main import main as midcourse
from tests.faults.mutants import MUTANTS


def main() -> None:
    name = sys.argv.pop(1)
    with MUTANTS[name].patched() if name else contextlib.nullcontext():
        midcourse()


if __name__ == "__main__":
    main()
