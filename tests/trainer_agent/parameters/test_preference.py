"""Values of preference losses in real TRL trainers, against scripts that write the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer

from examples.offline import build_trainer
from tests.support.plain_scripts import writes
from tests.support.scripted_link import LinkScript, delivery, set_changes
from tests.support.tiny_runs import Outcome, run
from trainer_agent import attach
from trainer_agent.parameters import (
    Boundary,
    Change,
    LiveParameter,
    Multiply,
    Refused,
    Release,
    Set,
)
from trainer_agent.parameters.preference import find
from trainer_agent.run import Run

pytestmark = [
    # TRL itself still reads what transformers has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

AT = 2
STEPS = 4
HERE = Boundary(global_step=AT, max_steps=STEPS)

CASES: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "dpo": ("dpo", {"loss_type": ["robust"]}, {"beta": 0.7, "label_smoothing": 0.2}),
    "dpo-precomputed": ("dpo", {"precompute_ref_log_probs": True}, {"beta": 0.7}),
    "orpo": ("orpo", {}, {"beta": 0.7}),
    "kto": ("kto", {}, {"beta": 0.7, "desirable_weight": 2.0, "undesirable_weight": 0.5}),
    "reward": ("reward", {}, {"center_rewards_coefficient": 0.5}),
}
"""Method, arguments, and what changes live."""


AMONG_THE_ORACLES = {"dpo", "orpo"}
"""Those that the oracles of every method change as well, with all else and a resumption."""


def train(
    case: str, directory: Path, prepare: Callable[[Trainer], object] = lambda _: None, **args: Any
) -> Outcome:
    method, more, _ = CASES[case]
    return run(method, directory, prepare, **{"max_steps": STEPS, **more, **args})


def parameters_of(trainer: Any) -> dict[str, LiveParameter]:
    return {each.name: each for each in find(Run(trainer=trainer, args=trainer.args))}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(each, marks=pytest.mark.long if each in AMONG_THE_ORACLES else ())
        for each in CASES
    ],
)
def test_a_live_change_is_what_a_plain_script_does(case: str, tmp_path: Path) -> None:
    values = CASES[case][2]
    plain = train(case, tmp_path / "plain")
    scripted = train(case, tmp_path / "scripted", writes(values, AT))
    script = LinkScript({AT: [delivery(1, *set_changes(values))]})
    kept: list[Any] = []

    def prepare(trainer: Trainer) -> None:
        attach(trainer, "job", link_factory=script)
        kept.append(trainer)

    steered = train(case, tmp_path / "live", prepare)
    steered.assert_same(scripted)
    assert steered.differs(plain), "the change has to matter for this to mean anything"
    (outcome,) = script.link.outcomes
    assert outcome.applied.step == AT + 1
    assert {each.parameter: each.new_value.number for each in outcome.applied.transitions} == values
    assert {name: getattr(kept[0].args, name) for name in values} == values, "what is shown"
    assert not script.link.faults


@pytest.mark.long
def test_a_checkpoint_holds_the_change(tmp_path: Path) -> None:
    values = CASES["dpo"][2]
    script = LinkScript({AT: [delivery(1, *set_changes(values))]})

    def attached(trainer: Trainer) -> None:
        attach(trainer, "job", link_factory=script)

    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": AT + 1}
    whole = train("dpo", tmp_path, attached, **args)
    script.script = {}
    checkpoint = str(tmp_path / f"checkpoint-{AT + 1}")
    resumed = train("dpo", tmp_path, attached, resume=checkpoint, **args)
    resumed.assert_same(whole)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def trainer_of(method: str, directory: Path, **args: Any) -> Any:
    return build_trainer(method, directory, samples=8, **args)


def refusal(parameter: LiveParameter, change: Change) -> Refused:
    with pytest.raises(Refused) as refused:
        parameter.check(change, HERE)
    with pytest.raises(Refused):
        parameter.apply(change, HERE)
    return refused.value


@pytest.mark.parametrize(
    ("loss", "name", "value", "allowed"),
    [
        ("robust", "beta", 0.0, "above 0"),
        ("robust", "label_smoothing", 0.5, "at least 0 and below 0.5"),
        ("robust", "label_smoothing", -0.1, "at least 0 and below 0.5"),
        ("exo_pair", "label_smoothing", 0.0, "above 0 and below 0.5"),
    ],
)
def test_what_a_dpo_loss_can_not_take_is_refused(
    loss: str, name: str, value: float, allowed: str, directory: Path
) -> None:
    trainer = trainer_of("dpo", directory, loss_type=[loss], label_smoothing=0.1)
    refused = refusal(parameters_of(trainer)[name], Set(name, value))
    assert refused.reason == "OUT_OF_BOUNDS"
    assert refused.message == f"{name} would become {value!r}; allowed: {allowed}"
    assert refused.value_in_force == 0.1
    assert (trainer.beta, trainer.label_smoothing) == (0.1, 0.1)


def test_what_a_loss_does_not_read_is_not_offered(directory: Path) -> None:
    sigmoid = parameters_of(trainer_of("dpo", directory))
    why = sigmoid["label_smoothing"].spec().unavailable_reason
    assert why is not None
    assert why.startswith("the loss of this run, sigmoid, does not use label_smoothing")
    assert "robust" in why
    assert sigmoid["beta"].spec().unavailable_reason is None
    refused = refusal(sigmoid["label_smoothing"], Set("label_smoothing", 0.1))
    assert refused.reason == "UNAVAILABLE"
    only_sft = parameters_of(trainer_of("dpo", directory, loss_type=["sft"]))
    assert only_sft["beta"].spec().unavailable_reason is not None
    both = parameters_of(trainer_of("dpo", directory, loss_type=["sft", "aot"]))
    assert all(each.spec().unavailable_reason is None for each in both.values())


def test_undo_and_release_bring_back_what_the_script_had(directory: Path) -> None:
    trainer = trainer_of("kto", directory)
    beta = parameters_of(trainer)["beta"]
    applied = beta.apply(Multiply("beta", 3.0), HERE)
    assert trainer.beta == trainer.args.beta == 0.1 * 3.0
    beta.undo(applied)
    assert trainer.beta == trainer.args.beta == 0.1
    assert beta.state_dict() == {}
    beta.apply(Set("beta", 0.4), HERE)
    beta.apply(Release("beta"), HERE)
    assert trainer.beta == trainer.args.beta == 0.1


def test_a_coefficient_that_was_not_given_goes_back_to_that(directory: Path) -> None:
    trainer = trainer_of("reward", directory)
    coefficient = parameters_of(trainer)["center_rewards_coefficient"]
    assert coefficient.spec().current == 0.0
    applied = coefficient.apply(Set("center_rewards_coefficient", 0.01), HERE)
    assert trainer.args.center_rewards_coefficient == 0.01
    coefficient.undo(applied)
    assert trainer.args.center_rewards_coefficient is None


def test_orpo_may_do_without_its_odds_ratio(directory: Path) -> None:
    parameters = parameters_of(trainer_of("orpo", directory))
    parameters["beta"].check(Set("beta", 0.0), HERE)
    assert list(parameters) == ["beta"]


def test_without_the_trainer_it_is_said_how_to_give_it(directory: Path) -> None:
    args = trainer_of("dpo", directory).args
    found = {each.name: each.spec() for each in find(Run(args=args))}
    assert found.keys() == {"beta", "label_smoothing"}
    assert "trainer_agent.attach(trainer)" in str(found["beta"].unavailable_reason)
    assert "trainer_agent.attach(trainer)" in str(found["label_smoothing"].unavailable_reason)


def test_a_trainer_of_another_shape_is_left_alone(directory: Path) -> None:
    trainer = trainer_of("dpo", directory)
    del trainer.beta
    why = parameters_of(trainer)["beta"].spec().unavailable_reason
    assert why == "trainer.beta is not there in these versions of its libraries"


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_other_methods_have_none_of_it(method: str, directory: Path) -> None:
    assert not parameters_of(trainer_of(method, directory))


def test_what_is_no_trl_trainer_has_none_of_it() -> None:
    assert not list(find(Run()))
    assert not list(find(Run(trainer=SimpleNamespace(beta=1.0))))
