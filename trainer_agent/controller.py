"""Applies updates at step boundaries and says truthfully how each ended.

Knows neither a transport nor a training framework: whoever runs the loop hands in what arrived and
says when an optimizer step has run and when a boundary is reached, and takes the outcomes away.

An update's way through here: ``deliver`` holds it; ``at_boundary`` applies it when it is due, all
its changes or none; ``optimizer_stepped`` reads what the step after that used; the next
``at_boundary`` verifies it, and only then is it reported as applied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import parameter_pb2, update_pb2
from trainer_agent import convert
from trainer_agent.held import Held, HeldUpdates
from trainer_agent.lineage import Lineage
from trainer_agent.parameters import (
    Applied,
    Boundary,
    ChangeFailed,
    LiveParameter,
    Reading,
    Refused,
    UndoError,
    apply_all,
)
from trainer_agent.unverified import Unverified

if TYPE_CHECKING:
    from collections.abc import Sequence

STATE_VERSION = 1


class ParameterController:
    """The updates of one training process.

    Not for use from several threads.

    Args:
        parameters: What can be changed live, by name.
        instance_id: Names this training process in what it reports.
        wall_clock: Nanoseconds since 1970 UTC.
        monotonic_clock: Nanoseconds; the clock of deadlines.
    """

    def __init__(
        self,
        parameters: Mapping[str, LiveParameter],
        instance_id: str,
        *,
        wall_clock: Callable[[], int] = time.time_ns,
        monotonic_clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._parameters = dict(parameters)
        self._instance_id = instance_id
        self._wall_clock = wall_clock
        self._monotonic_clock = monotonic_clock
        self._lineage = Lineage()
        self._held = HeldUpdates()
        self._unverified: list[Unverified] = []
        self._used: dict[str, Reading] = {}
        self._outcomes: list[session_pb2.UpdateOutcome] = []
        self._moved: dict[str, None] = {}
        self._off: Refused | None = None
        # Only what was once changed can vary with time.
        self._ticking: dict[str, LiveParameter] = {}

    # What arrives.

    def deliver(self, update: update_pb2.Update, deadline: int | None = None) -> None:
        """Take an update. One that is settled already is answered again, one that is held is not.

        Args:
            update: The update.
            deadline: Moment of the monotonic clock, in nanoseconds, from which on it must not be
                applied any more; None: no limit.
        """
        revision = update.revision
        if self._repeat_outcome(revision) or self._is_open(revision):
            return
        self._held.add(Held.of(update, deadline))

    def withdraw(self, revision: int) -> None:
        """Give an update up if it is not in force yet; the outcome says what became of it."""
        if self._repeat_outcome(revision):
            return
        if any(each.revision == revision for each in self._unverified):
            return  # it is in force, and its outcome is about to follow
        self._held.discard(revision)
        # Also where it was never seen: should it still arrive, it must not be applied.
        outcome = session_pb2.UpdateOutcome(revision=revision)
        outcome.withdrawn.SetInParent()
        self._settle(outcome)

    def acknowledge(self, revisions: Iterable[int]) -> None:
        """Note that the outcomes of these revisions are on disk elsewhere."""
        self._lineage.acknowledge(revisions)

    # What the loop does.

    def optimizer_stepped(self) -> None:
        """Note what the step that has just run used. To be called before any schedule goes on.

        Reads a value from an accelerator only where an update has yet to be verified.
        """
        if self._unverified:
            self._used = {
                name: self._parameters[name].read(synchronise=True)
                for name in {name for each in self._unverified for name in each.applied}
                if name in self._parameters
            }

    def at_boundary(self, boundary: Boundary, *, last: bool = False) -> None:
        """Verify what the last step used, move what varies with time, apply what is due.

        Args:
            boundary: Where the run stands.
            last: No step follows, so that nothing can come into force any more.
        """
        if self._unverified:
            self._verify(boundary)
        if self._ticking and self._off is None:
            for parameter in self._ticking.values():
                parameter.tick(boundary)
        if self._held:
            now = self._monotonic_clock() if self._held.has_deadlines() else None
            if self._held.wakes(boundary.next_step, now):
                self._go_through_held(boundary, now, last=last)

    def finish(self, boundary: Boundary) -> None:
        """End: what no step has used is taken back, and whatever is open expires.

        Raises:
            Exception: A parameter could not be taken back. All is settled nevertheless, as no
                step uses it.
        """
        if self._unverified and self._unverified[0].boundary.global_step < boundary.global_step:
            self._verify(boundary)
        unused, self._unverified = self._unverified, []
        still_open = {each.revision for each in unused}
        still_open.update(each.update.revision for each in self._held.take_all())
        for revision in sorted(still_open):
            self._lineage.in_force.discard(revision)
            self._expire(
                revision,
                update_pb2.EXPIRY_CAUSE_JOB_ENDED,
                f"training ended at step {boundary.global_step}, before a step used the change",
            )
        for each in reversed(unused):
            # What came with a checkpoint can not be taken back, and nothing uses it either.
            for applied in reversed(each.undo):
                self._parameters[applied.change.parameter].undo(applied)

    def switch_off(self, reason: str, message: str) -> None:
        """Stop steering: from the next boundary on every open or new update is rejected.

        Args:
            reason: UPPER_SNAKE_CASE.
            message: What happened and what to do, in words.
        """
        self._off = Refused(reason, message)
        self._held.wake_at_once()

    def detach(self) -> None:
        """Leave every value as it is and let go of what was followed for it."""
        for parameter in self._parameters.values():
            parameter.detach()

    # What there is to tell.

    @property
    def has_news(self) -> bool:
        """Whether there are outcomes or moved readings to take."""
        return bool(self._outcomes or self._moved)

    def take_outcomes(self) -> list[session_pb2.UpdateOutcome]:
        """Return the outcomes since the last call, in order."""
        if not self._outcomes:
            return []
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def take_moved_readings(self) -> list[update_pb2.ParameterReading]:
        """Return the values now in force of what updates have moved since the last call."""
        if not self._moved:
            return []
        moved, self._moved = self._moved, {}
        return self._readings(moved)

    def in_force(self) -> list[session_pb2.RevisionRange]:
        """Return every revision in force."""
        return [
            session_pb2.RevisionRange(first=first, last=last)
            for first, last in self._lineage.in_force
        ]

    def held(self) -> list[int]:
        """Return the revisions held for a later step."""
        return list(self._held)

    def unsettled(self) -> list[int]:
        """Return the revisions whose outcome is still to come.

        They are held for a later step, or in force and not verified yet.
        """
        return sorted({*self._held, *(each.revision for each in self._unverified)})

    def unacknowledged(self) -> list[session_pb2.UpdateOutcome]:
        """Return the outcomes that nobody has confirmed to have on disk."""
        return self._lineage.unacknowledged()

    def specs(self) -> list[parameter_pb2.ParameterSpec]:
        """Return what can be changed live, with the values in force."""
        why = None if self._off is None else self._off.message
        return [convert.spec_to_proto(each.spec(), why) for each in self._parameters.values()]

    # What rides in the checkpoint.

    def state_dict(self) -> dict[str, Any]:
        """Return, as JSON, what a resumed run needs.

        Updates held for later steps are not part of it: whether they still stand by then is for
        the control plane to say, which delivers them again.
        """
        return {
            "version": STATE_VERSION,
            "lineage": self._lineage.state_dict(),
            "unverified": [each.to_json() for each in self._unverified],
            "parameters": {name: each.state_dict() for name, each in self._parameters.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], *, same_job: bool = True) -> None:
        """Go on from a saved state, after the training framework has loaded its own.

        Args:
            state: What ``state_dict`` returned.
            same_job: The revisions in it are this job's; if not, only values are taken over.

        Raises:
            ValueError: The state does not fit this run.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the saved state has version {state.get('version')!r}, and this is version "
                f"{STATE_VERSION}"
            )
        lineage = Lineage.from_state_dict(state["lineage"])
        unverified = [Unverified.from_json(each) for each in state["unverified"]]
        for name, saved in state["parameters"].items():
            if name in self._parameters:
                self._parameters[name].load_state_dict(saved)
                self._ticking[name] = self._parameters[name]
            elif saved:
                raise ValueError(
                    f"the checkpoint holds a state of {name}, and this run has no such parameter; "
                    f"it has: {', '.join(sorted(self._parameters)) or 'none'}"
                )
        if same_job:
            self._lineage, self._unverified = lineage, unverified

    # Within.

    def _is_open(self, revision: int) -> bool:
        return revision in self._held or any(each.revision == revision for each in self._unverified)

    def _repeat_outcome(self, revision: int) -> bool:
        """Answer for a revision that is settled as before; False: it is not settled."""
        outcome = self._lineage.outcome(revision)
        if outcome is not None:
            self._outcomes.append(outcome)
            return True
        if self._lineage.knows(revision) and not self._is_open(revision):
            # Applied so long ago that nothing but that is kept: step and values are unknown.
            self._outcomes.append(
                session_pb2.UpdateOutcome(revision=revision, applied=update_pb2.Applied())
            )
            return True
        return False

    def _go_through_held(self, boundary: Boundary, now: int | None, *, last: bool) -> None:
        todo = self._held.take_all()
        try:
            while todo:
                held = todo.pop(0)
                if not self._settled_by_now(held, boundary, now, last=last):
                    self._held.put_back(held)
        finally:
            for held in todo:
                self._held.put_back(held)

    def _settled_by_now(
        self, held: Held, boundary: Boundary, now: int | None, *, last: bool
    ) -> bool:
        """Reject, expire or apply an update; False: its time has not come."""
        revision = held.update.revision
        refused = self._off or (held.changes if isinstance(held.changes, Refused) else None)
        if refused is not None:
            self._reject(held.update, refused, boundary, held.culprit)
        elif held.deadline is not None and now is not None and now >= held.deadline:
            self._expire(
                revision,
                update_pb2.EXPIRY_CAUSE_DEADLINE,
                f"its deadline passed before step {boundary.next_step}",
            )
        elif held.max_step is not None and boundary.next_step > held.max_step:
            self._expire(
                revision,
                update_pb2.EXPIRY_CAUSE_MAX_STEP,
                f"step {boundary.next_step} is next, and step {held.max_step} was the last that "
                "was allowed to be the first with the new values",
            )
        elif last or boundary.next_step < held.due_step:
            return False
        else:
            self._apply(held, boundary)
        return True

    def _apply(self, held: Held, boundary: Boundary) -> None:
        assert not isinstance(held.changes, Refused)
        revision = held.update.revision
        try:
            applied = apply_all(self._parameters, held.changes, boundary)
        except ChangeFailed as failed:
            self._reject(held.update, failed, boundary, failed.change.parameter)
            return
        except UndoError as error:
            self._reject(held.update, Refused("UNDO_FAILED", str(error)), boundary)
            raise
        self._lineage.in_force.add(revision)
        for each in applied:
            name = each.change.parameter
            self._ticking[name] = self._parameters[name]
        self._unverified.append(
            Unverified(
                outcome=session_pb2.UpdateOutcome(
                    revision=revision, applied=self._applied(applied, boundary)
                ),
                boundary=boundary,
                applied={each.change.parameter: each for each in applied},
                changes={each.parameter: each for each in held.update.spec.changes},
                undo=tuple(applied),
            )
        )

    def _applied(self, applied: Sequence[Applied], boundary: Boundary) -> update_pb2.Applied:
        message = update_pb2.Applied(
            step=boundary.next_step,
            transitions=convert.transitions_to_proto(applied),
            instance_id=self._instance_id,
        )
        message.apply_time.FromNanoseconds(self._wall_clock())
        return message

    def _verify(self, boundary: Boundary) -> None:
        """Report what the last step used as applied, or say what went wrong."""
        unverified, self._unverified = self._unverified, []
        used, self._used = self._used, {}
        # Later changes of a parameter at the same boundary went over the earlier ones, and what
        # they read back includes these: the last one stands for all.
        newest = {name: applied for each in unverified for name, applied in each.applied.items()}
        problems = {
            name: self._problem(name, applied, used.get(name), boundary)
            for name, applied in newest.items()
        }
        for each in unverified:
            self._moved.update(dict.fromkeys(each.applied))
            culprit = next((name for name in each.applied if problems[name]), None)
            if culprit is None:
                self._settle(each.outcome)
                continue
            self._lineage.in_force.discard(each.revision)
            failed = Refused(
                "VERIFICATION_FAILED",
                f"{culprit} was changed for step {each.boundary.next_step} and did not come out "
                f"as promised: {problems[culprit]}",
            )
            rejected = self._rejected(failed, each.applied, boundary, culprit)
            self._settle(session_pb2.UpdateOutcome(revision=each.revision, rejected=rejected))

    def _problem(
        self, name: str, applied: Applied, used: Reading | None, boundary: Boundary
    ) -> str | None:
        parameter = self._parameters.get(name)
        if parameter is None:
            return "this run has no such parameter any more"
        if used is None:
            return "the training loop did not say when the optimizer step ran"
        try:
            return parameter.verify(applied, used, boundary)
        except Exception as error:  # noqa: BLE001 - whatever it is, it was not confirmed
            return f"verifying it failed: {type(error).__name__}: {error}"

    def _readings(self, names: Iterable[str]) -> list[update_pb2.ParameterReading]:
        return [
            reading
            for name in names
            for reading in convert.readings_to_proto(name, self._reading(name))
        ]

    def _reading(self, name: str) -> Reading:
        try:
            return self._parameters[name].read()
        except Exception:  # noqa: BLE001 - unknown, or broken: what it is at is not known
            return Reading({})

    def _reject(
        self, update: update_pb2.Update, refused: Refused, boundary: Boundary, culprit: str = ""
    ) -> None:
        asked = dict.fromkeys(change.parameter for change in update.spec.changes)
        self._settle(
            session_pb2.UpdateOutcome(
                revision=update.revision,
                rejected=self._rejected(refused, asked, boundary, culprit),
            )
        )

    def _rejected(
        self, refused: Refused, names: Iterable[str], boundary: Boundary, culprit: str
    ) -> update_pb2.Rejected:
        return update_pb2.Rejected(
            reason=refused.reason,
            message=refused.message,
            parameter=culprit,
            in_force=self._readings(names),
            step=boundary.global_step,
        )

    def _expire(self, revision: int, cause: update_pb2.ExpiryCause.ValueType, message: str) -> None:
        self._settle(
            session_pb2.UpdateOutcome(
                revision=revision, expired=update_pb2.Expired(cause=cause, message=message)
            )
        )

    def _settle(self, outcome: session_pb2.UpdateOutcome) -> None:
        self._lineage.settle(outcome)
        self._outcomes.append(outcome)
