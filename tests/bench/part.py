"""python -m tests.bench.part MODULE RESULTS [--quick]: one part, each row written as it comes."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any


def _ended(number: int, frame: Any) -> None:
    raise TimeoutError("took too long")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.part", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("results", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _ended)  # so that what was started is ended
    module = importlib.import_module(f"tests.bench.{asked.module}")
    with (
        tempfile.TemporaryDirectory(prefix="midcourse-bench-") as directory,
        asked.results.open("a") as results,
    ):
        for found in module.rows(Path(directory), quick=asked.quick):
            results.write(json.dumps({"kind": type(found).__name__, **asdict(found)}) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
