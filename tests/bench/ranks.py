"""What agreeing on nothing costs two ranks a step, against a blocking broadcast of one number.

Both are timed between steps of about a millisecond that end, as those of a distributed run do,
with the ranks having waited for each other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from tests.bench.callback_cost import STEP_SECONDS, compute
from tests.bench.report import Row, percentile
from tests.support.torchrun import torchrun
from trainer_agent.ranks import group as ranks_group

WARM_UP = 200


def rows(directory: Path, *, quick: bool) -> list[Row]:
    """Measure, and return the rows of the benchmark table."""
    steps = 1_500 if quick else 5_000
    result = directory / "ranks.json"
    torchrun("ranks", 2, directory, "tests/bench/ranks.py", str(result), str(steps), seconds=300)
    taken: dict[str, list[float]] = json.loads(result.read_text())
    return [
        Row(
            f"agreement of two ranks a step, p{percent}",
            "µs",
            percentile(taken["broadcast"], percent),
            percentile(taken["exchange"], percent),
            percentile(taken["broadcast"], percent),
            "floor and goal: a blocking broadcast of one number",
        )
        for percent in (50, 99)
    ]


def measure(steps: int) -> dict[str, list[float]]:
    """Return what each step's agreement took on this rank, in microseconds."""
    ranks = ranks_group.join()
    group = dist.new_group(backend="gloo")
    numbers = torch.zeros(1, dtype=torch.int64)
    gradients = torch.zeros(64)
    ways: dict[str, Callable[[], object]] = {
        "exchange": lambda: ranks.exchange(()),
        "broadcast": lambda: dist.broadcast(numbers, 0, group=group),
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(WARM_UP + steps):
        for way, agree in ways.items():
            compute(STEP_SECONDS)
            dist.all_reduce(gradients)
            begin = time.perf_counter_ns()
            agree()
            taken[way].append((time.perf_counter_ns() - begin) / 1000)
    ranks.close()
    return {way: each[WARM_UP:] for way, each in taken.items()}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    taken = measure(int(sys.argv[2]))
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(taken))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
