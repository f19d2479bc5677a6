"""What makes a steered run trustworthy, for every method and what can be changed in each.

1. With an update it is the run whose script writes the same value at the same step.
2. Interrupted after an update, and resumed, it is the run that was not interrupted.

Each to the bit: losses, gradient norms, rewards, weights. Runs without updates (every method's
tests), replays and several ranks have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.plain_scripts import writes
from tests.support.scripted_link import LinkScript, delivery, set_changes
from tests.support.tiny_runs import Outcome, run
from trainer_agent import attach

pytestmark = [
    # TRL itself still reads what transformers has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

STEPS = 5
SENT = 1
"""The boundary at which an update arrives."""
AT = 2
"""The boundary at which it is due, and at which samples are generated."""
SAVED = 4

SAMPLED: dict[str, Any] = {"beta": 0.1, "steps_per_generation": 4}
ARGS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"loss_type": ["robust"]},
    "orpo": {},
    "grpo": SAMPLED,
    "rloo": SAMPLED,
}

OF_ALL: dict[str, float] = {
    "learning_rate": 5e-4,
    "weight_decay": 5.0,
    "max_grad_norm": 0.05,
    "gradient_accumulation_steps": 4,
}
SAMPLING: dict[str, float] = {
    "beta": 0.4,
    "epsilon": 0.003,
    "epsilon_high": 0.005,
    "temperature": 0.6,
    "max_completion_length": 5,
}
OWN: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.7, "label_smoothing": 0.2},
    "orpo": {"beta": 0.7},
    "grpo": SAMPLING,
    "rloo": SAMPLING,
}

CASES = [
    *((method, name, {name: value}) for method in ARGS for name, value in OF_ALL.items()),
    *((method, "its own", values) for method, values in OWN.items()),
    *((method, "all at once", OF_ALL | OWN.get(method, {})) for method in ARGS),
]


def train(
    method: str,
    directory: Path,
    prepare: Callable[[Any], object] = lambda _: None,
    **args: Any,
) -> Outcome:
    given = {
        "max_steps": STEPS,
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.1,
        "learning_rate": 1e-3,
        **ARGS[method],
        **args,
    }
    return run(method, directory, prepare, **given)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Return runs that nobody changes."""
    runs: dict[str, Outcome] = {}

    def of(method: str) -> Outcome:
        if method not in runs:
            runs[method] = train(method, tmp_path_factory.mktemp(method))
        return runs[method]

    return of


@pytest.mark.parametrize(
    ("method", "values"),
    [
        pytest.param(
            method,
            values,
            id=f"{method}-{name}",
            marks=() if name == "all at once" else pytest.mark.long,
        )
        for method, name, values in CASES
    ],
)
def test_a_change_is_what_a_script_does_and_outlives_an_interruption(
    method: str,
    values: dict[str, float],
    plain: Callable[[str], Outcome],
    tmp_path: Path,
) -> None:
    waits_by_itself = OWN.get(method) is SAMPLING and values.keys() >= SAMPLING.keys()
    due = None if waits_by_itself else AT + 1
    script = LinkScript({SENT: [delivery(1, *set_changes(values), at_step=due)]})

    def attached(trainer: Any) -> None:
        attach(trainer, "job", link_factory=script)

    scripted = train(method, tmp_path / "scripted", writes(values, AT))
    steered = train(method, tmp_path, attached, save_strategy="steps", save_steps=SAVED)
    assert not script.link.faults
    assert script.link.first_hello is not None
    offered = {spec.name for spec in script.link.first_hello.state.parameters if spec.operations}
    assert offered >= OF_ALL.keys() | OWN.get(method, {}).keys()
    (outcome,) = script.link.outcomes
    assert outcome.WhichOneof("result") == "applied", outcome
    assert outcome.applied.step == AT + 1
    assert {
        each.parameter: each.new_value.number or each.new_value.integer
        for each in outcome.applied.transitions
    } == values
    steered.assert_same(scripted)
    assert steered.differs(plain(method)), "the change has to matter for this to mean anything"

    again = LinkScript()
    resumed = train(
        method,
        tmp_path / "resumed",
        lambda trainer: attach(trainer, "job", link_factory=again),
        resume=str(tmp_path / f"checkpoint-{SAVED}"),
    )
    assert not again.link.faults
    resumed.assert_same(steered)
