"""Watch and steer a training run while it runs.

One line joins a Hugging Face or TRL trainer to a control plane::

    from trainer_agent import attach

    attach(trainer, job="my-run")
    trainer.train()

Importing this package loads neither torch nor grpc; using it loads torch, and never grpc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_agent.attachment import attach
    from trainer_agent.callback import RuntimeParameterUpdateCallback
    from trainer_agent.parameters.base import GuardRails
    from trainer_agent.parameters.user import Parameter
    from trainer_agent.steering.protection import Protection

__all__ = ["GuardRails", "Parameter", "Protection", "RuntimeParameterUpdateCallback", "attach"]

_HOMES = {
    "GuardRails": "trainer_agent.parameters.base",
    "Parameter": "trainer_agent.parameters.user",
    "Protection": "trainer_agent.steering.protection",
    "RuntimeParameterUpdateCallback": "trainer_agent.callback",
    "attach": "trainer_agent.attachment",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
