"""What can be changed live in a light job: numbers in a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trainer_agent.parameters.user import Parameter

if TYPE_CHECKING:
    from trainer_agent.parameters import Value

DEFAULT_VALUES: Final[dict[str, Value]] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 4,
}
"""The parameters there are, and what they begin with."""

_DESCRIPTIONS: Final = {
    "learning_rate": "The optimizer's step size.",
    "weight_decay": "Decoupled weight decay of the optimizer.",
    "max_grad_norm": "Norm that gradients are clipped to; 0 clips nothing.",
    "gradient_accumulation_steps": "Micro-batches of one optimizer step.",
}
_MAXIMUM: Final = {"gradient_accumulation_steps": 1024.0}


def light_parameters(values: dict[str, Value]) -> dict[str, Parameter]:
    """Returns a live parameter for each of the values, by name."""
    return {name: _parameter(name, values) for name in values}


def _parameter(name: str, values: dict[str, Value]) -> Parameter:
    def put(value: Value) -> None:
        values[name] = value

    return Parameter(
        name,
        lambda: values[name],
        put,
        minimum=1 if isinstance(values[name], int) else 0.0,
        maximum=_MAXIMUM.get(name),
        description=_DESCRIPTIONS.get(name, ""),
    )
