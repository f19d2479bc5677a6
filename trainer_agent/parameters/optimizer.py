"""What an optimizer keeps in its parameter groups, besides the learning rate.

Optimizers of torch, and those built like them, read these values from ``param_groups`` at every
step, so a change is used by the next one. Values that are tensors (capturable and compiled
optimizers) are filled in place. Where an optimizer has no such value there is no such parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.optim import SGD

from trainer_agent.parameters.base import Boundary, Json, Reading, Refused
from trainer_agent.parameters.changes import Change, Set, Value
from trainer_agent.parameters.groups import (
    as_stored,
    copy_of,
    find_group,
    group_names,
    host_value,
    put_rate,
)
from trainer_agent.parameters.schedule_shapes import rescaled
from trainer_agent.parameters.schedulers import unwrap_optimizer, why_out_of_reach
from trainer_agent.parameters.value import ValueParameter, Values

if TYPE_CHECKING:
    from trainer_agent.run import Run

Group = dict[str, Any]


class GroupValue(ValueParameter):
    """A number in an optimizer's parameter groups.

    Args:
        optimizer: The optimizer, without wrappers.
        why_unavailable: Why it can not be changed in this run; None: it can.
    """

    key: ClassVar[str]
    """The entry of a parameter group."""
    place: ClassVar[int | None] = None
    """Where the entry is a tuple: the place in it."""

    def __init__(self, optimizer: Any, why_unavailable: str | None = None) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._why = why_unavailable

    @classmethod
    def is_in(cls, group: Group) -> bool:
        """Say whether a parameter group has it."""
        entry = group.get(cls.key)
        if cls.place is not None:
            if not isinstance(entry, tuple | list) or len(entry) <= cls.place:
                return False
            entry = entry[cls.place]
        if isinstance(entry, Tensor):
            return entry.numel() == 1
        return isinstance(entry, int | float) and not isinstance(entry, bool)

    def why_unavailable(self) -> str | None:
        """Return why it can not be changed in this run; None: it can."""
        return self._why

    def get(self) -> Values:
        """Return the values in force; waits for an accelerator where one lies there."""
        return self._values(synchronise=True)

    def put(self, values: Mapping[str, Value]) -> None:
        """Write values of the groups that are named."""
        groups = self._groups()
        for name, value in values.items():
            self._write(groups[name], float(value))

    def read(self, *, synchronise: bool = False) -> Reading:
        """Return the values in force, by group."""
        return Reading({} if self._why else self._values(synchronise=synchronise))

    def stored(self, group: str, value: Value) -> Value:
        """Return what is left of a value in the precision of a tensor."""
        return as_stored(self._entry(self._groups()[group]), float(value))

    def capture(self) -> object:
        """Return the entries, to the bit."""
        return {name: copy_of(self._entry(group)) for name, group in self._groups().items()}

    def restore(self, captured: Any) -> None:
        """Put back the entries."""
        groups = self._groups()
        for name, entry in captured.items():
            self._write(groups[name], entry)

    def targets(self, change: Change, now: Values) -> list[str]:
        """Return the groups that a change is for; a group may also be named by its index.

        Raises:
            Refused: There is no such group, or it shares its value with others.
        """
        everywhere: list[Group] = self._optimizer.param_groups
        index = None if change.group is None else find_group(everywhere, change.group)
        name = "" if index is None else group_names(everywhere)[index]
        if name not in now:
            return super().targets(change, now)
        groups = self._groups()
        mine = self._entry(groups[name])
        if isinstance(mine, Tensor) and any(
            self._entry(group) is mine for other, group in groups.items() if other != name
        ):
            raise Refused(
                "SHARED_VALUE",
                f"parameter group {name!r} shares one tensor for {self.name} with other groups and "
                "cannot be changed alone; leave the group out to change all",
                value_in_force=now[name],
            )
        return [name]

    def _groups(self) -> dict[str, Group]:
        """Return the parameter groups that have it, by name."""
        groups: list[Group] = self._optimizer.param_groups
        return {
            name: group
            for name, group in zip(group_names(groups), groups, strict=True)
            if self.is_in(group)
        }

    def _values(self, *, synchronise: bool) -> dict[str, Value | None]:
        return {
            name: host_value(self._entry(group), synchronise=synchronise)
            for name, group in self._groups().items()
        }

    def _entry(self, group: Group) -> Any:
        entry = group[self.key]
        return entry if self.place is None else entry[self.place]

    def _write(self, group: Group, value: float | Tensor) -> None:
        if self.place is None:
            put_rate(group, self.key, value)
            return
        entries = list(group[self.key])
        put_rate(entries, self.place, value)
        group[self.key] = tuple(entries)


class Beta1(GroupValue):
    """The decay of the running mean of gradients."""

    name: ClassVar[str] = "adam_beta1"
    description: ClassVar[str] = "Decay rate of the running mean of the gradients (momentum)."
    minimum: ClassVar[float | None] = 0.0
    maximum: ClassVar[float | None] = 1.0
    maximum_exclusive: ClassVar[bool] = True
    key: ClassVar[str] = "betas"
    place: ClassVar[int | None] = 0


class Beta2(Beta1):
    """The decay of the running mean of squared gradients."""

    name: ClassVar[str] = "adam_beta2"
    description: ClassVar[str] = (
        "Decay rate of the running mean of the squared gradients. The correction of its start is "
        "computed with the new rate at once, as the optimizer keeps none of its own."
    )
    place: ClassVar[int | None] = 1


class Epsilon(GroupValue):
    """What is added to the root of the mean of squared gradients."""

    name: ClassVar[str] = "adam_epsilon"
    description: ClassVar[str] = "Added to the denominator of the update, for numerical stability."
    # An epsilon of 0 makes 0 / 0 of a weight that never had a gradient.
    minimum: ClassVar[float | None] = 0.0
    minimum_exclusive: ClassVar[bool] = True
    key: ClassVar[str] = "eps"

    @classmethod
    def is_in(cls, group: Group) -> bool:
        """Say whether a parameter group has it, as Adam and its kin do."""
        return "betas" in group and super().is_in(group)


class Momentum(GroupValue):
    """The momentum of SGD, RMSprop and their kin."""

    name: ClassVar[str] = "momentum"
    description: ClassVar[str] = (
        "Share of the last update that goes into the next. At 0 the buffers stay as they are, and "
        "are gone on with when it is raised again."
    )
    minimum: ClassVar[float | None] = 0.0
    maximum: ClassVar[float | None] = 1.0
    maximum_exclusive: ClassVar[bool] = True
    key: ClassVar[str] = "momentum"

    def refuse(self, values: Mapping[str, Value], boundary: Boundary) -> None:
        """Refuse a momentum that the optimizer has no buffers for, or can not do without.

        Raises:
            Refused: With the reason.
        """
        groups = self._groups()
        for name, value in values.items():
            group = groups[name]
            now = float(self._entry(group))
            if value == 0.0 and group.get("nesterov"):
                raise Refused(
                    "INVALID_VALUE",
                    f"Nesterov momentum must be above 0, and group {name} has it; got 0",
                    value_in_force=now,
                )
            # SGD begins a missing buffer with the next gradient; others look it up and fail.
            if value != 0.0 and not self._begins_buffers() and self._lacks_buffers(group):
                raise Refused(
                    "NO_MOMENTUM_BUFFERS",
                    f"{type(self._optimizer).__name__} made no momentum buffers for group {name} "
                    "when it began without momentum, and makes none later; start the run with a "
                    "momentum above 0",
                    value_in_force=now,
                )

    def _begins_buffers(self) -> bool:
        optimizer = self._optimizer
        return isinstance(optimizer, SGD) and type(optimizer).step is SGD.step

    def _lacks_buffers(self, group: Group) -> bool:
        states = (self._optimizer.state.get(each) for each in group["params"])
        return any(state and "momentum_buffer" not in state for state in states)


class WeightDecay(GroupValue):
    """The decay of weights, in the groups that have one.

    The groups that were set apart without decay (biases, norms) are not among this parameter's:
    nothing here ever writes them.

    Args:
        optimizer: The optimizer, without wrappers.
        why_unavailable: Why it can not be changed in this run; None: it can.
        meant_to_decay: The indices of the groups that were built to decay, for an optimizer where
            every decay is 0; None: not known.
    """

    name: ClassVar[str] = "weight_decay"
    description: ClassVar[str] = (
        "Share of itself that a weight loses, per step and unit of learning rate. Only in the "
        "groups built to decay; where these differ, the first one's is meant and shown, and a "
        "change for all keeps their ratios."
    )
    minimum: ClassVar[float | None] = 0.0
    key: ClassVar[str] = "weight_decay"

    def __init__(
        self,
        optimizer: Any,
        why_unavailable: str | None = None,
        meant_to_decay: Iterable[int] | None = None,
    ) -> None:
        super().__init__(optimizer, why_unavailable)
        groups: list[Group] = getattr(optimizer, "param_groups", [])
        decays = {
            index: float(group[self.key]) for index, group in enumerate(groups) if self.is_in(group)
        }
        meant = None if meant_to_decay is None else set(meant_to_decay)
        # Whether somebody's word is behind which groups decay and which do not.
        self._known = any(decays.values()) or meant is not None or len(decays) == 1
        if any(decays.values()):
            decays = {index: decay for index, decay in decays.items() if decay != 0.0}
        elif meant is not None:
            decays = {index: decay for index, decay in decays.items() if index in meant}
        # The groups that decay, and the ratios to keep, also where all are at 0.
        self._decays = decays

    def load_state_dict(self, state: Json) -> None:
        """Go on from a saved state, which says which groups were built to decay.

        The framework has loaded the optimizer by now, with the decays that were in force.

        Raises:
            ValueError: The state does not fit this run; nothing changed.
        """
        before = self._decays, self._known
        original = state.get("original")
        names = group_names(getattr(self._optimizer, "param_groups", []))
        if isinstance(original, dict) and set(original) <= set(names):
            self._decays = {names.index(name): float(each) for name, each in original.items()}
            self._known = self._known or any(original.values())
        try:
            super().load_state_dict(state)
        except Exception:
            self._decays, self._known = before
            raise

    def targets(self, change: Change, now: Values) -> list[str]:
        """Return the groups that a change is for: never one that was built without decay.

        Raises:
            Refused: It names one of these, or none, where nobody knows which ones they are.
        """
        everywhere: list[Group] = self._optimizer.param_groups
        if change.group is None:
            if self._known or not isinstance(change, Set):
                return list(now)
            raise Refused(
                "GROUP_NEEDED",
                "no parameter group has a weight decay, so it can not be told which were meant "
                f"to stay without (biases and norms); name one: {', '.join(now)}",
            )
        index = find_group(everywhere, change.group)
        if index is None or index in self._decays:
            return super().targets(change, now)
        raise Refused(
            "GROUP_WITHOUT_DECAY",
            f"parameter group {change.group!r} was set apart without weight decay, as biases and "
            f"norms are, and stays so; groups that decay: {', '.join(now) or 'none'}. For it to "
            "decay, start the run with an optimizer that has a weight decay there",
        )

    def share(self, value: Value, targets: Sequence[str], now: Values) -> dict[str, Value]:
        """Return each group's share of a value for the first one, ratios kept."""
        if len(targets) == 1:
            return {targets[0]: value}
        in_force = [float(now[name] or 0.0) for name in targets]
        # Nothing keeps a ratio to 0; nor does what is next to it.
        for decays in (in_force, list(self._decays.values())):
            if decays[0] != 0.0:
                shares = [rescaled(decay, decays[0], float(value)) for decay in decays]
                if all(map(math.isfinite, shares)):
                    return dict(zip(targets, shares, strict=True))
        return dict.fromkeys(targets, value)

    def _groups(self) -> dict[str, Group]:
        groups: list[Group] = self._optimizer.param_groups
        names = group_names(groups)
        return {names[index]: groups[index] for index in self._decays}


