"""What of a run's data flow rides in its checkpoint, and where it is found there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_agent.parameters.data.chunking import Position
from trainer_agent.parameters.data.stretch import Stretch

if TYPE_CHECKING:
    from trainer_agent.parameters.base import Json

HOLDER = "gradient_accumulation_steps"
"""The parameter in whose state it rides."""

_TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What decides how many samples an update takes."""

    accumulation: int
    per_device: int
    """Samples of a micro-batch on one device."""
    train_batch: int
    """Samples of a micro-batch on one process, which may have several devices."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the script asked for before anything was changed."""

    sizes: Sizes
    length: int | None
    """Micro-batches in an epoch; None: not known."""
    max_steps: int
    """Optimizer steps in the run, which its schedule was built for."""
    num_train_epochs: float
    """Epochs asked for, in fractions; they count where ``TrainingArguments.max_steps`` does not."""


@dataclass(frozen=True, slots=True)
class SavedFlow:
    """Where a run with changes stands."""

    sizes: Sizes
    position: Position
    steps_in_epoch: int
    """Micro-batches in an epoch as transformers takes them, also where it does not know them."""
    max_steps: int
    planned_steps: int
    """Steps in the run by its epochs; ``max_steps`` differs where it was itself changed live."""
    plan: Plan
    stretch: Stretch

    def to_json(self) -> dict[str, Any]:
        """Return it as plain numbers, strings, lists and mappings."""
        return {
            "sizes": asdict(self.sizes),
            "position": self.position._asdict(),
            "steps_in_epoch": self.steps_in_epoch,
            "max_steps": self.max_steps,
            "planned_steps": self.planned_steps,
            "plan": asdict(self.plan),
            "stretch": self.stretch.to_json(),
        }

    @classmethod
    def from_json(cls, data: Json) -> SavedFlow:
        """Read what ``to_json`` returned.

        Raises:
            ValueError: It is something else.
        """
        try:
            plan = data["plan"]
            return cls(
                sizes=Sizes(**data["sizes"]),
                position=Position(**data["position"]),
                steps_in_epoch=int(data["steps_in_epoch"]),
                max_steps=int(data["max_steps"]),
                planned_steps=int(data["planned_steps"]),
                plan=Plan(**{**plan, "sizes": Sizes(**plan["sizes"])}),
                stretch=Stretch.from_json(data["stretch"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the saved position in the data is damaged: {error!r}") from error


def read_checkpoint(checkpoint: str) -> SavedFlow | None:
    """Return where the run of a checkpoint stands; None: nothing was changed in it.

    It is read from the file, as transformers plans the data before it restores its callbacks.

    Raises:
        OSError: The file can not be read.
        ValueError: It holds something else.
    """
    path = Path(checkpoint) / _TRAINER_STATE
    if not path.is_file():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    callbacks = _within(state, "stateful_callbacks")
    for each in callbacks.values() if isinstance(callbacks, Mapping) else ():
        saved = each[0] if isinstance(each, list) and each else each
        flow = _within(saved, "steering", "controller", "parameters", HOLDER, "flow")
        if flow is not None:
            return SavedFlow.from_json(flow)
    return None


def _within(data: Any, *path: str) -> Any:
    for key in path:
        if not isinstance(data, Mapping):
            return None
        data = data.get(key)
    return data
