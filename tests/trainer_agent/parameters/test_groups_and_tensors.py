"""Several parameter groups, named ones, and learning rates that are tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer_agent.parameters.runs import (
    EVERY,
    NAME,
    RATE,
    STEPS,
    Run,
    assert_same,
    own_rates,
)
from trainer_agent.parameters import (
    Change,
    Multiply,
    Ramp,
    Reading,
    Refused,
    Release,
    Schedule,
    Set,
    SetMode,
    Shape,
)
from trainer_agent.parameters.groups import find_group, group_names

RATES = (RATE, 0.02, 0.0)
AT = 7


def test_a_group_is_called_by_its_name_where_that_is_unique_else_by_its_index() -> None:
    groups: list[dict[str, Any]] = [
        {"name": "decay"},
        {},
        {"name": "twice"},
        {"name": "twice"},
        {"name": "0"},
        {"name": 5},
        {"name": ""},
    ]
    assert group_names(groups) == ("decay", "1", "2", "3", "0", "5", "6")
    assert find_group(groups, "decay") == 0
    assert find_group(groups, "0") == 4
    assert find_group(groups, "4") == 4
    assert find_group(groups, "twice") is None
    assert find_group(groups, "7") is None


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR", "none", "ExponentialLR"])
@pytest.mark.parametrize(
    "change",
    [
        Set(NAME, 0.05),
        Set(NAME, 0.05, mode=SetMode.HOLD),
        Ramp(NAME, 0.05, 1),
        Schedule(NAME, Shape.COSINE, peak=0.05),
        Multiply(NAME, 0.5),
    ],
)
def test_all_groups_keep_their_ratios(name: str, change: Change) -> None:
    run = Run(EVERY[name], RATES).until(AT)
    old = run.now()
    applied = run.apply(change)
    new = run.now()
    assert new[0] == (0.05 if not isinstance(change, Multiply) else old[0] * 0.5)
    assert new[1] / new[0] == pytest.approx(old[1] / old[0], rel=1e-14)
    assert new[2] == pytest.approx(old[2] * new[0] / old[0])
    assert applied.old.value == old[0]
    assert list(applied.new.by_group.values()) == new
    run.until(STEPS).apply(Release(NAME))
    assert run.now() == own_rates(EVERY[name], rates=RATES)[STEPS]


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR", "none", "SequentialLR"])
@pytest.mark.parametrize("asked", ["head", "1"])
def test_a_named_group_changes_alone(name: str, asked: str) -> None:
    own = own_rates(EVERY[name], rates=RATES)
    run = Run(EVERY[name], RATES, names=("body", "head", None)).until(AT)
    assert run.lr.spec().groups == ("body", "head", "2")
    applied = run.apply(Set(NAME, 0.7, group=asked))
    assert applied.new == Reading({"body": own[AT][0], "head": 0.7, "2": own[AT][2]})
    run.until(AT + 3).apply(Set(NAME, 0.3, mode=SetMode.HOLD, hold_steps=2, group="2"))
    run.until(STEPS)
    for n in range(AT, STEPS):
        assert run.used[n][0] == own[n][0]
        assert run.used[n][1] == pytest.approx(own[n][1] * 0.7 / own[AT][1], rel=1e-12)
        assert run.used[n][2] == (0.3 if AT + 3 <= n < AT + 5 else own[n][2])
    run.apply(Release(NAME, group="head"))
    assert run.now() == own[STEPS]


def test_a_group_added_in_the_middle_of_a_run_has_its_own_rate() -> None:
    run = Run(EVERY["none"]).until(AT)
    run.apply(Set(NAME, 0.05, mode=SetMode.HOLD))
    extra = torch.nn.Parameter(torch.zeros(2))
    run.torch_optimizer.add_param_group({"params": [extra], "lr": 0.4})
    assert run.lr.read() == Reading({"0": 0.05, "1": 0.4})
    run.until(AT + 2).apply(Multiply(NAME, 2.0))
    assert run.now() == [0.1, 0.8]
    run.until(AT + 4).apply(Release(NAME))
    assert run.now() == [RATE, 0.4]


def tensor_run(name: str, *, steered: bool = True) -> Run:
    rates = [torch.tensor(RATE), torch.tensor(0.02, dtype=torch.float64)]
    return Run(EVERY[name], rates, steered=steered, options={"foreach": False})


@pytest.mark.parametrize(
    "name",
    [
        "LambdaLR",
        "cosine",
        "none",
        "CosineAnnealingLR",
        "SequentialLR",
        "OneCycleLR",
        "CyclicLR",
        "ReduceLROnPlateau",
        "MultiplicativeLR",
    ],
)
@pytest.mark.parametrize(
    "change",
    [
        Set(NAME, 0.05),
        Set(NAME, 0.05, mode=SetMode.PEAK),
        Set(NAME, 0.05, mode=SetMode.HOLD, hold_steps=3),
        Multiply(NAME, 0.3),
        Ramp(NAME, 0.05, 3),
        Schedule(NAME, Shape.COSINE, peak=0.06),
    ],
)
def test_tensors_are_filled_in_place_and_released_to_the_bit(name: str, change: Change) -> None:
    untouched, run = tensor_run(name, steered=False).until(STEPS), tensor_run(name).until(AT)
    tensors = [group["lr"] for group in run.groups]
    applied = run.apply(change)
    if isinstance(change, Set) and change.mode is not SetMode.PEAK:
        assert applied.new.value == torch.tensor(0.05).item()
    run.until(AT + 4)
    held = run.checkpoint()
    run.until(AT + 6).apply(Release(NAME))
    run.until(STEPS)
    assert all(group["lr"] is tensor for group, tensor in zip(run.groups, tensors, strict=True))
    assert run.used[AT + 6 :] == untouched.used[AT + 6 :]
    resumed = tensor_run(name).resume(held).until(AT + 6)
    resumed.apply(Release(NAME))
    resumed.until(STEPS)
    assert resumed.used == run.used[AT + 4 :]
    assert all(map(torch.equal, resumed.weights(), run.weights()))


def test_undo_with_tensors_is_exact() -> None:
    untouched, run = tensor_run("cosine", steered=False), tensor_run("cosine").until(AT)
    run.lr.undo(run.lr.apply(Set(NAME, 0.05), run.boundary))
    run.lr.undo(run.lr.apply(Schedule(NAME, Shape.LINEAR), run.boundary))
    assert_same(run.until(STEPS), untouched.until(STEPS))


def test_groups_that_share_one_tensor_change_together_or_not_at_all() -> None:
    shared = torch.tensor(RATE)
    run = Run(EVERY["cosine"], [shared, shared], options={"foreach": False}).until(AT)
    with pytest.raises(Refused, match="shares one learning rate tensor") as refused:
        run.apply(Set(NAME, 0.05, group="1"))
    assert refused.value.reason == "SHARED_RATE"
    run.apply(Set(NAME, 0.05))
    assert run.now() == [torch.tensor(0.05).item()] * 2
    run.until(AT + 2)
    run.apply(Release(NAME))
    assert (
        run.now()
        == Run(EVERY["cosine"], [torch.tensor(RATE)] * 2, steered=False, options={"foreach": False})
        .until(AT + 2)
        .now()
    )


class OnADevice(torch.Tensor):
    """A tensor that says it is on an accelerator and counts who waits for it."""

    waited = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def __float__(self) -> float:
        OnADevice.waited += 1
        return super().__float__()

    def item(self) -> Any:
        OnADevice.waited += 1
        return super().item()


def on_a_device(value: float) -> torch.Tensor:
    return torch.tensor(value).as_subclass(OnADevice)


@pytest.mark.parametrize("name", ["cosine", "CosineAnnealingLR", "none"])
@pytest.mark.parametrize(
    "change",
    [
        None,
        Set(NAME, 0.05),
        Set(NAME, 0.05, mode=SetMode.HOLD),
        Ramp(NAME, 0.05, STEPS),
        Schedule(NAME, Shape.COSINE, peak=0.06),
    ],
)
def test_no_step_waits_for_a_device(name: str, change: Change | None) -> None:
    run = Run(EVERY[name], [on_a_device(RATE)], options={"foreach": False}, learns=False).until(AT)
    if change is not None:
        run.lr.apply(change, run.boundary)
    for _ in range(4):
        OnADevice.waited = 0
        run.torch_optimizer.step()
        if run.torch_scheduler is not None:
            run.torch_scheduler.step()
        run.global_step += 1
        run.lr.tick(run.boundary)
        reading = run.lr.read()
        run.lr.spec()
        assert OnADevice.waited == 0
        # What the host knows it says, and what it does not know it does not invent.
        known = change is not None and not (
            isinstance(change, Set) and change.mode is SetMode.DEFAULT
        )
        exact = run.lr.read(synchronise=True).value
        if known:
            assert reading.value == pytest.approx(exact, rel=1e-6)
        else:
            assert reading.value is None