def find(run: Run) -> Iterator[GroupValue]:
    """Return what the parameter groups of a run's optimizer have."""
    if run.optimizer is None:
        return
    if why := why_out_of_reach(run.optimizer, run.lr_scheduler):
        # What nearly every optimizer behind a stand-in has.
        yield from (each(None, why) for each in (WeightDecay, Beta1, Beta2, Epsilon))
        return
    optimizer = unwrap_optimizer(run.optimizer)
    groups: list[Group] = getattr(optimizer, "param_groups", [])
    if any(map(WeightDecay.is_in, groups)):
        yield WeightDecay(optimizer, meant_to_decay=_meant_to_decay(run, groups))
    others: tuple[type[GroupValue], ...] = (Beta1, Beta2, Epsilon, Momentum)
    for each in others:
        if any(map(each.is_in, groups)):
            yield each(optimizer)


def _meant_to_decay(run: Run, groups: Sequence[Group]) -> list[int] | None:
    """Return the groups that hold what the trainer lets decay; None: it can not be told."""
    if run.trainer is None or not hasattr(run.trainer, "get_decay_parameter_names"):
        return None
    model = run.trainer.model
    decaying = set(run.trainer.get_decay_parameter_names(model))
    decays = {id(each): name in decaying for name, each in model.named_parameters()}
    meant = []
    for index, group in enumerate(groups):
        kinds = {decays.get(id(each)) for each in group["params"]}
        if kinds == {True}:
            meant.append(index)
        elif kinds - {False}:  # mixed, or of another model: not the trainer's own groups
            return None
    return meant or None
