"""What every rank of a distributed run does in the tests of agreement: a script for torchrun.

python tests/support/rank_scenarios.py DIRECTORY SCENARIO...

Trains a few times in one process group and writes what happened to DIRECTORY/rank-N.json.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import TrainerCallback

from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import LinkScript, ScriptedLink, delivery, set_change, set_changes
from tests.support.tiny_runs import AtStep, set_with_torch
from trainer_agent import attach
from trainer_agent.parameters.user import Parameter

RATE, DECAY, CLIP = 0.03, 0.2, 0.05
PAUSE = 4.5
TIMEOUT = 3


@dataclasses.dataclass
class Record:
    """What a run was like on one rank."""

    weights: list[list[str]] = dataclasses.field(default_factory=list)
    """After every step, each number exactly."""
    rates: list[float] = dataclasses.field(default_factory=list)
    """For the step after each."""
    outcomes: list[str] = dataclasses.field(default_factory=list)
    """By revision, as far as this rank told the agent."""
    seconds: float = 0.0
    fragile: float = 0.0
    """The value of ``Fragile``."""
    error: str = ""


class Layers(torch.nn.Module):
    """Has something for every rank where it is sharded."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": torch.nn.functional.mse_loss(self.layers(x), labels)}


class Recorder(TrainerCallback):
    """Notes what each step has come to. To be the last callback."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        values = [
            value
            for parameter in parts["model"].parameters()
            for value in whole(parameter.detach()).flatten().tolist()
        ]
        self._record.weights.append([float(value).hex() for value in values])
        self._record.rates.append(float(parts["optimizer"].param_groups[0]["lr"]))


def whole(parameter: Any) -> torch.Tensor:
    """Return all of a parameter that may be sharded."""
    full: torch.Tensor = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return full


class PatientLink(ScriptedLink):
    """Says nothing, while the run is held, until some seconds have passed."""

    begun = 0.0

    def wait(self, seconds: float) -> None:
        self.begun = self.begun or time.monotonic()
        time.sleep(seconds)  # as a link does to which nothing comes
        if time.monotonic() - self.begun > PAUSE:
            super().wait(seconds)


class PatientScript(LinkScript):
    """Makes such links."""

    def __call__(self, *, hello: Any, **_: Any) -> ScriptedLink:
        self.links.append(PatientLink(self.script, hello, self.while_held))
        return self.links[-1]


class Fragile:
    """A value that can not be changed on the second rank, and, if it is broken, not back either."""

    value = 1.0

    def __init__(self, *, broken: bool = False) -> None:
        self._broken = broken

    def set(self, value: Any) -> None:
        if dist.get_rank() == 1 and (value == 2 or self._broken):
            raise ValueError(f"{value} does not suit this rank")
        self.value = value


def train(
    directory: Path,
    prepare: Callable[[Any], object],
    link: LinkScript | None = None,
    **args: Any,
) -> Record:
    """Train once."""
    record = Record()
    begun = time.monotonic()
    trainer = plain_trainer(
        directory,
        **{
            "model": Layers(),
            "lr_scheduler_type": "linear",
            "weight_decay": 0.1,
            "ddp_backend": "gloo",
            **args,
        },
    )
    if is_sharded():
        trainer.is_fsdp_enabled = True
    prepare(trainer)
    trainer.add_callback(Recorder(record))
    try:
        trainer.train()
    except Exception as error:  # noqa: BLE001 - it is part of what happened
        record.error = f"{type(error).__name__}: {error}"
    record.seconds = time.monotonic() - begun
    if link is not None and link.links:
        record.outcomes = [
            f"{each.revision} {each.WhichOneof('result')} "
            + (
                f"{each.rejected.reason} {each.rejected.parameter}: {each.rejected.message}"
                if each.HasField("rejected")
                else f"from {each.applied.step}"
            )
            for each in link.link.outcomes
        ]
    return record


def steered(
    directory: Path,
    script: Mapping[int, Sequence[link_pb2.AgentMessage]],
    while_held: Sequence[Sequence[link_pb2.AgentMessage]] = (),
    **args: Any,
) -> Record:
    """Train with updates that come to the first rank."""
    link = PatientScript(script, while_held)
    parameters = args.pop("parameters", ())

    def prepare(trainer: Any) -> None:
        attach(trainer, "ranks", "127.0.0.1:1", link_factory=link, parameters=parameters)

    return train(directory, prepare, link, **args)


def by_hand(directory: Path, changes: dict[int, Callable[[Any, Any, Any], object]]) -> Record:
    """Train with the same changes, made by the script of every rank."""

    def prepare(trainer: Any) -> None:
        def script(step: int, optimizer: Any, scheduler: Any) -> None:
            if step in changes:
                changes[step](trainer, optimizer, scheduler)

        trainer.add_callback(AtStep(script))

    return train(directory, prepare)


def set_rate(trainer: Any, optimizer: Any, scheduler: Any) -> None:
    set_with_torch(optimizer, scheduler, RATE)


def set_others(trainer: Any, optimizer: Any, scheduler: Any) -> None:
    for group in optimizer.param_groups:
        group["weight_decay"] = DECAY if group["weight_decay"] else 0.0
    trainer.args.max_grad_norm = CLIP


# Updates come one boundary before all ranks have them.
UPDATES: dict[int, Sequence[link_pb2.AgentMessage]] = {
    3: [delivery(1, set_change(RATE))],
    5: [delivery(2, *set_changes({"weight_decay": DECAY, "max_grad_norm": CLIP}))],
}


def agreed(directory: Path) -> dict[str, Record]:
    """Updates, and the same by hand."""
    return {
        "untouched": by_hand(directory, {}),
        "by hand": by_hand(directory, {4: set_rate, 6: set_others}),
        "steered": steered(directory, UPDATES),
        "no updates": steered(directory, {}),
    }


def broken(directory: Path) -> dict[str, Record]:
    """One rank can not take back what it could not make either, with more to do at the boundary."""
    changes = [set_change(RATE / 2), set_change(2.0, parameter="fragile")]
    updates = {2: [delivery(1, *changes)], 3: [delivery(2, set_change(RATE))]}
    return {"broken": with_fragile(directory, Fragile(broken=True), updates)}


def fragile(directory: Path) -> dict[str, Record]:
    """An update that one rank alone can not make, and one after it that all can."""
    both = [set_change(RATE / 2), set_change(2.0, parameter="fragile")]
    updates = {2: [delivery(1, *both)], 3: [delivery(2, set_change(RATE))]}
    return {
        "fragile": with_fragile(directory, Fragile(), {**updates, 4: [delivery(3, *both[1:])]}),
        "fragile by hand": by_hand(directory, {3: set_rate}),
    }


def with_fragile(
    directory: Path, value: Fragile, script: Mapping[int, Sequence[link_pb2.AgentMessage]]
) -> Record:
    own = Parameter("fragile", lambda: value.value, value.set)
    record = steered(directory, script, parameters=[own])
    record.fragile = value.value
    return record


def paused(directory: Path) -> dict[str, Record]:
    """A pause that is longer than any collective may take, with an update during it."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=TIMEOUT))
    pause = delivery(1, action=update_pb2.Action(pause=update_pb2.PauseAction()))
    resume = delivery(3, action=update_pb2.Action(resume=update_pb2.ResumeAction()))
    return {
        "paused": steered(
            directory,
            {3: [pause]},
            [[delivery(2, set_change(RATE))], [resume]],
            ddp_timeout=TIMEOUT,
        ),
        "paused by hand": by_hand(directory, {4: set_rate}),
    }


