"""What GRPO and RLOO can have changed live, where new samples are about to be generated.

These trainers generate samples ahead and use them for several updates; with the samples they keep
what was computed from the values of then: log-probabilities at a temperature, rewards less a
penalty, lengths. A change in the middle would leave the two out of step, so it waits until the
next thing that the trainer does is to generate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CellType, FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from trainer_agent.parameters.base import Boundary, BoundaryKind, Kind, Refused
from trainer_agent.parameters.places import (
    NOT_ATTACHED,
    Place,
    PlacedValue,
    attribute,
    cell,
    item,
    trl_methods,
)

if TYPE_CHECKING:
    from trainer_agent.parameters.changes import Change, Value
    from trainer_agent.run import Run

_LOSSES_WITHOUT_EPSILON: Final = frozenset({"cispo", "sapo", "vespo"})
_LOSSES_WITHOUT_EPSILON_HIGH: Final = frozenset({"sapo", "vespo"})


class GenerationValue(PlacedValue):
    """A value that changes only where samples are about to be generated.

    Args:
        trainer: The trainer.
        places: Where it reads the value.
        mirrors: Where the value is shown.
        why_unavailable: Why it can not be changed in this run; None: it can.
    """

    boundary: ClassVar[BoundaryKind] = BoundaryKind.GENERATION

    def __init__(
        self,
        trainer: Any = None,
        places: Sequence[Place] = (),
        mirrors: Sequence[Place] = (),
        why_unavailable: str | None = None,
    ) -> None:
        super().__init__(places, mirrors, why_unavailable)
        self._trainer = trainer

    def opens(self, change: Change, boundary: Boundary) -> bool:
        """Say whether the samples generated ahead are used up.

        A run that goes on from a checkpoint has none, and generates anew whatever its step.
        """
        return self._why is not None or generates_next(self._trainer)


class KlWeight(GenerationValue):
    """The weight of the divergence from the reference model."""

    name: ClassVar[str] = "beta"
    description: ClassVar[str] = (
        "Weight of the KL divergence from the reference model; 0: the reference model is not asked."
    )
    minimum: ClassVar[float | None] = 0.0

    def __init__(
        self,
        trainer: Any = None,
        places: Sequence[Place] = (),
        mirrors: Sequence[Place] = (),
        why_unavailable: str | None = None,
    ) -> None:
        # With an adapter the base model is the reference. Whether an adapter that was trained
        # before has the copy of itself that it needs for it depends on how the run began, too.
        if why_unavailable is None and trainer.ref_model is None and trainer.beta == 0:
            why_unavailable = (
                "the run has no reference model, as it was started with beta 0; start it with a "
                "beta above 0, which can be set to 0 live and back"
            )
        super().__init__(trainer, places, mirrors, why_unavailable)


class Epsilon(GenerationValue):
    """How far below 1 the ratio of probabilities counts.

    The upper bound stays what it is, also where the script gave this one alone and TRL took it for
    both: a change says all that it changes.
    """

    name: ClassVar[str] = "epsilon"
    description: ClassVar[str] = (
        "Clip range below 1 of the ratio between new and old probabilities. The range above 1 is "
        "epsilon_high, which a change of this one leaves alone; change both in one update."
    )
    minimum: ClassVar[float | None] = 0.0
    minimum_exclusive: ClassVar[bool] = True


class EpsilonHigh(GenerationValue):
    """How far above 1 the ratio of probabilities counts."""

    name: ClassVar[str] = "epsilon_high"
    description: ClassVar[str] = (
        "Clip range above 1 of the ratio between new and old probabilities; with the cispo loss, "
        "the largest ratio."
    )
    minimum: ClassVar[float | None] = 0.0
    minimum_exclusive: ClassVar[bool] = True


class Temperature(GenerationValue):
    """The temperature that samples are drawn with and their log-probabilities are computed at."""

    name: ClassVar[str] = "temperature"
    description: ClassVar[str] = (
        "Temperature of sampling, and of the log-probabilities that the loss compares."
    )
    minimum: ClassVar[float | None] = 0.0
    minimum_exclusive: ClassVar[bool] = True


class MaxCompletionLength(GenerationValue):
    """The length at which a generated sample is cut off."""

    name: ClassVar[str] = "max_completion_length"
    description: ClassVar[str] = (
        "Largest length of a generated completion; the dr_grpo loss divides by it."
    )
    kind: ClassVar[Kind] = Kind.INT
    unit: ClassVar[str] = "tokens"
    minimum: ClassVar[float | None] = 1

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse completions for which the model has no room.

        Raises:
            Refused: The model has not as many positions.
        """
        super().refuse(values, boundary)
        context = getattr(
            self._trainer.model.config.get_text_config(), "max_position_embeddings", None
        )
        for value in values.values():
            if context is not None and int(value) >= context:
                raise Refused(
                    "OUT_OF_BOUNDS",
                    f"max_completion_length would become {value}, and the model has room for "
                    f"{context} tokens, prompt and completion together; allowed: at most "
                    f"{context - 1}, less the longest prompt",
                )


def find(run: Run) -> Iterator[GenerationValue]:
    """Yield what a run that learns from its own samples has."""
    if not trl_methods(run.trainer, run.args) & {"grpo", "rloo"}:
        return
    for make, where in _FAMILY:
        if run.trainer is None:
            yield make(why_unavailable=NOT_ATTACHED)
            continue
        try:
            _check_buffer(run.trainer)
            yield make(run.trainer, *where(run.trainer))
        except LookupError as error:
            yield make(why_unavailable=str(error))


