"""What should be in force at every step of a short run, from what arrives when. Pure.

Written from what is promised and not from how that is kept: a small copy of the run that knows
nothing of torch, of transformers or of the code under test but the words for a change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.in_force_values import (
    ACCUMULATION,
    BATCH,
    GLOBAL,
    LOGGING,
    MAX_STEPS,
    RATE,
    Impossible,
    Setting,
    Values,
)
from trainer_agent.parameters import Change, Coupling, Multiply, Ramp, Release, Set, SetMode


@dataclass(frozen=True)
class Asked:
    """An update."""

    revision: int
    changes: tuple[Change, ...] = ()
    action: str | None = None
    at_step: int | None = None
    max_step: int | None = None
    overdue: bool = False
    """Its deadline passed before it arrived."""
    author: str = ""
    force: bool = False


@dataclass(frozen=True)
class Delivery:
    """An update arrives, perhaps not for the first time."""

    asked: Asked


@dataclass(frozen=True)
class Withdrawal:
    """An update is to be given up, perhaps one that is to arrive only later."""

    revision: int


Event = Delivery | Withdrawal


@dataclass(frozen=True)
class Ended:
    """How an update ended."""

    how: str
    """The field of the outcome that is set."""
    step: int = 0
    """Of one that was applied: the first step that used it. Of one rejected: the steps done."""
    why: str = ""
    """Reason of a rejection, cause of an expiry."""
    culprit: str = ""
    moved: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Old and new value by parameter."""
    saved: int | None = None
    """The steps done at the checkpoint that its action saved."""
    evaluated: bool = False


@dataclass(frozen=True)
class Used:
    """What one optimizer step used."""

    values: Mapping[str, Any]
    batches: tuple[int, ...]
    """Samples of each micro-batch."""
    in_force: frozenset[int]
    logs: bool


@dataclass
class _InForce:
    """An update that is in force and not reported yet."""

    asked: Asked
    step: int
    moved: dict[str, tuple[Any, Any]]
    waits_for: str | None = None
    saved: int | None = None
    evaluated: bool = False


_AFFECTED = {ACCUMULATION: {GLOBAL}, GLOBAL: {ACCUMULATION}, BATCH: {GLOBAL}}
"""What else moves with a parameter: what stands for the same thing."""


def _with_rate(change: Change) -> set[str]:
    """Return what a change names, and the learning rate if it is to follow."""
    follows = getattr(change, "coupling", Coupling.NONE) is not Coupling.NONE
    return {change.parameter, RATE} if follows else {change.parameter}


