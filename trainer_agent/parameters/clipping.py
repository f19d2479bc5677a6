"""Gradient clipping: transformers reads the limit from its arguments at every optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trainer_agent.parameters.base import EVERY_GROUP
from trainer_agent.parameters.schedulers import why_out_of_reach
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Value
    from trainer_agent.run import Run


class MaxGradNorm(ValueParameter):
    """The norm that gradients are scaled down to.

    Args:
        args: The trainer's arguments.
        why_unavailable: Why it can not be changed in this run; None: it can.
    """

    name: ClassVar[str] = "max_grad_norm"
    description: ClassVar[str] = (
        "Gradients whose norm is larger are scaled down to it before the optimizer's step; 0: "
        "they are left as they are, and their norm is logged nevertheless."
    )
    minimum: ClassVar[float | None] = 0.0

    def __init__(self, args: Any, why_unavailable: str | None = None) -> None:
        super().__init__()
        self._args = args
        self._why = why_unavailable

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        return self._why

    def get(self) -> Values:
        """Return the limit in force."""
        return {EVERY_GROUP: self._args.max_grad_norm}

    def put(self, values: Mapping[str, Value]) -> None:
        """Write the limit."""
        self._args.max_grad_norm = values[EVERY_GROUP]


def find(run: Run) -> Iterator[MaxGradNorm]:
    """Return the limit of a run that has one."""
    if getattr(run.args, "max_grad_norm", None) is not None:
        yield MaxGradNorm(run.args, why_out_of_reach(run.optimizer) or _why_not_read(run))


def _why_not_read(run: Run) -> str | None:
    """Return why nothing reads the limit from the arguments; None: something does."""
    # By name, as accelerate's enumeration of these is not worth importing it for.
    accelerator = getattr(run.trainer, "accelerator", None)
    kind = getattr(getattr(accelerator, "distributed_type", None), "name", "")
    if kind in {"DEEPSPEED", "MEGATRON_LM"} or getattr(run.args, "deepspeed", None):
        engine = "Megatron-LM" if kind == "MEGATRON_LM" else "DeepSpeed"
        return (
            f"{engine} clips inside its engine, with the limit that it was started with: writes "
            "from here would not reach it"
        )
    if run.trainer is not None and run.trainer.args is not run.args:
        return "the trainer reads other arguments than those that its callbacks are shown"
    return None
