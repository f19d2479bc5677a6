"""Data loaders fork their workers while the link is open and an agent runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FORKS = 40

RUN = """
import json, multiprocessing, os, sys, warnings
from pathlib import Path
# Python warns of forking a process with threads; torch's data loader has one, we have none.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
import torch
torch.set_num_threads(1)
from tests.support.plain_trainer import Points, plain_trainer
from trainer_agent import attach
from trainer_agent.link import TrainerLink

forks = 0
def forked():
    global forks
    forks += 1
os.register_at_fork(after_in_parent=forked)

links = []
def link(**options):
    links.append(TrainerLink(**options))
    links[-1].start()
    assert links[-1].wait_ready(60), links[-1].status
    return links[-1]

trainer = plain_trainer(
    Path(sys.argv[1]), train_dataset=Points(8), dataloader_num_workers=2, max_steps=40
)
attach(trainer, "workers", control_plane="127.0.0.1:1", link_factory=link)
pid = []
from tests.support.tiny_runs import AtStep
trainer.add_callback(AtStep(lambda step, *_: pid.append(links[0].status.agent_pid)))
trainer.train()
print(json.dumps({
    "forks": forks,
    "steps": trainer.state.global_step,
    "agents": sorted({each for each in pid if each}),
    "without_agent": pid.count(None),
    "connections": links[0].status.connections,
    "dropped": links[0].status.dropped_steps,
    "workers_left": len(multiprocessing.active_children()),
    "grpc": sorted(name for name in sys.modules if name.partition(".")[0] == "grpc"),
}))
"""


@pytest.mark.long
def test_of_many_forks_none_dies_and_none_hangs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(tmp_path / "run")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            "MIDCOURSE_SOCKET_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    # A worker that dies makes the data loader raise; one that hangs, the run end in a timeout.
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    for agent in result["agents"]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(agent, signal.SIGKILL)  # it would try to reach its control plane for a while
    assert result["forks"] >= FORKS
    assert result["steps"] == 40
    # The workers had copies of the connection: it is the same one all the way.
    assert len(result["agents"]) == 1
    assert result["without_agent"] == 0
    assert result["connections"] == 1
    assert result["dropped"] == 0
    assert result["workers_left"] == 0
    assert result["grpc"] == []