class Model:
    """The run.

    Args:
        setting: What the script asks for.
        arrivals: What arrives at each boundary, by steps done.
        while_held: What arrives while the run is held, one wait after the other; a resume that
            nobody asked for is what arrives when there is nothing left.
    """

    def __init__(
        self,
        setting: Setting,
        arrivals: Mapping[int, Sequence[Event]],
        while_held: Sequence[Sequence[Event]],
    ) -> None:
        self._setting = setting
        self._arrivals = arrivals
        self._while_held = list(while_held)
        self._held: dict[int, Asked] = {}
        self._late: set[int] = set()
        self._unverified: list[_InForce] = []
        self._acting: list[_InForce] = []
        self._before_unverified: Values | None = None
        self._paused = self._stopping = False
        # How often the framework has left the boundary to do something, and whether it has begun
        # the next step by that.
        self._left, self._begun = 0, False
        self._wanted: set[str] = set()
        self._values = Values(setting)
        self.forced_resumes = 0
        self.ended: dict[int, Ended] = {}
        self.told: dict[int, int] = {}
        """How often each outcome is told."""
        self.used: list[Used] = []
        """What the steps used, in order."""
        self.saves: set[int] = set()

    @property
    def in_force(self) -> frozenset[int]:
        """The revisions in force."""
        open_ones = {each.asked.revision for each in [*self._unverified, *self._acting]}
        applied = {revision for revision, each in self.ended.items() if each.how == "applied"}
        return frozenset(open_ones | applied)

    def run(self) -> None:
        """Go through the whole run."""
        values = self._values
        while True:
            in_force, now = self.in_force, values.all()
            batches = values.begin_step()
            self._left, self._begun = 0, False
            logs = values.step % now[LOGGING] == 0
            self.used.append(Used(now, batches, in_force, logs))
            last = values.step >= values.others[MAX_STEPS]
            self._at_boundary(self._arrivals.get(values.step, ()), last=last)
            self._carry_out()
            while self._paused:
                self._wait()
                self._carry_out()
            if last or (self._stopping and not self._begun):
                break
            values = self._values
        self._finish()

    # ---- What arrives ----

    def _wait(self) -> None:
        if self._while_held:
            events = self._while_held.pop(0)
        else:
            self.forced_resumes += 1
            events = [Delivery(forced_resume(self.forced_resumes))]
        if events:
            self._at_boundary(events, last=False)

    def _take(self, event: Event) -> None:
        match event:
            case Delivery(asked):
                revision = asked.revision
                if revision in self._held or self._is_open(revision) or self._repeat(revision):
                    return
                self._held[revision] = asked
            case Withdrawal(revision):
                if self._is_open(revision) or self._repeat(revision):
                    return
                self._held.pop(revision, None)
                self._settle(revision, Ended("withdrawn"))

    def _is_open(self, revision: int) -> bool:
        return any(each.asked.revision == revision for each in [*self._unverified, *self._acting])

    def _repeat(self, revision: int) -> bool:
        if revision in self.ended:
            self.told[revision] += 1
        return revision in self.ended

    def _settle(self, revision: int, ended: Ended) -> None:
        assert revision not in self.ended, "the model settles an update once"
        self.ended[revision], self.told[revision] = ended, 1

    # ---- At a boundary ----

    def _at_boundary(self, events: Sequence[Event], *, last: bool) -> None:
        for event in events:
            self._take(event)
        self._verify()
        self._values.rate.settle(self._values.step)
        for revision in sorted(self._held):
            asked = self._held[revision]
            if asked.overdue:
                self._expire(revision, "DEADLINE")
            else:
                self._look_at(asked, last=last)

    def _verify(self) -> None:
        for each in list(self._unverified):
            if each.step <= self._values.step:
                self._unverified.remove(each)
                if each.waits_for is None:
                    self._applied(each)
                else:
                    self._acting.append(each)

    def _applied(self, each: _InForce) -> None:
        ended = Ended(
            "applied",
            each.step,
            moved=each.moved,
            saved=each.saved,
            evaluated=each.evaluated,
        )
        self._settle(each.asked.revision, ended)

    def _expire(self, revision: int, cause: str) -> None:
        self._held.pop(revision, None)
        self._settle(revision, Ended("expired", why=cause))

    def _reject(self, revision: int, impossible: Impossible) -> None:
        self._held.pop(revision, None)
        ended = Ended("rejected", self._values.step, impossible.reason, impossible.culprit)
        self._settle(revision, ended)

    def _look_at(self, asked: Asked, *, last: bool) -> None:
        next_step = self._values.step + 1
        try:
            if asked.action in self._setting.unavailable:
                raise Impossible("ACTION_UNAVAILABLE")
            if asked.action == "stop" and asked.changes:
                raise Impossible("CHANGES_WITH_STOP")
            if asked.max_step is not None and next_step > asked.max_step:
                self._expire(asked.revision, "MAX_STEP")
            elif last or self._stopping or next_step < (asked.at_step or 0):
                return
            elif all(self._values.opens(change) for change in asked.changes):
                self._apply(asked)
            elif asked.revision not in self._late:
                self._late.add(asked.revision)
                for index, change in enumerate(asked.changes):
                    self._check(change, asked, {each.parameter for each in asked.changes[:index]})
        except Impossible as impossible:
            self._reject(asked.revision, impossible)

    def _check(self, change: Change, asked: Asked, earlier: set[str]) -> None:
        """Say whether a change that has to wait could be made, as far as can be told."""
        try:
            self._check_now(change, asked, earlier)
        except Impossible as impossible:
            if not impossible.for_now:
                raise

    def _check_now(self, change: Change, asked: Asked, earlier: set[str]) -> None:
        name = change.parameter
        self._rails(change, asked)
        if name in {ACCUMULATION, GLOBAL} and earlier & {ACCUMULATION, BATCH}:
            return  # it may be possible after those
        after = copy.deepcopy(self._values)
        try:
            self._try(after, change)
        except Impossible as impossible:
            if impossible.reason not in {"APPLY_FAILED", "UNKNOWN_PARAMETER"}:
                raise
        else:
            self._rails_of_following(change, self._values.read(name), after.read(name), asked)

    def _rails_of_following(self, change: Change, before: Any, new: Any, asked: Asked) -> None:
        """Say whether the learning rate may follow a batch size."""
        coupling = getattr(change, "coupling", Coupling.NONE)
        if coupling is not Coupling.NONE and new != before:
            ratio = new / before
            factor = math.sqrt(ratio) if coupling is Coupling.SQRT else ratio
            self._rails(Multiply(RATE, factor), asked)

    def _try(self, values: Values, change: Change) -> None:
        try:
            values.change(change)
        except Impossible as impossible:
            raise Impossible(
                impossible.reason, change.parameter, for_now=impossible.for_now
            ) from None

    def _apply(self, asked: Asked) -> None:
        for change in asked.changes:
            self._rails(change, asked)
        after = copy.deepcopy(self._values)
        moved: dict[str, tuple[Any, Any]] = {}
        made: list[tuple[Change, str, Any, Any]] = []
        for change in asked.changes:
            old = {name: after.read(name) for name in (change.parameter, RATE)}
            self._try(after, change)
            touched = [change.parameter]
            self._rails_of_following(
                change, old[change.parameter], after.read(change.parameter), asked
            )
            if getattr(change, "coupling", Coupling.NONE) is not Coupling.NONE:
                touched += [RATE] if after.read(change.parameter) != old[change.parameter] else []
            for name in touched:
                new = after.read(name)
                made.append((change, name, old[name], new))
                moved[name] = (moved.get(name, (old[name],))[0], new)
        for change, name, before, new in made:
            if new != before and not isinstance(change, Release):
                self._within(name, new)
        last = {name: change for change, name, _, _ in made}
        for name, (before, new) in moved.items():
            if not isinstance(last[name], Release):
                self._within_reach(name, before, new, asked)
        del self._held[asked.revision]
        if self._before_unverified is None or self._before_unverified.step != self._values.step:
            self._before_unverified = copy.deepcopy(self._values)
        self._values = after
        self._begin(asked, moved)
        self._supersede(asked)

    def _supersede(self, newer: Asked) -> None:
        """Reject what is older, waits for its boundary alone, and would go over what is newer."""
        changed = {name for change in newer.changes for name in _with_rate(change)}
        for revision in sorted(self._held):
            older = self._held[revision]
            scheduled = (older.at_step or 0) > self._values.step + 1
            if revision < newer.revision and not scheduled:
                for change in older.changes:
                    if changed & (_with_rate(change) | _AFFECTED.get(change.parameter, set())):
                        self._reject(revision, Impossible("SUPERSEDED", change.parameter))
                        break

    def _begin(self, asked: Asked, moved: dict[str, tuple[Any, Any]]) -> None:
        entry = _InForce(asked, self._values.step + 1, moved)
        match asked.action:
            case "pause" | "resume":
                self._paused = asked.action == "pause"
            case None:
                pass
            case action:
                entry.waits_for = action
                self._wanted.add(action)
                if action == "stop":
                    self._stopping, self._paused = True, False
                    if not self._begun:
                        self._take_back()
        if asked.changes:
            self._unverified.append(entry)
        elif entry.waits_for is not None:
            self._acting.append(entry)
        else:
            self._applied(entry)

    def _take_back(self) -> None:
        if self._unverified:
            assert self._before_unverified is not None
            self._values = self._before_unverified
        for each in self._unverified:
            self._settle(each.asked.revision, Ended("expired", why="JOB_ENDED"))
        self._unverified.clear()

    def _rails(self, change: Change, asked: Asked) -> None:
        name = change.parameter
        rails = self._setting.rails.get(name)
        if rails is None:
            return
        if rails.frozen:
            raise Impossible("PARAMETER_FROZEN", name)
        if rails.allowed_principals and asked.author not in rails.allowed_principals:
            raise Impossible("NOT_ALLOWED", name)
        target, factor = None, None
        if isinstance(change, Set | Ramp):
            target = float(change.value)
            self._within(name, target)
        now = float(self._values.read(name))
        if isinstance(change, Multiply):
            factor = change.factor
        elif target is not None and getattr(change, "mode", None) is not SetMode.PEAK and now > 0:
            factor = target / now
        if factor is not None:
            try:
                self._within_reach(name, 1.0, factor, asked)
            except Impossible as impossible:
                impossible.for_now = not isinstance(change, Multiply)
                raise

    def _within_reach(self, name: str, before: Any, new: Any, asked: Asked) -> None:
        rails = self._setting.rails.get(name)
        limit = None if rails is None else rails.max_relative_change
        if limit is None or asked.force or isinstance(before, str) or before <= 0:
            return
        if not 1 / limit <= new / before <= limit:
            raise Impossible("GUARD_RAIL", name)

    def _within(self, name: str, value: float) -> None:
        rails = self._setting.rails.get(name)
        if rails is None:
            return
        if (rails.minimum is not None and value < rails.minimum) or (
            rails.maximum is not None and value > rails.maximum
        ):
            raise Impossible("GUARD_RAIL", name)

    # ---- Actions ----

    def _carry_out(self) -> None:
        """Do what is wanted: evaluate first, then save, as the framework does.

        To that end the framework leaves the boundary, and takes the data of the next update: a run
        that is held further is held in front of it. At an epoch's end it is held there once more
        before another begins. A step that has begun is finished, and a stop comes after it.
        """
        if self._stopping and self._begun:
            return
        wanted, self._wanted = self._wanted, set()
        if wanted and self._paused:
            self._left += 1
            self._values.taken = not self._values.ends_epoch
            self._begun = self._values.taken or self._left > 1
        for action in ("evaluate", "save_checkpoint", "stop"):
            if action in wanted:
                self._done(action)

    def _done(self, action: str) -> None:
        if action != "evaluate":
            self.saves.add(self._values.step)
        for each in [*self._unverified, *self._acting]:
            if each.waits_for != action:
                continue
            each.waits_for = None
            if action == "evaluate":
                each.evaluated = True
            else:
                each.saved = self._values.step
            if each in self._acting:
                self._acting.remove(each)
                self._applied(each)

    def _finish(self) -> None:
        assert not self._unverified
        assert not self._acting
        for revision in sorted(self._held):
            self._expire(revision, "JOB_ENDED")


def forced_resume(number: int) -> Asked:
    """Return the update that ends a pause which nothing else would end."""
    return Asked(1_000 + number, action="resume")
