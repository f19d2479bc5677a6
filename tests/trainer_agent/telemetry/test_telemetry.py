"""How fast a run goes and how full its GPU is, and that asking costs no synchronisation."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from examples.offline import build_trainer
from tests.support.plain_trainer import Points, plain_trainer
from tests.support.scripted_link import LinkScript, delivery, set_change
from trainer_agent import RuntimeParameterUpdateCallback, attach
from trainer_agent.parameters.user import Parameter
from trainer_agent.telemetry import gpu
from trainer_agent.telemetry.gpu import GpuSampler, find_gpu
from trainer_agent.telemetry.pace import Pace, samples_per_step


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def asked(pace: Pace) -> float | None:
    told: dict[str, float] = {}
    pace.measure(told)
    assert told.keys() <= {"step_seconds"}
    return told.get("step_seconds")


def test_steps_are_timed_and_interruptions_are_not() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    assert asked(pace) is None, "how long the first step took is not known"
    clock.now += 2.0
    assert asked(pace) == 2.0
    pace.interrupted()
    clock.now += 50.0
    assert asked(pace) is None
    clock.now += 4.0
    assert asked(pace) == 4.0


def test_samples_are_counted_over_the_steps_since_the_last_log() -> None:
    clock = Clock()
    samples: list[int | None] = [8]
    pace = Pace(lambda: samples[0], clock)

    def steps(*seconds: float) -> dict[str, float]:
        for each in seconds:
            clock.now += each
            asked(pace)
        return pace.logged({"loss": 1.0})

    assert steps(1.0) == {}, "the first step has no known time"
    assert steps(2.0, 6.0) == {"samples_per_second": 2.0}
    pace.interrupted()
    assert steps(90.0, 2.0) == {"samples_per_second": 4.0}
    samples[0] = 16
    assert steps(2.0, 2.0) == {}, "nobody knows which step had which batch"
    assert steps(2.0, 2.0) == {"samples_per_second": 8.0}
    samples[0] = None
    assert steps(2.0, 2.0) == {}


@pytest.mark.parametrize("name", ["num_tokens", "num_input_tokens_seen"])
def test_tokens_are_counted_over_the_time_of_the_steps_alone(name: str) -> None:
    clock = Clock()
    pace = Pace(clock=clock)

    def steps(count: int) -> None:
        for _ in range(count):
            clock.now += 1.0
            asked(pace)

    steps(3)
    assert pace.logged({"loss": 1.0, name: 300.0}) == {}
    steps(2)
    clock.now += 0.0
    assert pace.logged({name: 800.0}) == {"tokens_per_second": 250.0}
    assert pace.logged({"loss": 1.0}) == {}
    steps(2)
    assert pace.logged({name: 900.0}) == {"tokens_per_second": 50.0}
    assert pace.logged({name: 900.0}) == {}, "no time has passed"
    pace.interrupted()
    steps(2)
    assert pace.logged({name: 1100.0}) == {}, "one of the two steps was not timed"
    steps(1)
    assert pace.logged({name: 1200.0}) == {"tokens_per_second": 100.0}
    steps(1)
    assert pace.logged({name: 10.0}) == {}, "the counter began anew"


def test_a_step_takes_a_batch_of_every_rank(tmp_path: Path) -> None:
    trainer = plain_trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    samples = samples_per_step(trainer.args)
    assert samples() == 12
    trainer.args.gradient_accumulation_steps = 2
    assert samples() == 8
    several: Any = types.SimpleNamespace(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, world_size=2, n_gpu=1
    )
    assert samples_per_step(several)() == 16
    several.accelerator_config = types.SimpleNamespace(split_batches=True)
    assert samples_per_step(several)() == 8
    several.parallelism_config = object()
    assert samples_per_step(several)() is None


def sampled(sampler: GpuSampler) -> dict[str, float]:
    told: dict[str, float] = {}
    sampler.measure(told)
    return told


def test_the_gpu_is_sampled_once_a_second() -> None:
    clock = Clock()
    sampler = GpuSampler([lambda: {"a": 1.0}, lambda: {"b": 2.0}], clock)
    assert sampled(sampler) == {"a": 1.0, "b": 2.0}
    clock.now += 0.9
    assert sampled(sampler) == {}
    clock.now += 0.2
    assert sampled(sampler) == {"a": 1.0, "b": 2.0}


def test_a_slow_driver_is_asked_less_often() -> None:
    clock = Clock()

    def slow() -> dict[str, float]:
        clock.now += 0.5
        return {"a": 1.0}

    sampler = GpuSampler([slow], clock)
    assert sampled(sampler) == {"a": 1.0}
    clock.now += 40.0
    assert sampled(sampler) == {}
    clock.now += 10.0
    assert sampled(sampler) == {"a": 1.0}


def test_a_source_that_fails_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    calls = []

    def broken() -> dict[str, float]:
        calls.append(clock.now)
        raise RuntimeError("the driver is gone")

    sampler = GpuSampler([broken, lambda: {"b": 2.0}], clock)
    for _ in range(3):
        assert sampled(sampler) == {"b": 2.0}
        clock.now += 2.0
    assert len(calls) == 1
    (said,) = caplog.messages
    assert said == "the GPU can not be watched any more: RuntimeError: the driver is gone"


class NotFoundError(Exception):
    pass


class NotSupportedError(Exception):
    pass


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A GPU as torch and NVIDIA's driver show one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    properties = types.SimpleNamespace(uuid="abc-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    stats = {"allocated_bytes.all.current": 10, "reserved_bytes.all.current": 20}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {1: stats}[device])
    nvml: Any = types.ModuleType("pynvml")
    nvml.NVMLError_NotFound, nvml.NVMLError_NotSupported = NotFoundError, NotSupportedError
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-abc-1": "handle"}[uuid]
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(used=30)
    nvml.nvmlDeviceGetUtilizationRates = lambda handle: types.SimpleNamespace(gpu=90)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml  # type: ignore[no-any-return]  # it was made a module above


MEMORY = {"gpu_memory_allocated_bytes": 10.0, "gpu_memory_reserved_bytes": 20.0}


def found() -> dict[str, float]:
    sampler = find_gpu()
    assert sampler is not None
    return sampled(sampler)


def test_a_gpu_is_found_by_what_torch_calls_it(fake_gpu: Any) -> None:
    assert found() == MEMORY | {"gpu_memory_used_bytes": 30.0, "gpu_utilization_percent": 90.0}


def test_a_slice_of_a_gpu_has_no_utilisation(fake_gpu: Any) -> None:
    def handle(uuid: str) -> str:
        if uuid != "MIG-abc-1":
            raise NotFoundError
        return "slice"

    def rates(handle: str) -> None:
        raise NotSupportedError

    fake_gpu.nvmlDeviceGetHandleByUUID = handle
    fake_gpu.nvmlDeviceGetUtilizationRates = rates
    assert found() == MEMORY | {"gpu_memory_used_bytes": 30.0}


def test_without_nvidia_s_library_the_memory_is_known(
    fake_gpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, gpu.__name__)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert found() == MEMORY
    assert "install nvidia-ml-py" in caplog.text


def test_without_a_driver_the_memory_is_known(
    fake_gpu: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def init() -> None:
        raise OSError("no driver")

    caplog.set_level(logging.INFO, gpu.__name__)
    fake_gpu.nvmlInit = init
    assert found() == MEMORY
    assert "OSError: no driver" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_there_is_nothing_to_sample() -> None:
    assert find_gpu() is None


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own lack
    """Counts what is asked of tensors. ``_local_scalar_dense`` is what ``.item()`` waits with."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted.append(str(func))
        return func(*args, **(kwargs or {}))


