"""python -m tests.bench [--quick]: measures, prints one table, writes out/bench.json."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.bench import callback_cost, chat, live_update, ranks, replicas
from tests.bench.report import Row, show

PARTS = {
    "live-update": live_update.rows,
    "callback-cost": callback_cost.rows,
    "ranks": ranks.rows,
    "chat": chat.rows,
    "replicas": replicas.rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples; under two minutes")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--output", type=Path, default=Path("out/bench.json"))
    options = parser.parse_args()
    rows: list[Row] = []
    for name, measure in PARTS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="midcourse-bench-") as directory:
                rows += measure(Path(directory), quick=options.quick)
    show(rows, options.output)


if __name__ == "__main__":
    main()