def apart(directory: Path) -> dict[str, Record]:
    """The callback is on the first rank alone."""
    link = LinkScript(UPDATES)

    def prepare(trainer: Any) -> None:
        if dist.get_rank() == 0:
            attach(trainer, "ranks", "127.0.0.1:1", link_factory=link)

    return {"apart": train(directory, prepare, link, ddp_timeout=1)}


def sharded(directory: Path) -> dict[str, Record]:
    """The same as ``agreed`` with FSDP2, which accelerate uses on the CPU only when made to."""
    plain_trainer(directory, ddp_backend="gloo")  # makes accelerate's state
    state: Any = AcceleratorState()
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="no_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    return {f"sharded {name}": record for name, record in agreed(directory).items()}


def is_sharded() -> bool:
    state: Any = AcceleratorState()
    return bool(state.distributed_type == DistributedType.FSDP)


def killed(directory: Path) -> dict[str, Record]:
    """The second rank dies in the middle."""

    class Die(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5 and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    link = LinkScript({})

    def prepare(trainer: Any) -> None:
        attach(trainer, "ranks", "127.0.0.1:1", link_factory=link)
        trainer.add_callback(Die())

    return {"killed": train(directory, prepare, link)}


SCENARIOS: dict[str, Callable[[Path], dict[str, Record]]] = {
    "agreed": agreed,
    "fragile": fragile,
    "broken": broken,
    "sharded": sharded,
    "paused": paused,
    "apart": apart,
    "killed": killed,
}


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    PartialState(cpu=True)  # accelerate's process group, for all that follows
    records: dict[str, Record] = {}
    for name in sys.argv[2:]:
        records.update(SCENARIOS[name](directory))
    path = directory / f"rank-{os.environ['RANK']}.json"
    path.write_text(json.dumps({name: dataclasses.asdict(each) for name, each in records.items()}))
    if not any(record.error for record in records.values()):
        # Gloo ends a process whose peer hangs up in the middle of its own last collective.
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=60))
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
