"""Turning what a loop measures into numbers, without waiting for a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.scripted_link import LinkScript
from trainer_agent import loop as loop_module
from trainer_agent.loop import Loop
from trainer_agent.telemetry.measured import MOST_LATE, LateNumbers, host_numbers


def test_numbers_of_the_host_are_known_at_once() -> None:
    known, elsewhere = host_numbers(
        {
            "float": 1.5,
            "int": 2,
            "numpy": np.float32(0.25),
            "tensor": torch.tensor([3.0], requires_grad=True) * 2,
            "whole": torch.tensor(4),
        }
    )
    assert known == {"float": 1.5, "int": 2.0, "numpy": 0.25, "tensor": 6.0, "whole": 4.0}
    assert not elsewhere


def test_what_is_no_number_is_left_out() -> None:
    metrics = {"a": "text", "b": None, "c": True, "d": torch.ones(2), "e": torch.tensor(True)}
    assert host_numbers(metrics) == ({}, {})


def test_a_tensor_elsewhere_is_not_read() -> None:
    # One on the meta device has no value at all: whoever reads it fails.
    known, elsewhere = host_numbers({"loss": torch.ones((), device="meta"), "other": 1.0})
    assert known == {"other": 1.0}
    assert elsewhere["loss"].device.type == "meta"


class Device:
    """A device that is slow to answer."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value
        self.done: set[int] = set()
        self.begun = 0

    def copy(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], bool]]:
        self.begun += 1
        number = self.begun
        copies = {name: torch.tensor(self.value * number) for name in tensors}
        return copies, lambda: number in self.done


def test_numbers_come_when_they_have_arrived_in_order() -> None:
    device = Device()
    late = LateNumbers(device.copy)
    meta = {"loss": torch.ones((), device="meta")}
    late.add(1, meta)
    late.add(2, meta)
    late.add(3, {})
    assert list(late.take()) == []
    device.done = {2}
    assert list(late.take()) == [], "the first one is not there yet"
    device.done = {1, 2}
    assert list(late.take()) == [(1, {"loss": 0.5}), (2, {"loss": 1.0})]
    assert list(late.take()) == []


def test_a_device_that_never_answers_costs_a_bounded_memory() -> None:
    device = Device()
    late = LateNumbers(device.copy)
    for step in range(MOST_LATE + 10):
        late.add(step, {"loss": torch.ones((), device="meta")})
    device.done = set(range(1, 1000))
    assert [step for step, _ in late.take()] == list(range(10, MOST_LATE + 10))


def test_a_device_without_events_is_given_up_once(caplog: pytest.LogCaptureFixture) -> None:
    late = LateNumbers()
    for step in range(3):
        late.add(step, {"loss": torch.ones((), device="meta")})
    assert list(late.take()) == []
    (said,) = caplog.messages
    assert said.startswith("numbers that lie on a device are not reported: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_number_of_a_gpu_arrives_without_being_waited_for() -> None:
    late = LateNumbers()
    late.add(1, {"loss": torch.tensor(0.5, device="cuda")})
    torch.cuda.synchronize()
    assert list(late.take()) == [(1, {"loss": 0.5})]


def test_a_loop_reports_them_with_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(loop_module, "LateNumbers", lambda: LateNumbers(device.copy))
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    script = LinkScript()
    with Loop(optimizer, job="job", link_factory=script) as loop:
        for step in range(1, 5):
            optimizer.step()
            loop.step(step, loss=torch.ones((), device="meta"), metrics={"size": step})
            device.done.add(step - 1)
        device.done.add(4)
    assert script.link.metric("loss") == {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0}
    assert script.link.metric("size") == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