NAMES = {
    "sft": ("num_tokens", "mean_token_accuracy", "entropy"),
    "dpo": ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    "grpo": ("reward", "reward_std", "kl", "completions/mean_length", "num_tokens"),
}
"""What TRL logs of each method, by TRL's names."""

HOOKS = (
    "on_optimizer_step",
    "on_step_begin",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_epoch_begin",
    "on_epoch_end",
)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count every operation on a tensor that the callback's hooks make, on whatever device."""
    counted: list[str] = []
    for name in HOOKS:
        original = getattr(RuntimeParameterUpdateCallback, name)

        def counting_hook(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            with Operations() as operations:
                result = _original(*args, **kwargs)
            counted.extend(operations.counted)
            return result

        monkeypatch.setattr(RuntimeParameterUpdateCallback, name, counting_hook)
    for name in ("synchronize", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: counted.append(name))
    return counted


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_the_hooks_ask_nothing_of_any_tensor(
    method: str, counting: list[str], tmp_path: Path
) -> None:
    script = LinkScript()
    more = {"beta": 0.1} if method == "grpo" else {}  # it has no KL term without
    trainer = build_trainer(method, tmp_path, samples=16, max_steps=4, **more)
    attach(trainer, "job", link_factory=script)
    trainer.train()
    assert counting == []
    link = script.link
    assert set(link.metric("loss")) == {1, 2, 3, 4}
    assert set(link.metric("grad_norm")) == {1, 2, 3, 4}
    seconds, rates = link.metric("step_seconds"), link.metric("samples_per_second")
    assert set(seconds) == set(rates) == {2, 3, 4}, "how long the first step took is not known"
    batch = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    assert {step: rates[step] * seconds[step] for step in rates} == pytest.approx(
        dict.fromkeys(rates, batch)
    )
    assert set(link.metric("tokens_per_second")) == {2, 3, 4}
    for name in NAMES[method]:
        assert set(link.metric(name)) == {1, 2, 3, 4}, name


class EvaluateEvery(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = state.global_step % self.steps == 0


def test_evaluations_have_their_step_and_no_part_in_its_time(tmp_path: Path) -> None:
    script = LinkScript()
    trainer = plain_trainer(
        tmp_path, save_strategy="steps", save_steps=4, callbacks=[EvaluateEvery(3)]
    )
    trainer.eval_dataset = Points(8)
    attach(trainer, "job", link_factory=script)
    trainer.train()
    link = script.link
    assert set(link.metric("eval_loss")) == {3, 6, 9}
    # After an evaluation or a checkpoint at step 3, 4, 6, 8 and 9.
    assert set(link.metric("step_seconds")) == {2, 3, 6, 8}


def test_the_counter_counts(counting: list[str], tmp_path: Path) -> None:
    level = torch.ones(1)
    parameter = Parameter("level", lambda: float(level), lambda value: level.fill_(float(value)))
    script = LinkScript({2: [delivery(1, set_change(0.5, parameter="level"))]})
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", parameters=[parameter], link_factory=script)
    trainer.train()
    assert "aten._local_scalar_dense.default" in counting
