"""The layer over an optimizer's parameter groups and their scheduler.

While nothing interferes, nothing is touched. A scale over a ``LambdaLR`` is sunk into it: its base
values, ``initial_lr``, the rate and ``_last_lr`` are written together, and it goes on by itself.
For everything else the scheduler is followed: before each of its steps the groups get back the
values that it left there, as many schedulers compute the next value from the last; after it these
are noted, and what lies over them is written.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainer_agent.parameters.following import follow, unfollow
from trainer_agent.parameters.groups import Rate, as_stored, copy_of, host_value, put_rate
from trainer_agent.parameters.overrides import NOTHING, GroupState
from trainer_agent.parameters.schedulers import is_steered, original_bases, sinks_scales
from trainer_agent.parameters.steering_state import SavedGroup, Snapshot, SteeringState

if TYPE_CHECKING:
    from trainer_agent.parameters.base import Json


class Steering:
    """Holds what lies over each group's own learning rate, and keeps it there.

    Args:
        optimizer: The optimizer, without wrappers.
        scheduler: Its scheduler, without wrappers; None for a constant rate.
    """

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        self.optimizer = optimizer
        self._scheduler = scheduler
        self._sinks = scheduler is not None and sinks_scales(scheduler)
        self._overrides = [NOTHING for _ in self.groups]
        # What the scheduler left, while something lies over it; None: the groups have it.
        self._own: list[Rate] | None = None
        # Base value and initial_lr of each group before the first scale was sunk.
        self._originals: list[tuple[float, float]] | None = None
        # For schedulers that do not say what they were built around, if they have not moved yet.
        self._first_seen: list[float] | None = None
        if getattr(scheduler, "last_epoch", None) == 0:
            self._first_seen = [float(group["lr"]) for group in self.groups]
        self._global_step = 0
        # The rates that the last change wrote, and where the scheduler's count stood then.
        self._written: list[float] = []
        self._written_at: object = None
        self.failure: Exception | None = None
        """Why the layer took itself away in the middle of a step; None: it did not."""
        self.changed_at: int | None = None
        """The global step of the boundary where the learning rate was last changed; None: none."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    @property
    def active(self) -> bool:
        """Whether anything lies over the scheduler's own values."""
        return self._own is not None

    @property
    def knows_bases(self) -> bool:
        """Whether it is known what the schedule was built around."""
        return (
            self._scheduler is None
            or self._first_seen is not None
            or original_bases(self._scheduler, self.groups) is not None
        )

    def states(self) -> list[GroupState]:
        """Return every group as it is. Reads rates from devices."""
        self._align()
        bases = None if self._sinks else self._bases()
        states = []
        for index, own in enumerate(self._own_rates()):
            state = GroupState(float(own), override=self._overrides[index])
            if self._sinks:
                base = float(self._scheduler.base_lrs[index])
                original = base if self._originals is None else self._originals[index][0]
                law = functools.partial(self._law, index)
                state = replace(state, base=base, original_base=original, law=law)
            elif bases is not None:
                state = replace(state, original_base=bases[index])
            states.append(state)
        return states

    def rates(self, *, synchronise: bool) -> list[float | None]:
        """Return the rates in force; None for one that only a device knows."""
        self._align()
        read = [host_value(group["lr"], synchronise=synchronise) for group in self.groups]
        return [
            over.fixed(self._global_step) if value is None and self.active else value
            for value, over in zip(read, self._overrides, strict=True)
        ]

    def commit(self, states: Sequence[GroupState], global_step: int) -> None:
        """Make these the groups' states and write what they come to, all or nothing.

        Raises:
            TypeError: The scheduler cannot be followed; nothing has changed.
        """
        before = self.snapshot()
        try:
            self._commit(states, global_step)
        except BaseException:
            self.restore(before)
            raise

    def replan(self, global_step: int) -> None:
        """Take over that a ``LambdaLR`` has other functions now; what lies over them stays there.

        Must be called at the boundary where they were put in place.
        """
        self.commit(
            [
                state
                if state.law is None or state.base is None
                else replace(state, own=state.law(state.base))
                for state in self.states()
            ],
            global_step,
        )

    def settle(self, global_step: int) -> None:
        """Move what varies with time to its value for the step after ``global_step``."""
        self._global_step = global_step
        if not self.active:
            return
        if any(over.due(global_step) for over in self._overrides):
            settled = [state.settled(global_step) for state in self.states()]
            self.commit(settled, global_step)
        elif any(over.varying for over in self._overrides):
            self._write_rates(self._rates_in_force())

    def snapshot(self) -> Snapshot:
        """Return all that a change can touch."""
        return Snapshot(
            rates=[copy_of(group["lr"]) for group in self.groups],
            bases=[copy_of(base) for base in self._scheduler.base_lrs] if self._sinks else [],
            initial=[
                copy_of(group["initial_lr"]) if "initial_lr" in group else None
                for group in self.groups
            ],
            last=getattr(self._scheduler, "_last_lr", None),
            own=self._own,
            overrides=self._overrides,
            originals=self._originals,
            global_step=self._global_step,
            written=self._written,
            changed_at=self.changed_at,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back as it was when no step has run since."""
        self._own, self._overrides = snapshot.own, snapshot.overrides
        self._originals, self._written = snapshot.originals, snapshot.written
        self._global_step = snapshot.global_step
        self.changed_at = snapshot.changed_at
        if self._own is None:
            unfollow(self._scheduler)
        else:
            self._follow()
        for index, base in enumerate(snapshot.bases):
            put_rate(self._scheduler.base_lrs, index, base)
        for group, rate, initial in zip(self.groups, snapshot.rates, snapshot.initial, strict=True):
            put_rate(group, "lr", rate)
            if initial is not None:
                put_rate(group, "initial_lr", initial)
        if snapshot.last is not None:
            vars(self._scheduler)["_last_lr"] = snapshot.last

    def detach(self) -> None:
        """Leave the rates as they are and follow the scheduler no longer."""
        unfollow(self._scheduler)
        self._own = None
        self._overrides = [NOTHING for _ in self.groups]

    def deviation(self, used: Sequence[float | None]) -> str | None:
        """Say what differs from what the last change promised; None: nothing does.

        To be called when one optimizer step has run since.

        Args:
            used: The rates that this step used, as read right after it; None: not known.
        """
        if self.failure is not None:
            return f"the schedule could not be followed: {self.failure!r}"
        for name, got, promised in zip(range(len(used)), used, self._written, strict=False):
            if got is not None and got != promised:
                return f"the step used {got!r} in group {name} instead of {promised!r}"
        for name, (got, due) in enumerate(
            zip(self.rates(synchronise=True), self._expected(), strict=False)
        ):
            if due is not None and got != due:
                return (
                    f"after the step the learning rate of group {name} is {got!r} instead of "
                    f"{due!r}: something else writes it"
                )
        if self.active and self._scheduler is not None and not is_steered(self._scheduler):
            return "the scheduler is no longer followed: something else has replaced its class"
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; reads rates from devices."""
        groups = None
        if self.active or self._originals is not None:
            self._align()
            groups = [
                SavedGroup(
                    own=float(own),
                    rate=float(group["lr"]),
                    base=float(self._scheduler.base_lrs[index]) if self._sinks else None,
                    original=None if self._originals is None else self._originals[index],
                    override=self._overrides[index],
                )
                for index, (group, own) in enumerate(
                    zip(self.groups, self._own_rates(), strict=True)
                )
            ]
        return SteeringState(
            scheduler=self._scheduler_name(),
            global_step=self._global_step,
            first_seen=self._first_seen,
            groups=groups,
        ).to_json()

    def load_state_dict(self, data: Json) -> None:
        """Go on from a saved state, over the framework's own.

        Raises:
            ValueError: The state does not fit; nothing has changed.
        """
        state = SteeringState.from_json(data)
        state.check_fits(self._scheduler_name(), len(self.groups))
        before = self.snapshot()
        try:
            self._load(state)
        except BaseException:
            self.restore(before)
            raise

    def _load(self, state: SteeringState) -> None:
        self._global_step = state.global_step
        self._first_seen = state.first_seen
        self._written, self.failure = [], None
        unfollow(self._scheduler)
        self._own, self._originals = None, None
        self._overrides = [NOTHING for _ in self.groups]
        if state.groups is None:
            return
        self._overrides = [saved.override for saved in state.groups]
        for index, saved in enumerate(state.groups):
            if saved.original is not None and saved.base is not None:
                self._originals = [*(self._originals or []), saved.original]
                self._sink(index, saved.base)
        if any(over.active for over in self._overrides):
            self._own = [saved.own for saved in state.groups]
            self._follow()
        self._write_rates([saved.rate for saved in state.groups])

    def _commit(self, states: Sequence[GroupState], global_step: int) -> None:
        self._global_step = global_step
        own: list[Rate] = [
            rate if float(rate) == state.own else state.own
            for rate, state in zip(self._own_rates(), states, strict=True)
        ]
        self._overrides = [state.override for state in states]
        self._sink_all(states)
        if any(over.active for over in self._overrides):
            self._own = own
            self._follow()
            self._write_rates(self._rates_in_force())
        else:
            self._own = None
            unfollow(self._scheduler)
            self._write_rates(own)
        self._written = [float(group["lr"]) for group in self.groups]
        self._written_at = self._count()

    def _sink_all(self, states: Sequence[GroupState]) -> None:
        moved = [
            (index, state.base)
            for index, state in enumerate(states)
            if state.base is not None and state.base != float(self._scheduler.base_lrs[index])
        ]
        if not moved:
            return
        if self._originals is None:
            self._originals = [
                (float(base), float(group["initial_lr"]))
                for base, group in zip(self._scheduler.base_lrs, self.groups, strict=True)
            ]
        for index, base in moved:
            self._sink(index, base)
        if all(
            state.base == original
            for state, (original, _) in zip(states, self._originals, strict=True)
        ):
            self._originals = None

    def _sink(self, index: int, base: float) -> None:
        # The lists and dictionaries keep their place: whoever holds them sees the change.
        assert self._originals is not None
        original, initial = self._originals[index]
        put_rate(self._scheduler.base_lrs, index, base)
        put_rate(self.groups[index], "initial_lr", initial if base == original else base)

    def _law(self, index: int, base: float) -> float:
        """Return what a ``LambdaLR`` gives for the next step, computed as it does."""
        there = self._scheduler.base_lrs[index]
        if isinstance(there, Tensor):
            value: Rate = there.detach().clone().fill_(as_stored(there, base))
        else:
            value = base
        return float(value * self._scheduler.lr_lambdas[index](self._scheduler.last_epoch))

    def _bases(self) -> list[float] | None:
        if self._scheduler is None:
            return [float(rate) for rate in self._own_rates()]
        bases = original_bases(self._scheduler, self.groups)
        return self._first_seen if bases is None else [float(base) for base in bases]

    def _own_rates(self) -> list[Rate]:
        if self._own is not None:
            return self._own
        return [copy_of(group["lr"]) for group in self.groups]

    def _rates_in_force(self) -> list[Rate]:
        """Return what lies over the scheduler's values, without reading these from a device."""
        rates: list[Rate] = []
        for own, over in zip(self._own_rates(), self._overrides, strict=True):
            fixed = over.fixed(self._global_step)
            if fixed is not None:
                rates.append(fixed)
            elif (known := host_value(own, synchronise=False)) is not None:
                rates.append(over.scaled(known))
            else:
                rates.append(own * over.scale)
        return rates

    def _write_rates(self, rates: Sequence[Rate]) -> None:
        for group, rate in zip(self.groups, rates, strict=True):
            put_rate(group, "lr", rate)
        if "_last_lr" in getattr(self._scheduler, "__dict__", {}):
            # A new list: a sequence of schedulers shares its list with the one that runs.
            vars(self._scheduler)["_last_lr"] = [copy_of(group["lr"]) for group in self.groups]

    def _expected(self) -> list[float | None]:
        """Return the rates that there should be now; None for one that only the scheduler knows."""
        if self._scheduler is None or (self._sinks and self._count() == self._written_at):
            return list(self._written)
        if self.active:
            return [
                as_stored(group["lr"], float(rate))
                for group, rate in zip(self.groups, self._rates_in_force(), strict=True)
            ]
        return [
            None if state.law is None or state.base is None else state.law(state.base)
            for state in self.states()
        ]

    def _count(self) -> object:
        # A scaler that finds an overflow skips the optimizer's step and the scheduler's.
        return getattr(self._scheduler, "last_epoch", None)

    def _scheduler_name(self) -> str | None:
        return None if self._scheduler is None else type(self._scheduler).__name__

    def _align(self) -> None:
        # A group added in the middle of a run has nothing over it.
        missing = self.groups[len(self._overrides) :]
        self._overrides = [*self._overrides, *(NOTHING for _ in missing)]
        if self._own is not None:
            added = self.groups[len(self._own) :]
            self._own = [*self._own, *(copy_of(group["lr"]) for group in added)]

    def _follow(self) -> None:
        if self._scheduler is not None and not is_steered(self._scheduler):
            follow(self._scheduler, self._before_step, self._after_step)

    def _before_step(self) -> None:
        try:
            for group, own in zip(self.groups, self._own or (), strict=False):
                put_rate(group, "lr", own)
        except Exception as error:  # noqa: BLE001 - it must not reach the training loop
            self._give_up(error)

    def _after_step(self) -> None:
        if self._own is None:
            return
        try:
            self._own = [copy_of(group["lr"]) for group in self.groups]
            self._align()
            self._write_rates(self._rates_in_force())
        except Exception as error:  # noqa: BLE001 - it must not reach the training loop
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.failure = error
        self.detach()
