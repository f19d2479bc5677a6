"""Values of GRPO and RLOO in real TRL trainers, against scripts that write the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from examples.offline import build_trainer
from tests.support.plain_scripts import AtTrainBegin, write, writes
from tests.support.scripted_link import LinkScript, delivery, set_changes
from tests.support.tiny_runs import AtStep, Outcome, run
from trainer_agent import attach
from trainer_agent.parameters import (
    Applied,
    Boundary,
    LiveParameter,
    Refused,
    Release,
    Set,
    apply_all,
)
from trainer_agent.parameters.generation import find
from trainer_agent.run import Run

pytestmark = [
    # TRL itself still reads what transformers has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

STEPS = 6
ASKED = 1
"""The boundary at which a change is asked for; in the middle of what was generated."""
VALUES: dict[str, float] = {
    "beta": 0.4,
    "epsilon": 0.003,
    "epsilon_high": 0.005,
    "temperature": 0.6,
    "max_completion_length": 5,
}
HERE = Boundary(global_step=0, max_steps=STEPS)


def train(
    method: str,
    directory: Path,
    prepare: Callable[[Any], object] = lambda _: None,
    *,
    iterations: int = 1,
    **args: Any,
) -> Outcome:
    """Train with one generation for two updates, or for four with two iterations."""
    given = {
        "beta": 0.1,
        "max_steps": STEPS,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": iterations,
        "learning_rate": 1e-3,
        **args,
    }
    return run(method, directory, prepare, **given)


def parameters_of(trainer: Any) -> dict[str, LiveParameter]:
    return {each.name: each for each in find(Run(trainer=trainer, args=trainer.args))}


class Live(TrainerCallback):
    """Asks for a change at a boundary and makes it at the first that opens, as the agent would."""

    def __init__(self, trainer: Any, values: Mapping[str, float]) -> None:
        self.parameters = parameters_of(trainer)
        self._changes = [Set(name, value) for name, value in values.items()]
        self.applied: list[Applied] = []
        self.problems: dict[str, str | None] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        boundary = Boundary(state.global_step, state.max_steps)
        if self.applied and not self.problems:
            self.problems = {
                each.change.parameter: self._verify(each, boundary) for each in self.applied
            }
        if (
            not self.applied
            and boundary.global_step >= ASKED
            and all(
                self.parameters[change.parameter].opens(change, boundary)
                for change in self._changes
            )
        ):
            self.applied = apply_all(self.parameters, self._changes, boundary)

    def _verify(self, applied: Applied, boundary: Boundary) -> str | None:
        parameter = self.parameters[applied.change.parameter]
        return parameter.verify(applied, parameter.read(synchronise=True), boundary)


@pytest.mark.parametrize(
    ("method", "iterations", "at"),
    [
        pytest.param("grpo", 1, 2, marks=pytest.mark.long),
        ("grpo", 2, 4),
        ("rloo", 1, 2),
        pytest.param("rloo", 2, 4, marks=pytest.mark.long),
    ],
)
def test_a_live_change_waits_and_is_what_a_plain_script_does(
    method: str, iterations: int, at: int, tmp_path: Path
) -> None:
    scripted = train(
        method,
        tmp_path / "scripted",
        writes(VALUES, at),
        iterations=iterations,
    )
    kept: list[Live] = []

    def prepare(trainer: Trainer) -> None:
        kept.append(Live(trainer, VALUES))
        trainer.add_callback(kept[0])

    steered = train(method, tmp_path / "live", prepare, iterations=iterations)
    steered.assert_same(scripted)
    (live,) = kept
    assert {each.boundary.global_step for each in live.applied} == {at}
    assert {each.change.parameter: each.new.value for each in live.applied} == VALUES
    assert live.problems == dict.fromkeys(VALUES)


@pytest.mark.long
def test_every_one_of_the_values_matters(tmp_path: Path) -> None:
    plain = train("grpo", tmp_path / "plain", max_steps=4)
    for name, value in VALUES.items():
        changed = train(
            "grpo",
            tmp_path / name,
            writes({name: value}, 2),
            max_steps=4,
        )
        assert changed.differs(plain), name


@pytest.mark.parametrize(
    ("method", "saved_at"),
    [
        pytest.param("grpo", 3, id="grpo-within-a-buffer"),
        pytest.param("grpo", 4, id="grpo-between-buffers", marks=pytest.mark.long),
        pytest.param("rloo", 3, id="rloo-within-a-buffer", marks=pytest.mark.long),
        pytest.param("rloo", 4, id="rloo-between-buffers"),
    ],
)
def test_a_checkpoint_holds_the_change(method: str, saved_at: int, tmp_path: Path) -> None:
    """TRL does not save what it generated ahead, so that of itself only the second is exact."""
    script = LinkScript({2: [delivery(1, *set_changes(VALUES))]})

    def attached(trainer: Trainer) -> None:
        attach(trainer, "job", link_factory=script)

    def scripted(trainer: Trainer) -> None:
        trainer.add_callback(AtTrainBegin(lambda: write(trainer, VALUES)))

    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": saved_at}
    whole = train(method, tmp_path, attached, **saving)
    (outcome,) = script.link.outcomes
    assert outcome.applied.step == 3
    checkpoint = str(tmp_path / f"checkpoint-{saved_at}")
    by_script = train(method, tmp_path / "scripted", scripted, resume=checkpoint)
    resumed = train(method, tmp_path / "resumed", attached, resume=checkpoint)
    resumed.assert_same(by_script)
    if saved_at == 4:
        resumed.assert_same(whole)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def trainer_of(method: str, directory: Path, **args: Any) -> Any:
    return build_trainer(method, directory, **{"samples": 8, "beta": 0.1, **args})


def refusal(parameter: LiveParameter, change: Set | Release) -> Refused:
    with pytest.raises(Refused) as refused:
        parameter.check(change, HERE)
    with pytest.raises(Refused):
        parameter.apply(change, HERE)
    return refused.value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("beta", -0.1, "allowed: at least 0"),
        ("epsilon", 0.0, "allowed: above 0"),
        ("epsilon_high", 0.0, "allowed: above 0"),
        ("temperature", 0.0, "allowed: above 0"),
        ("max_completion_length", 0, "allowed: at least 1"),
        ("max_completion_length", 64, "allowed: at most 63, less the longest prompt"),
    ],
)
def test_what_is_out_of_bounds_is_refused(
    name: str, value: float, said: str, directory: Path
) -> None:
    parameter = parameters_of(trainer_of("grpo", directory))[name]
    before = parameter.read()
    refused = refusal(parameter, Set(name, value))
    assert refused.reason == "OUT_OF_BOUNDS"
    assert said in refused.message
    assert refused.value_in_force == before.value
    assert parameter.read() == before


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_penalty_without_a_reference_model_is_not_offered(method: str, directory: Path) -> None:
    trainer = trainer_of(method, directory, beta=0.0)
    beta = parameters_of(trainer)["beta"]
    assert not beta.spec().operations
    assert "start it with a beta above 0" in str(beta.spec().unavailable_reason)
    assert refusal(beta, Set("beta", 0.1)).reason == "UNAVAILABLE"
    with pytest.raises(ValueError, match="no reference model"):
        beta.load_state_dict({"version": 1, "values": {"": 0.1}, "original": {"": 0.2}})
    assert trainer.beta == trainer.args.beta == 0.0


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_penalty_can_be_switched_off_and_on_again(method: str, tmp_path: Path) -> None:
    def scripted(trainer: Any) -> None:
        writes({"beta": 0.0}, 2)(trainer)
        writes({"beta": 0.2}, 4)(trainer)

    def live(trainer: Any) -> None:
        beta = parameters_of(trainer)["beta"]

        def change(step: int, *_: Any) -> None:
            if step in {2, 4}:
                beta.apply(Set("beta", {2: 0.0, 4: 0.2}[step]), HERE)

        trainer.add_callback(AtStep(change))

    by_script = train(method, tmp_path / "scripted", scripted)
    train(method, tmp_path / "live", live).assert_same(by_script)


def test_the_upper_clip_range_stays_where_the_lower_one_moves(directory: Path) -> None:
    trainer = trainer_of("grpo", directory)
    parameters = parameters_of(trainer)
    parameters["epsilon"].apply(Set("epsilon", 0.1), HERE)
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.1, 0.2)
    parameters["epsilon_high"].apply(Set("epsilon_high", 0.3), HERE)
    assert (trainer.epsilon_low, trainer.epsilon_high) == (0.1, 0.3)
    assert (trainer.args.epsilon, trainer.args.epsilon_high) == (0.1, 0.3)


def test_undo_brings_back_every_place(directory: Path) -> None:
    trainer = trainer_of("grpo", directory, beta=0.1)
    parameters = parameters_of(trainer)
    before = {name: each.read() for name, each in parameters.items()}
    done = apply_all(parameters, [Set(name, value) for name, value in VALUES.items()], HERE)
    assert trainer.generation_config.temperature == VALUES["temperature"]
    assert trainer.generation_config.max_new_tokens == VALUES["max_completion_length"]
    for applied in reversed(done):
        parameters[applied.change.parameter].undo(applied)
    assert {name: each.read() for name, each in parameters.items()} == before
    assert all(
        each.verify(applied, each.read(), HERE) is not None
        for applied, each in zip(done, parameters.values(), strict=True)
    )
    assert not any(each.state_dict() for each in parameters.values())


def test_a_value_that_is_changed_behind_its_back_is_noticed(directory: Path) -> None:
    trainer = trainer_of("grpo", directory)
    temperature = parameters_of(trainer)["temperature"]
    applied = temperature.apply(Set("temperature", 0.5), HERE)
    trainer.generation_config.temperature = 0.9
    said = temperature.verify(applied, temperature.read(), HERE)
    assert said is not None
    assert "generation_config.temperature is 0.9" in said
    assert "the LM head of model is 0.5" in said
    assert temperature.read().value is None
    refused = refusal(temperature, Set("temperature", 0.7))
    assert refused.reason == "VALUES_DISAGREE"


@pytest.mark.parametrize(
    ("args", "unavailable"),
    [
        ({"loss_type": "dr_grpo"}, {}),
        ({"loss_type": "cispo"}, {"epsilon": "cispo, does not use epsilon"}),
        (
            {"loss_type": "sapo"},
            {
                "epsilon": "sapo, does not use epsilon",
                "epsilon_high": "sapo, does not use epsilon_high",
            },
        ),
        (
            {"generation_kwargs": {"temperature": 0.7}},
            {"temperature": "the script gave it several values"},
        ),
        (
            {"torch_compile": True, "beta": 0.0},
            {"temperature": "the model is compiled", "beta": "no reference model"},
        ),
    ],
)
def test_what_a_run_does_not_use_is_not_offered(
    args: dict[str, Any], unavailable: dict[str, str], directory: Path
) -> None:
    specs = {
        name: each.spec()
        for name, each in parameters_of(trainer_of("grpo", directory, **args)).items()
    }
    reasons = {name: each.unavailable_reason for name, each in specs.items()}
    for name, reason in reasons.items():
        if name in unavailable:
            assert reason is not None
            assert unavailable[name] in reason
        else:
            assert reason is None


def test_samples_of_another_generator_keep_their_temperature_and_length(directory: Path) -> None:
    trainer = trainer_of("rloo", directory)
    trainer.use_vllm = True
    parameters = parameters_of(trainer)
    for name in ("temperature", "max_completion_length"):
        assert "generated by vLLM" in str(parameters[name].spec().unavailable_reason)
        assert parameters[name].opens(Set(name, 1), HERE), "to be refused, it need not wait"
    assert parameters["epsilon"].spec().unavailable_reason is None


def test_mixed_precision_hides_the_temperature_and_it_is_found(tmp_path: Path) -> None:
    kept: list[Live] = []

    def prepare(trainer: Any) -> None:
        trainer.add_callback(AtTrainBegin(lambda: kept.append(Live(trainer, {"temperature": 0.6}))))

    train("grpo", tmp_path, prepare, max_steps=1, bf16=True)
    assert kept[0].parameters["temperature"].spec().unavailable_reason is None


def test_a_trainer_of_another_shape_is_left_alone(directory: Path) -> None:
    trainer = trainer_of("grpo", directory)
    del trainer._buffered_inputs
    reasons = {each.spec().unavailable_reason for each in parameters_of(trainer).values()}
    assert reasons == {"trainer._buffered_inputs is not there in these versions of its libraries"}


def test_without_the_trainer_it_is_said_how_to_give_it(directory: Path) -> None:
    found = list(find(Run(args=trainer_of("rloo", directory).args)))
    assert [each.name for each in found] == list(VALUES)
    for each in found:
        assert "trainer_agent.attach(trainer)" in str(each.spec().unavailable_reason)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_other_methods_have_none_of_it(method: str, directory: Path) -> None:
    assert not parameters_of(build_trainer(method, directory, samples=8))
