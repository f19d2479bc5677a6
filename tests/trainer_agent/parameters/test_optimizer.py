"""Values in an optimizer's parameter groups, against torch alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from tests.support.plain_trainer import plain_trainer
from tests.support.tiny_runs import outcome
from tests.trainer_agent.parameters.steered import (
    all_applied,
    change,
    declared,
    refusal,
    rejection,
    release,
    scripted,
    steer,
)
from trainer_agent.parameters import (
    Boundary,
    Change,
    LiveParameter,
    Multiply,
    Refused,
    Release,
    Set,
)
from trainer_agent.parameters.optimizer import find
from trainer_agent.run import Run

AT = 4
HERE = Boundary(AT, 10)
# Name, optimizer, options, the value to change to, how torch alone does it.
CASES: dict[str, tuple[str, type[torch.optim.Optimizer], dict[str, Any], float]] = {
    "AdamW weight_decay": ("weight_decay", torch.optim.AdamW, {"weight_decay": 0.1}, 0.4),
    "SGD weight_decay": ("weight_decay", torch.optim.SGD, {"weight_decay": 0.1}, 0.4),
    "AdamW beta1": ("adam_beta1", torch.optim.AdamW, {}, 0.5),
    "Adam beta2": ("adam_beta2", torch.optim.Adam, {}, 0.9),
    "NAdam beta2": ("adam_beta2", torch.optim.NAdam, {}, 0.9),
    "AdamW epsilon": ("adam_epsilon", torch.optim.AdamW, {}, 1e-3),
    "SGD momentum": ("momentum", torch.optim.SGD, {"momentum": 0.9}, 0.5),
    "SGD momentum from 0": ("momentum", torch.optim.SGD, {}, 0.5),
    "RMSprop momentum": ("momentum", torch.optim.RMSprop, {"momentum": 0.9}, 0.0),
}


class Loop:
    """A few steps of a small model with one optimizer."""

    def __init__(self, optimizer: type[Any], groups: int = 2, **options: Any) -> None:
        torch.manual_seed(3)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(groups))
        own: list[dict[str, Any]] = options.pop("own", [{}] * groups)
        self.optimizer: Any = optimizer(
            [
                {"params": list(layer.parameters()), **each}
                for layer, each in zip(self.layers, own, strict=True)
            ],
            lr=torch.tensor(0.05) if options.get("capturable") else 0.05,
            **options,
        )
        self.parameters: dict[str, LiveParameter] = {
            each.name: each for each in find(Run(optimizer=self.optimizer))
        }
        self.steps = 0

    def until(self, steps: int) -> Loop:
        while self.steps < steps:
            self.steps += 1
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(self.steps))
            for layer in self.layers:
                x = torch.tanh(layer(x))
            self.optimizer.zero_grad()
            loss: Any = x.square().mean()
            loss.backward()
            self.optimizer.step()
        return self

    def group_values(self, key: str) -> list[Any]:
        return [group[key] for group in self.optimizer.param_groups]

    def differs(self, other: Loop) -> bool:
        mine, theirs = self.layers.parameters(), other.layers.parameters()
        return not all(map(torch.equal, mine, theirs))

    def assert_same(self, other: Loop) -> None:
        for mine, theirs in zip(self.layers.parameters(), other.layers.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def with_torch(optimizer: Any, name: str, value: float) -> None:
    for group in optimizer.param_groups:
        match name:
            case "adam_beta1":
                group["betas"] = (value, group["betas"][1])
            case "adam_beta2":
                group["betas"] = (group["betas"][0], value)
            case "adam_epsilon":
                group["eps"] = value
            case _:
                group[name] = value


@pytest.mark.parametrize("case", CASES)
def test_is_what_torch_does_and_undo_is_exact(case: str) -> None:
    name, optimizer, options, value = CASES[case]
    live, plain, untouched = (Loop(optimizer, **options).until(AT) for _ in range(3))
    parameter = live.parameters[name]
    applied = parameter.apply(Set(name, value), HERE)
    live.until(AT + 1)
    assert parameter.verify(applied, parameter.read(synchronise=True), HERE) is None
    with_torch(plain.optimizer, name, value)
    live.until(9).assert_same(plain.until(9))
    assert live.differs(untouched.until(9))

    undone = Loop(optimizer, **options).until(AT)
    groups = [dict(group) for group in undone.optimizer.param_groups]
    parameter = undone.parameters[name]
    parameter.undo(parameter.apply(Set(name, value), HERE))
    assert undone.optimizer.param_groups == groups
    undone.until(9).assert_same(untouched)


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (torch.optim.AdamW, {"weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"}),
        (torch.optim.SGD, {"weight_decay", "momentum"}),
        (torch.optim.RMSprop, {"weight_decay", "momentum"}),
        (torch.optim.Adagrad, {"weight_decay"}),
        (torch.optim.Rprop, set()),
    ],
)
def test_only_what_the_optimizer_has(optimizer: type[Any], names: set[str]) -> None:
    assert set(Loop(optimizer).parameters) == names


def decaying(*decays: float) -> Loop:
    own = [{"weight_decay": each} for each in decays]
    return Loop(torch.optim.AdamW, groups=len(decays), own=own)


def test_weight_decay_never_goes_where_there_was_none_and_keeps_ratios() -> None:
    loop = decaying(0.1, 0.0, 0.05)
    parameter = loop.parameters["weight_decay"]
    assert parameter.spec().groups == ("0", "2")
    cases: list[tuple[Change, list[float]]] = [
        (Set("weight_decay", 0.2), [0.2, 0.0, 0.1]),
        (Multiply("weight_decay", 2.0), [0.4, 0.0, 0.2]),
        (Set("weight_decay", 0.3, group="2"), [0.4, 0.0, 0.3]),
        (Set("weight_decay", 0.0), [0.0, 0.0, 0.0]),
        (Set("weight_decay", 0.2), [0.2, 0.0, 0.1]),
        (Release("weight_decay"), [0.1, 0.0, 0.05]),
    ]
    for asked, expected in cases:
        parameter.apply(asked, HERE)
        assert loop.group_values("weight_decay") == pytest.approx(expected), asked
    refused = refusal(parameter, Set("weight_decay", 0.1, group="1"), HERE)
    assert refused.reason == "GROUP_WITHOUT_DECAY"
    assert "groups that decay: 0, 2" in refused.message


@given(
    decays=st.lists(st.sampled_from([0.0, 0.01, 0.1]), min_size=2, max_size=4).filter(any),
    asked=st.lists(
        st.one_of(
            st.builds(Set, st.just("weight_decay"), st.floats(0, 1)),
            st.builds(Multiply, st.just("weight_decay"), st.floats(0, 10)),
            st.builds(Release, st.just("weight_decay")),
        ),
        max_size=6,
    ),
    resumes=st.booleans(),
)
def test_no_sequence_of_changes_brings_decay_where_there_was_none(
    decays: list[float], asked: list[Any], resumes: bool
) -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": each} for each in decays
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    parameter: LiveParameter = next(iter(find(Run(optimizer=optimizer))))
    for each in asked:
        parameter.apply(each, HERE)
        if resumes:
            # As after a restart: the framework has put the groups as they were saved.
            saved = parameter.state_dict()
            parameter = next(iter(find(Run(optimizer=optimizer))))
            parameter.load_state_dict(saved)
        for group, built in zip(optimizer.param_groups, decays, strict=True):
            assert built or group["weight_decay"] == 0.0
        first = next(index for index, built in enumerate(decays) if built)
        if isinstance(each, Set):
            assert optimizer.param_groups[first]["weight_decay"] == each.value
    parameter.apply(Release("weight_decay"), HERE)
    assert [group["weight_decay"] for group in optimizer.param_groups] == decays


def test_where_nobody_knows_which_groups_were_meant_to_decay_one_is_named() -> None:
    loop = decaying(0.0, 0.0)
    parameter = loop.parameters["weight_decay"]
    refused = refusal(parameter, Set("weight_decay", 0.1), HERE)
    assert (refused.reason, "name one: 0, 1" in refused.message) == ("GROUP_NEEDED", True)
    parameter.apply(Set("weight_decay", 0.1, group="1"), HERE)
    assert loop.group_values("weight_decay") == [0.0, 0.1]
    alone = decaying(0.0)
    alone.parameters["weight_decay"].apply(Set("weight_decay", 0.1), HERE)
    assert alone.group_values("weight_decay") == [0.1]


def test_a_trainer_knows_which_were_meant_to_decay(tmp_path: Path) -> None:
    trainer, link = steer(tmp_path, {AT: [change("weight_decay", 0.3)]})
    assert trainer.args.weight_decay == 0.0
    assert trainer.optimizer is not None
    assert [each["weight_decay"] for each in trainer.optimizer.param_groups] == [0.3, 0.0]
    assert all_applied(link)
    _, link = steer(tmp_path, {AT: [change("weight_decay", 0.3, group="1")]})
    assert rejection(link).reason == "GROUP_WITHOUT_DECAY"


def test_tensors_are_filled_in_place() -> None:
    betas = (torch.tensor(0.9), torch.tensor(0.999))
    loop = Loop(torch.optim.AdamW, own=[{"betas": betas}, {}], capturable=True, foreach=False)
    parameter = loop.parameters["adam_beta1"]
    assert parameter.apply(Set("adam_beta1", 0.5), HERE).new.by_group == {"0": 0.5, "1": 0.5}
    assert loop.optimizer.param_groups[0]["betas"][0] is betas[0]
    assert betas[0].item() == 0.5
    third = float(torch.tensor(1 / 3))
    applied = parameter.apply(Set("adam_beta1", 1 / 3, group="0"), HERE)
    assert applied.new.by_group == {"0": third, "1": 0.5}
    parameter.undo(applied)
    assert betas[0].item() == 0.5
    # What is below 1 as a double may be 1 as it is stored.
    assert refusal(parameter, Set("adam_beta1", 1 - 1e-12, group="0"), HERE).reason == (
        "OUT_OF_BOUNDS"
    )


def test_a_tensor_that_groups_share_changes_for_all_or_not_at_all() -> None:
    betas = (torch.tensor(0.9), torch.tensor(0.999))
    loop = Loop(torch.optim.AdamW, own=[{"betas": betas}] * 2, capturable=True, foreach=False)
    parameter = loop.parameters["adam_beta2"]
    assert refusal(parameter, Set("adam_beta2", 0.9, group="0"), HERE).reason == "SHARED_VALUE"
    assert parameter.apply(Set("adam_beta2", 0.5), HERE).new.by_group == {"0": 0.5, "1": 0.5}


def test_momentum_is_refused_where_it_would_break_the_step() -> None:
    rms = Loop(torch.optim.RMSprop).until(2)
    refused = refusal(rms.parameters["momentum"], Set("momentum", 0.9), HERE)
    assert (refused.reason, refused.value_in_force) == ("NO_MOMENTUM_BUFFERS", 0.0)
    with_torch(rms.optimizer, "momentum", 0.9)
    with pytest.raises(KeyError):  # what it was kept from
        rms.until(3)
    nesterov = Loop(torch.optim.SGD, momentum=0.9, nesterov=True)
    assert "Nesterov" in refusal(nesterov.parameters["momentum"], Set("momentum", 0), HERE).message


def test_behind_a_stand_in_nothing_is_offered() -> None:
    stand_in: Any = LayerWiseDummyOptimizer
    dummy = stand_in(optimizer_dict={})
    found = list(find(Run(optimizer=dummy)))
    assert {each.name for each in found} == {
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
    }
    for each in found:
        assert "layer-wise" in str(each.spec().unavailable_reason)
        with pytest.raises(Refused, match="layer-wise"):
            each.check(Set(each.name, 0.5), HERE)
    engine = type("DeepSpeedOptimizerWrapper", (), {"optimizer": None, "param_groups": []})()
    assert all("DeepSpeed" in str(each.spec().unavailable_reason) for each in find(Run(engine)))
    assert list(find(Run())) == []
    assert list(find(Run(SimpleNamespace(param_groups=[{"lr": 0.1}])))) == []


WRITES = {"weight_decay": 0.3, "adam_beta1": 0.5, "adam_beta2": 0.9, "adam_epsilon": 1e-3}


def write_all(step: int, trainer: Trainer) -> None:
    if step == AT:
        for group in trainer.optimizer.param_groups:  # type: ignore[union-attr]
            group.update(weight_decay=0.3 if group["weight_decay"] else 0.0)
            group.update(betas=(0.5, 0.9), eps=1e-3)


def test_a_trainer_is_steered_as_a_plain_callback_would_and_resumes(tmp_path: Path) -> None:
    args: dict[str, Any] = {"weight_decay": 0.1, "save_strategy": "steps", "save_steps": 6}
    changes = [change(name, value) for name, value in WRITES.items()]
    trainer, link = steer(tmp_path / "live", {AT: changes, 8: [release("adam_beta1")]}, **args)
    assert all_applied(link)

    def write(step: int, trainer: Trainer) -> None:
        write_all(step, trainer)
        if step == 8:
            for group in trainer.optimizer.param_groups:  # type: ignore[union-attr]
                group["betas"] = (0.9, 0.9)

    _, plain = scripted(tmp_path / "plain", write, **args)
    outcome(trainer).assert_same(plain)

    checkpoint = str(tmp_path / "live" / "checkpoint-6")
    resumed, link = steer(
        tmp_path / "again", {8: [release("adam_beta1")]}, resume=checkpoint, **args
    )
    assert all_applied(link)
    outcome(resumed).assert_same(plain)


def test_a_resumed_trainer_remembers_who_decays_also_from_zero(tmp_path: Path) -> None:
    args: dict[str, Any] = {"weight_decay": 0.1, "save_strategy": "steps", "save_steps": 6}
    steer(tmp_path / "live", {AT: [change("weight_decay", 0.0)]}, **args)
    again, link = steer(
        tmp_path / "again",
        {8: [change("weight_decay", 0.2)]},
        resume=str(tmp_path / "live" / "checkpoint-6"),
        **{**args, "weight_decay": 0.0},
    )
    assert all_applied(link)
    assert again.optimizer is not None
    assert [each["weight_decay"] for each in again.optimizer.param_groups] == [0.2, 0.0]


def test_momentum_of_a_trainer(tmp_path: Path) -> None:
    spec = declared(plain_trainer(tmp_path, optim="sgd", max_steps=2), "momentum")
    assert spec.current_value.number == 0.0
    assert list(spec.groups) == ["0", "1"]
