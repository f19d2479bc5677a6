"""What updates have put in force: from being applied to being confirmed, and for as long after."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from trainer_agent.ranks import Problem
from trainer_agent.steering import convert
from trainer_agent.steering.actions import ActionKind
from trainer_agent.steering.unverified import Unverified

if TYPE_CHECKING:
    from trainer_agent.parameters import Applied, Boundary, LiveParameter, Reading, Value
    from trainer_agent.steering.held import Held
    from trainer_agent.steering.lineage import Lineage
    from trainer_agent.steering.settling import Settlements

Vote = Callable[[Problem | None], Problem | None]


class InForce:
    """The updates that were applied.

    Args:
        parameters: The live parameters, by name.
        settled: Takes their outcomes.
        instance_id: Names this training process in them.
        vote: Finds out whether all ranks could do what this one could.
        wall_clock: Nanoseconds since 1970 UTC.
    """

    def __init__(
        self,
        parameters: Mapping[str, LiveParameter],
        settled: Settlements,
        instance_id: str,
        vote: Vote,
        wall_clock: Callable[[], int],
    ) -> None:
        self._parameters = parameters
        self._settled = settled
        self._instance_id = instance_id
        self._vote = vote
        self._wall_clock = wall_clock
        self.unverified: list[Unverified] = []
        """What was applied and no step has confirmed, in order; not to be changed from outside."""
        self._acting: list[Unverified] = []
        self._used: dict[str, Reading] = {}
        self.ticking: dict[str, LiveParameter] = {}
        """What may vary with time: what was once changed. Not to be changed from outside."""
        self.moved: dict[str, None] = {}
        """Parameters that updates have moved since the readings were last taken."""

    def __iter__(self) -> Iterator[Unverified]:
        """Return the updates whose outcome is still to come."""
        yield from self.unverified
        yield from self._acting

    def waits_for(self, revision: int) -> bool:
        """Say whether an update was applied and its outcome is still to come."""
        return any(each.revision == revision for each in self)

    # At a boundary.

    def intact(self) -> set[str]:
        """Return the parameters that are as the updates have left them that no step has used."""
        newest = {name: each for entry in self.unverified for name, each in entry.applied.items()}
        return {name for name, each in newest.items() if self._now(name) == each.new.by_group}

    def add(
        self,
        held: Held,
        applied: Sequence[Applied],
        boundary: Boundary,
        intact: Collection[str] = (),
    ) -> Unverified:
        """Note that an update was applied here; its action, if any, is still to be carried out.

        Args:
            held: The update.
            applied: What it changed.
            boundary: Where the run stands.
            intact: What ``intact`` returned before: if it is otherwise now, this update did that.
        """
        update = held.update
        message = update_pb2.Applied(
            step=boundary.next_step,
            transitions=convert.transitions_to_proto(applied),
            instance_id=self._instance_id,
            action_result=held.result,
        )
        message.apply_time.FromNanoseconds(self._wall_clock())
        entry = Unverified(
            outcome=session_pb2.UpdateOutcome(revision=update.revision, applied=message),
            boundary=boundary,
            applied={each.change.parameter: each for each in applied},
            undo=tuple(applied),
            request_id=update.request_id,
            waits_for=held.action,
        )
        if update.revision:
            self._settled.lineage.in_force.add(update.revision)
        for name in entry.applied:
            self.ticking[name] = self._parameters[name]
        if applied:
            self.unverified.append(entry)
            self._read_back({*intact, *entry.applied})
        elif held.action is not None:
            self._acting.append(entry)
        else:
            self._settled.settle(entry.outcome, entry.request_id)
        return entry

    def step_used(self) -> None:
        """Note what the step that has just run used; waits for an accelerator where it has to."""
        if self.unverified:
            names = {name for each in self.unverified for name in each.applied}
            self._used = {
                name: self._parameters[name].read(synchronise=True)
                for name in names
                if name in self._parameters
            }

    def step_ran(self, boundary: Boundary, *, tick: bool) -> None:
        """Report what the step before this boundary was the first to use, or say what went wrong.

        Does nothing at a boundary where that was done.

        Args:
            boundary: Where the run stands.
            tick: Move what varies with time.
        """
        if self.unverified and self.unverified[0].boundary.global_step < boundary.global_step:
            self._verify(boundary)
        if tick and self.ticking:
            for parameter in self.ticking.values():
                parameter.tick(boundary)

    def action_done(self, kind: ActionKind, result: update_pb2.ActionResult) -> None:
        """Take what an action led to."""
        for each in list(self):
            if each.waits_for is not kind:
                continue
            each.waits_for = None
            each.outcome.applied.action_result.CopyFrom(result)
            if each in self._acting:
                self._acting.remove(each)
                self._settled.settle(each.outcome, each.request_id)

    def revision_given(self, update: update_pb2.Update) -> None:
        """Take the revision that the control plane has given to what this process did by itself."""
        for each in self:
            if each.request_id == update.request_id:
                each.outcome.revision = update.revision
        self._settled.revision_given(update)

    def take_unused(self) -> list[Unverified]:
        """Return what was applied and no step has used, and hold it in force no more.

        Whoever calls has to take the changes back and to settle the updates.
        """
        unused, self.unverified = self.unverified, []
        for each in unused:
            self._forget(each)
        return unused

    def give_up_actions(self, boundary: Boundary) -> None:
        """Settle the updates whose action never was done, as no step follows."""
        acting, self._acting = self._acting, []
        for each in acting:
            if each.applied:  # in force; what the action led to is not known
                self._settled.settle(each.outcome, each.request_id)
                continue
            self._forget(each)
            problem = Problem(
                "ACTION_NOT_CARRIED_OUT",
                f"training ended at step {boundary.global_step}, before {each.waits_for} was done",
            )
            update = update_pb2.Update(revision=each.revision, request_id=each.request_id)
            self._settled.reject(update, problem, boundary, ())

    # In the checkpoint.

    def state_dict(self) -> list[dict[str, Any]]:
        """Return, as JSON, the updates whose outcome is still to come."""
        return [each.to_json() for each in self]

    def load_state_dict(
        self, state: Sequence[Mapping[str, Any]], lineage: Lineage, checkpoint: str
    ) -> None:
        """Go on from a saved state.

        Args:
            state: What ``state_dict`` returned.
            lineage: That of the checkpoint, taken over.
            checkpoint: Path of the checkpoint, which some of the actions were to save.

        Raises:
            ValueError: It is something else; nothing changed.
        """
        entries = [Unverified.from_json(each) for each in state]
        self._settled.lineage = lineage
        self.unverified = [each for each in entries if each.applied]
        for each in entries:
            saved = each.waits_for in {ActionKind.SAVE_CHECKPOINT, ActionKind.STOP}
            if saved:
                each.outcome.applied.action_result.checkpoint = checkpoint
            if each.applied:
                each.waits_for = None
            elif saved:
                self._settled.settle(each.outcome, each.request_id)
            else:
                each.waits_for = each.waits_for or ActionKind.EVALUATE
                self._acting.append(each)
        if self._acting:
            self.give_up_actions(self._acting[0].boundary)

    def follow(self, name: str) -> None:
        """Note that a parameter was changed before, and may vary with time."""
        self.ticking[name] = self._parameters[name]

    # Within.

    def _now(self, name: str) -> Mapping[str, Value | None] | None:
        parameter = self._parameters.get(name)
        try:
            return None if parameter is None else parameter.read().by_group
        except Exception:  # noqa: BLE001 - it is read again for its verification, which fails then
            return None

    def _read_back(self, names: Collection[str]) -> None:
        """Expect of the next step what is in force after the last change.

        Two names may stand for one thing, as those of the accumulation do: the later change then
        went over the earlier one, which was applied all the same.
        """
        for name in names:
            now = self._now(name)
            for entry in self.unverified:
                each = entry.applied.get(name)
                # A group that is gone, or all of them, is a deviation, and nothing to expect.
                if each is not None and now is not None and now.keys() == each.new.by_group.keys():
                    entry.applied[name] = replace(each, new=replace(each.new, by_group=now))

    def _verify(self, boundary: Boundary) -> None:
        unverified, self.unverified = self.unverified, []
        used, self._used = self._used, {}
        # Later changes of a parameter at the same boundary went over the earlier ones, and what
        # they read back includes these: the last one stands for all.
        newest = {name: applied for each in unverified for name, applied in each.applied.items()}
        found = {
            name: self._wrong(name, applied, used.get(name), boundary)
            for name, applied in newest.items()
        }
        for each in unverified:
            self.moved.update(dict.fromkeys(each.applied))
            problem = self._vote(
                next(
                    (
                        Problem(
                            "VERIFICATION_FAILED",
                            f"{name} was changed for step {each.boundary.next_step} and did not "
                            f"come out as promised: {found[name]}",
                            name,
                        )
                        for name in each.applied
                        if found[name]
                    ),
                    None,
                )
            )
            if problem is not None:
                self._forget(each)
                update = update_pb2.Update(revision=each.revision, request_id=each.request_id)
                self._settled.reject(update, problem, boundary, each.applied)
            elif each.waits_for is not None:
                self._acting.append(each)
            else:
                self._settled.settle(each.outcome, each.request_id)

    def _wrong(
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

    def _forget(self, entry: Unverified) -> None:
        """Note that an update is in force no more."""
        self._settled.lineage.in_force.discard(entry.revision)
