"""Two ranks whose accumulation is changed at the same step, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.trainer_agent.parameters.data_runs import ACCUMULATION, BATCH, GLOBAL, set_to, train

SCRIPT = {
    2: [set_to(ACCUMULATION, 2)],
    4: [set_to(GLOBAL, 8)],
    6: [set_to(BATCH, 2)],
}
ARGS: dict[str, Any] = {
    "gradient_accumulation_steps": 3,
    "num_train_epochs": 3,
    "samples": 44,
    "train_sampling_strategy": "sequential",
}


def test_two_ranks_are_as_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", __file__, str(tmp_path)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=200,
        capture_output=True,
    )
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    for mine, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(mine, other)
    assert first["chunks"] == second["chunks"]
    assert first["made"] == second["made"]
    seen = [sorted(first["seen"][index] + second["seen"][index]) for index in range(22)]
    assert seen == [[2 * index, 2 * index + 1] for index in range(22)]

    doubled = {2: SCRIPT[2], 4: SCRIPT[4], 6: [set_to(BATCH, 4)]}
    one = train(tmp_path, doubled, per_device_train_batch_size=2, **ARGS)
    assert first["chunks"] == one.steer.chunks
    assert first["made"] == [made.step for made in one.steer.made]
    assert first["max_steps"] == one.trainer.state.max_steps
    for mine, other in zip(first["weights"], one.weights, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


def _train_one_rank(output_dir: Path) -> None:
    torch.set_num_threads(1)
    run = train(output_dir, SCRIPT, per_device_train_batch_size=1, ddp_backend="gloo", **ARGS)
    assert not run.steer.refused, run.steer.refused
    torch.save(
        {
            "weights": run.weights,
            "chunks": run.steer.chunks,
            "made": [made.step for made in run.steer.made],
            "seen": run.seen,
            "max_steps": run.trainer.state.max_steps,
        },
        output_dir / f"rank-{os.environ['RANK']}.pt",
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _train_one_rank(Path(sys.argv[1]))
