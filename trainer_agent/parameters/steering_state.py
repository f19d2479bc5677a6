"""What of a steered learning rate rides in a checkpoint, and what a change is taken back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer_agent.parameters.overrides import Override

if TYPE_CHECKING:
    from trainer_agent.parameters.base import Json
    from trainer_agent.parameters.groups import Rate

VERSION = 1


@dataclass(frozen=True, slots=True)
class SavedGroup:
    """One parameter group."""

    own: float
    """The scheduler's own value for the next step."""
    rate: float
    """What the next step uses."""
    base: float | None
    """The scheduler's base value, where scales are sunk into it."""
    original: tuple[float, float] | None
    """Base value and initial_lr before the first scale was sunk; None: none is."""
    override: Override

    def to_json(self) -> dict[str, Any]:
        """Return it as plain numbers, strings, lists and mappings."""
        return {
            "own": self.own,
            "rate": self.rate,
            "base": self.base,
            "original": None if self.original is None else list(self.original),
            "override": self.override.to_json(),
        }

    @classmethod
    def from_json(cls, data: Json) -> SavedGroup:
        """Read what ``to_json`` returned."""
        base, original = data["base"], data["original"]
        return cls(
            own=float(data["own"]),
            rate=float(data["rate"]),
            base=None if base is None else float(base),
            original=None if original is None else (float(original[0]), float(original[1])),
            override=Override.from_json(data["override"]),
        )


@dataclass(frozen=True, slots=True)
class SteeringState:
    """All parameter groups."""

    scheduler: str | None
    """The scheduler's class; None: the rate is constant."""
    global_step: int
    first_seen: list[float] | None
    """The rates before the scheduler had moved; None: not seen."""
    groups: list[SavedGroup] | None
    """None: nothing interferes."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain numbers, strings, lists and mappings."""
        return {
            "version": VERSION,
            "scheduler": self.scheduler,
            "global_step": self.global_step,
            "first_seen": self.first_seen,
            "groups": None if self.groups is None else [group.to_json() for group in self.groups],
        }

    @classmethod
    def from_json(cls, data: Json) -> SteeringState:
        """Read what ``to_json`` returned.

        Raises:
            ValueError: It is something else.
        """
        if data.get("version") != VERSION:
            raise ValueError(
                f"the saved learning rate state has version {data.get('version')!r}, and this is "
                f"version {VERSION}"
            )
        try:
            groups, first_seen = data["groups"], data["first_seen"]
            return cls(
                scheduler=data["scheduler"],
                global_step=int(data["global_step"]),
                first_seen=None if first_seen is None else [float(rate) for rate in first_seen],
                groups=None if groups is None else [SavedGroup.from_json(each) for each in groups],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"the saved learning rate state is damaged: {error!r}") from error

    def check_fits(self, scheduler: str | None, groups: int) -> None:
        """Check that this state is of such a run.

        Raises:
            ValueError: It is not.
        """
        if self.groups is None:
            return
        if self.scheduler != scheduler:
            raise ValueError(
                f"the learning rate was steered over {self.scheduler or 'no scheduler'} when the "
                f"state was saved, and this run has {scheduler or 'no scheduler'}"
            )
        if len(self.groups) != groups:
            raise ValueError(
                f"the saved learning rate state has {len(self.groups)} parameter groups, and this "
                f"run has {groups}"
            )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a change can touch, to the bit."""

    rates: list[Rate]
    bases: list[Rate]
    initial: list[Rate | None]
    last: list[Rate] | None
    own: list[Rate] | None
    overrides: list[Override]
    originals: list[tuple[float, float]] | None
    global_step: int
    written: list[float]
    changed_at: int | None
