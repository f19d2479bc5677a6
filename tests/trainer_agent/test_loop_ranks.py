"""A loop of one's own on two ranks: both make a change at the same boundary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

RANK = """
import json, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.support.scripted_link import LinkScript, delivery, set_change
from trainer_agent.loop import Loop

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(3, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
x = torch.randn(12, 2, 8, 3, generator=torch.Generator().manual_seed(1))[:, rank]
script = LinkScript({3: [delivery(1, set_change(0.02))]})
rates = []
with Loop(optimizer, scheduler, job="job", total_steps=12, link_factory=script) as loop:
    for step in range(1, 13):
        optimizer.zero_grad()
        loss = (model(x[step - 1]) ** 2).mean()
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        loop.step(step, loss=loss)
weight = next(model.parameters()).detach().tolist()
applied = [each.applied.step for link in script.links for each in link.outcomes]
links = len(script.links)
print(json.dumps({"rates": rates, "weight": weight, "applied": applied, "links": links}))
# Gloo ends a process whose peer hangs up in the middle of its own last collective.
del model, loop
dist.barrier()
dist.destroy_process_group()
"""


def test_both_ranks_make_a_change_at_the_same_step(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", RANK, str(rank), str(tmp_path / "store")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=100)
            assert process.returncode == 0, err
            said.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    first, second = said
    assert first["weight"] == second["weight"]
    assert first["rates"] == second["rates"]
    assert (first["links"], second["links"]) == (1, 0), "the first rank alone has a link"
    (applied,) = first["applied"]
    assert first["rates"][applied - 1] == 0.02
    assert first["rates"][applied - 2] != 0.02
    assert 4 <= applied <= 6
