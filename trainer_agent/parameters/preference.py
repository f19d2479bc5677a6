"""What the losses of preference tuning can have changed live: DPO, ORPO, KTO, CPO, TPO, rewards.

TRL copies these values from its arguments onto the trainer once, and its losses read them there:
a change of the arguments alone would be shown and not used. None of them goes into the reference
model's log-probabilities, so that these stay right where they were computed ahead of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from trainer_agent.parameters.places import (
    NOT_ATTACHED,
    Place,
    PlacedValue,
    attribute,
    trl_methods,
)

if TYPE_CHECKING:
    from trainer_agent.run import Run

_SMOOTHED: Final[Mapping[str, frozenset[str]]] = {
    "dpo": frozenset({"aot", "aot_unpaired", "exo_pair", "robust"}),
    "cpo": frozenset({"sigmoid", "simpo"}),
    "tpo": frozenset({"sigmoid", "tpo-l"}),
}
"""The losses that read ``label_smoothing``, by method, as TRL 1.16 has them."""


class Beta(PlacedValue):
    """How strongly the policy is held to its reference.

    At 0 these losses are constant, or divide by it.
    """

    name: ClassVar[str] = "beta"
    description: ClassVar[str] = (
        "Temperature of the preference loss: the higher, the closer the policy stays to the "
        "reference model."
    )
    minimum: ClassVar[float | None] = 0.0
    minimum_exclusive: ClassVar[bool] = True


class OddsRatioWeight(Beta):
    """ORPO's beta: the weight of the odds ratio beside the likelihood; 0 leaves plain SFT."""

    description: ClassVar[str] = (
        "Weight of the odds ratio loss beside the likelihood of the chosen answers (λ of the "
        "paper)."
    )
    minimum_exclusive: ClassVar[bool] = False


class LabelSmoothing(PlacedValue):
    """The share of preferences taken to be wrong; at one half a preference says nothing."""

    name: ClassVar[str] = "label_smoothing"
    description: ClassVar[str] = "Share of the preferences taken to be the wrong way round."
    minimum: ClassVar[float | None] = 0.0
    maximum: ClassVar[float | None] = 0.5
    maximum_exclusive: ClassVar[bool] = True


class LabelSmoothingAboveZero(LabelSmoothing):
    """The same where the loss takes its logarithm."""

    minimum_exclusive: ClassVar[bool] = True


class DesirableWeight(PlacedValue):
    """KTO's weight of desirable answers."""

    name: ClassVar[str] = "desirable_weight"
    description: ClassVar[str] = "Weight of the losses of desirable answers."
    minimum: ClassVar[float | None] = 0.0


class UndesirableWeight(PlacedValue):
    """KTO's weight of undesirable answers."""

    name: ClassVar[str] = "undesirable_weight"
    description: ClassVar[str] = "Weight of the losses of undesirable answers."
    minimum: ClassVar[float | None] = 0.0


class CenterRewardsCoefficient(PlacedValue):
    """The weight of the term that keeps a reward model's rewards around 0; read from the arguments.

    None, the default, is shown and taken back as 0, which comes to the same.
    """

    name: ClassVar[str] = "center_rewards_coefficient"
    description: ClassVar[str] = "Weight of the loss that keeps rewards centred on 0."
    minimum: ClassVar[float | None] = 0.0


def find(run: Run) -> Iterator[PlacedValue]:
    """Yield what the preference loss of a run has."""
    methods = trl_methods(run.trainer, run.args)
    if methods & {"dpo", "kto", "cpo", "tpo"}:
        yield _on_trainer(Beta, run, _unused_beta(run.trainer))
    if "orpo" in methods:
        yield _on_trainer(OddsRatioWeight, run)
    if "kto" in methods:
        yield _on_trainer(DesirableWeight, run)
        yield _on_trainer(UndesirableWeight, run)
    for method in sorted(methods & _SMOOTHED.keys()):
        losses = _losses(run.trainer)
        smoothing = LabelSmoothingAboveZero if "exo_pair" in losses else LabelSmoothing
        yield _on_trainer(smoothing, run, _unused_smoothing(losses, _SMOOTHED[method]))
    if "reward" in methods:
        yield _centering(run.args)


def _on_trainer(make: type[PlacedValue], run: Run, unused: str | None = None) -> PlacedValue:
    """Return a parameter that lies on the trainer, and in the arguments for whoever looks there."""
    if run.trainer is None:
        return make(why_unavailable=NOT_ATTACHED)
    try:
        places = [attribute(run.trainer, make.name, "trainer")]
        return make(places, [attribute(run.trainer.args, make.name, "trainer.args")], unused)
    except LookupError as error:
        return make(why_unavailable=str(error))


def _losses(trainer: Any) -> frozenset[str]:
    """Return the names of the losses that a trainer adds up."""
    losses: Any = getattr(trainer, "loss_types", None) or getattr(trainer, "loss_type", ())
    return frozenset((losses,) if isinstance(losses, str) else losses)


def _unused_beta(trainer: Any) -> str | None:
    if _losses(trainer) == {"sft"}:
        return "the loss of this run, sft, does not use beta"
    return None


def _unused_smoothing(losses: frozenset[str], smoothed: frozenset[str]) -> str | None:
    if losses & smoothed:
        return None
    return (
        f"the loss of this run, {', '.join(sorted(losses))}, does not use label_smoothing; those "
        f"that do are {', '.join(sorted(smoothed))}"
    )


def _centering(args: Any) -> PlacedValue:
    try:
        place = attribute(args, CenterRewardsCoefficient.name, "args")
    except LookupError as error:
        return CenterRewardsCoefficient(why_unavailable=str(error))
    none_given = place.read() is None

    def write(value: float) -> None:
        place.write(None if none_given and value == 0 else value)

    return CenterRewardsCoefficient([Place(place.where, lambda: place.read() or 0.0, write)])