def generates_next(trainer: Any) -> bool:
    """Say whether the next thing that a trainer does is to generate samples.

    As TRL 1.16 decides it in ``_prepare_inputs``. ``_step`` counts micro-batches.
    """
    generate_every = trainer.args.steps_per_generation * trainer.num_iterations
    buffered, step = trainer._buffered_inputs, trainer._step  # noqa: SLF001 - TRL tells it nowhere else
    return buffered is None or step % generate_every == 0


Where = tuple[list[Place], list[Place], str | None]
"""Places, mirrors, and why the value can not be changed; None: it can."""


def _check_buffer(trainer: Any) -> None:
    """Raise LookupError where a trainer does not say when it generates."""
    for name in ("_step", "_buffered_inputs", "num_iterations"):
        attribute(trainer, name, "trainer")
    attribute(trainer.args, "steps_per_generation", "trainer.args")


def _beta(trainer: Any) -> Where:
    attribute(trainer, "ref_model", "trainer")
    return [attribute(trainer, "beta", "trainer")], [attribute(trainer.args, "beta", "args")], None


def _epsilon(trainer: Any) -> Where:
    return (
        [attribute(trainer, "epsilon_low", "trainer")],
        [attribute(trainer.args, "epsilon", "args")],
        _unclipped(trainer, "epsilon", _LOSSES_WITHOUT_EPSILON),
    )


def _epsilon_high(trainer: Any) -> Where:
    return (
        [attribute(trainer, "epsilon_high", "trainer")],
        [attribute(trainer.args, "epsilon_high", "args")],
        _unclipped(trainer, "epsilon_high", _LOSSES_WITHOUT_EPSILON_HIGH),
    )


def _temperature(trainer: Any) -> Where:
    mirrors = [attribute(trainer.args, "temperature", "args")]
    why = _generates_elsewhere(trainer)
    if why is None and getattr(trainer.args, "torch_compile", False):
        why = "the model is compiled, and the temperature of its log-probabilities with it"
    if why is not None:
        return [attribute(trainer, "temperature", "trainer")], mirrors, why
    models = {"model": trainer.model, "ref_model": getattr(trainer, "ref_model", None)}
    places = [
        attribute(trainer, "temperature", "trainer"),
        attribute(trainer.generation_config, "temperature", "generation_config"),
        item(trainer.generation_kwargs, "temperature", "generation_kwargs"),
        *(
            cell(_closed_over(trainer, model), f"the LM head of {name}")
            for name, model in models.items()
            if model is not None
        ),
    ]
    return places, mirrors, None


def _max_completion_length(trainer: Any) -> Where:
    places = [attribute(trainer, "max_completion_length", "trainer")]
    why = _generates_elsewhere(trainer)
    if why is None:
        places += [
            attribute(trainer.generation_config, "max_new_tokens", "generation_config"),
            item(trainer.generation_kwargs, "max_new_tokens", "generation_kwargs"),
        ]
    return places, [attribute(trainer.args, "max_completion_length", "args")], why


_FAMILY: Final[tuple[tuple[type[GenerationValue], Callable[[Any], Where]], ...]] = (
    (KlWeight, _beta),
    (Epsilon, _epsilon),
    (EpsilonHigh, _epsilon_high),
    (Temperature, _temperature),
    (MaxCompletionLength, _max_completion_length),
)


def _unclipped(trainer: Any, name: str, losses: frozenset[str]) -> str | None:
    """Return that a loss does not read a clip range; None: it does."""
    loss = getattr(trainer, "loss_type", None)
    # A trainer derived from GRPO's with a loss of its own keeps the loss type and does not read it.
    owner = next(cls for cls in type(trainer).__mro__ if "_compute_loss" in vars(cls))
    if loss not in losses or owner.__name__ != "GRPOTrainer":
        return None
    return f"the loss of this run, {loss}, does not use {name}"


def _generates_elsewhere(trainer: Any) -> str | None:
    """Return that something else than the model's own ``generate`` makes the samples."""
    for attribute_name, generator in (
        ("use_vllm", "vLLM"),
        ("use_transformers_continuous_batching", "continuous batching"),
    ):
        if getattr(trainer, attribute_name, False):
            return (
                f"the samples of this run are generated by {generator}, and it is not known "
                "whether that would follow a change; it can be changed where the model itself "
                "generates"
            )
    return None


def _closed_over(trainer: Any, model: Any) -> CellType:
    """Return the variable that a model's fused LM head divides its logits by.

    TRL's ``add_fused_lm_head`` puts a function in the place of the model's ``forward`` that has
    closed over the temperature. Accelerate wraps that once more for mixed precision, and keeps the
    original.

    Raises:
        LookupError: The model has no such head.
    """
    inner = trainer.accelerator.unwrap_model(model)
    if hasattr(inner, "get_base_model"):  # an adapter; the head lies on the model within
        inner = inner.get_base_model()
    for forward in (inner.forward, getattr(inner, "_original_forward", None)):
        function = getattr(forward, "__func__", forward)
        if isinstance(function, FunctionType) and "temperature" in function.__code__.co_freevars:
            cells = function.__closure__ or ()
            return cells[function.__code__.co_freevars.index("temperature")]
    raise LookupError(
        "the temperature of the log-probabilities is not in a fused LM head, where TRL 1.16 has it"
    )
