"""Applies updates at step boundaries and says truthfully how each ended.

Knows neither a transport nor a training framework, and looks at no clock to decide anything:
whoever runs the loop hands in what arrived and says when an optimizer step has run and when a
boundary is reached, does what ``actions`` wants, and takes the outcomes away. Of several ranks
every one has a controller, and all of them come to the same.

An update's way through here: ``deliver`` holds it; ``at_boundary`` applies it when it is due, all
its changes or none, and begins its action; ``optimizer_stepped`` reads what the step after that
used; the next ``at_boundary`` verifies it; ``action_done`` says what the action led to. Only when
all of it is known is it reported as applied.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from grpc_runtime.failpoints import reached
from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import parameter_pb2, update_pb2
from trainer_agent.parameters import (
    Boundary,
    GuardRails,
    LiveParameter,
    Refused,
)
from trainer_agent.ranks import Alone, Problem, Ranks
from trainer_agent.steering import convert
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.applying import Applier, too_late
from trainer_agent.steering.due import DueUpdates
from trainer_agent.steering.going_back import GoingBack
from trainer_agent.steering.held import Held, HeldUpdates
from trainer_agent.steering.in_force import InForce
from trainer_agent.steering.lineage import Lineage
from trainer_agent.steering.settling import Settlements

if TYPE_CHECKING:
    from midcourse.link.v1 import link_pb2
    from trainer_agent.steering.protection import Protection

STATE_VERSION = 2


class ParameterController:
    """The updates of one training process, on one of its ranks.

    Not for use from several threads.

    Args:
        parameters: What can be changed live, by name.
        instance_id: Names this training process in what it reports.
        actions: What can be done besides; None: nothing.
        guard_rails: The owner's limits, by parameter.
        protection: What is done by itself; None: nothing.
        ranks: The ranks of the run; None: this is the only one.
        wall_clock: Nanoseconds since 1970 UTC, for what is reported.
    """

    def __init__(
        self,
        parameters: Mapping[str, LiveParameter],
        instance_id: str,
        *,
        actions: Actions | None = None,
        guard_rails: Mapping[str, GuardRails] | None = None,
        protection: Protection | None = None,
        ranks: Ranks | None = None,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._parameters = dict(parameters)
        self.actions = actions or Actions()
        """What can be done besides, and what of it is under way."""
        self._protection = protection
        self._settled = Settlements(self._parameters, instance_id)
        self._applier = Applier(
            self._parameters,
            guard_rails or {},
            self.actions,
            ranks or Alone(),
            self._settled,
        )
        self._in_force = InForce(
            self._parameters, self._settled, instance_id, self._applier.vote, wall_clock
        )
        self._held = HeldUpdates()
        self._due = DueUpdates(self._held, self._applier, self._in_force, self._settled)
        self.going_back = GoingBack(self._applier, self._due, self._in_force, self._settled)
        """The run's way back to a checkpoint."""
        self._alarm: link_pb2.LossAlarm | None = None
        self.stop_asked = False
        """Whether a rank was asked to stop, and all know."""
        self._several = ranks is not None and ranks.size > 1

    @property
    def asks(self) -> bool:
        """Whether the loop has to do something besides training."""
        actions = self.actions
        return actions.paused or bool(actions.wanted) or self._applier.roll_back is not None

    # What arrives.

    def deliver(self, update: update_pb2.Update, deadline: int | None = None) -> None:
        """Take an update. One that is settled already is answered again, one that is held is not.

        Args:
            update: The update.
            deadline: Moment from which on it must not be applied any more, as ``overdue`` counts;
                None: no limit.
        """
        revision, settled = update.revision, self._settled
        if self._is_open(revision) or settled.repeat(revision):
            return
        if update.request_id in settled.local:
            self._in_force.revision_given(update)
        elif update.state == update_pb2.UPDATE_STATE_APPLIED and not update.spec.changes:
            # An action, done before the run went back to where it is: not to be done again.
            settled.settle(session_pb2.UpdateOutcome(revision=revision, applied=update.applied))
        else:
            held = Held.of(update, deadline)
            try:
                # What a run offers does not change. Of several ranks each may offer something
                # else, and all have to come to the same once it is due.
                if held.action is not None and not self._several:
                    self.actions.check(held.action)
            except Refused as refused:
                held = replace(held, refused=refused)
            self._held.add(held)

    def withdraw(self, revision: int) -> None:
        """Give an update up if it is not in force yet; the outcome says what became of it."""
        if self._in_force.waits_for(revision):
            return  # its outcome is about to follow
        if not self._settled.repeat(revision):
            self._held.discard(revision)
            # Also where it was never seen: should it still arrive, it must not be applied.
            self._settled.withdrawn(revision)

    def overdue(self, nanos: int) -> Iterable[int]:
        """Return the held updates whose deadline has passed at this moment.

        To be asked on the first rank alone; what is to become of them all ranks are told.
        """
        return self._held.overdue(nanos)

    def deadline_passed(self, revision: int, boundary: Boundary) -> None:
        """Let an update expire, unless it is in force or settled."""
        if self._held.discard(revision) is not None:
            self._settled.expire(
                revision,
                update_pb2.EXPIRY_CAUSE_DEADLINE,
                f"its deadline passed before step {boundary.next_step}",
            )

    def acknowledge(self, revisions: Iterable[int]) -> None:
        """Note that the outcomes of these revisions are on disk elsewhere."""
        reached("trainer.acknowledge")
        self._settled.lineage.acknowledge(revisions)
        reached("trainer.acknowledged")

    def alarm(self, alarm: link_pb2.LossAlarm) -> None:
        """Have the run protected at the boundary that is reached now, where it is to be."""
        if self._alarm is None and not self.actions.paused:
            self._alarm = alarm

    def stop(self) -> None:
        """Have the run end at the boundary that is reached now, with a checkpoint."""
        self.stop_asked = True

    # What the loop does.

    @property
    def ticking(self) -> Mapping[str, LiveParameter]:
        """What ``tick`` moves; always the same object, whatever is in it."""
        return self._in_force.ticking

    def optimizer_stepped(self) -> None:
        """Note what the step that has just run used. To be called before any schedule goes on.

        Reads a value from an accelerator only where an update has yet to be verified.
        """
        self._in_force.step_used()

    @property
    def idle_until(self) -> int:
        """The first step after which there may be something to do here, as far as is known now.

        0: after the next one. Until then ``tick`` will do. What arrives changes it, a deadline that
        passes, and what the loop is asked to do.
        """
        if self._in_force.unverified or self._alarm is not None or self.stop_asked:
            return 0
        return max(self._held.wake_step - 1, 0)

    def tick(self, boundary: Boundary) -> None:
        """Move what varies with time, at a boundary where nothing else is to be done."""
        self._in_force.step_ran(boundary, tick=self._due.off is None)

    def at_boundary(self, boundary: Boundary, *, last: bool = False, begun: bool = False) -> None:
        """Verify what the last step used, move what varies with time, apply what is due.

        May be called again at the same boundary, as long as the run is held there.

        Args:
            boundary: Where the run stands.
            last: No step follows, so that nothing can come into force any more.
            begun: The next step has begun: it is finished whatever comes, and uses what is in
                force. A stop comes after it.
        """
        in_force = self._in_force
        wakes = boundary.next_step >= self._held.wake_step
        self.tick(boundary)
        if self._alarm is not None:
            alarm, self._alarm = self._alarm, None
            ends = last or self._applier.ending
            if self._protection is not None and not ends and self._due.off is None:
                done = self._applier.protect(self._protection, alarm, boundary, in_force)
                self._due.supersede(done, boundary)
        if self.stop_asked and not self.actions.stopping:
            self._applier.stop(boundary, in_force, begun=begun)
        if wakes:
            self._due.go_through(boundary, last=last, begun=begun)

    def action_done(self, kind: ActionKind, result: update_pb2.ActionResult) -> None:
        """Take what an action led to that the loop has carried out."""
        self.actions.done(kind)
        self._in_force.action_done(kind, result)

    def finish(self, boundary: Boundary) -> None:
        """End: what no step has used is taken back, and whatever is open is settled.

        Raises:
            UndoError: A parameter could not be taken back. All is settled nevertheless, as no
                step uses it.
        """
        self._in_force.step_ran(boundary, tick=False)
        self._in_force.give_up_actions(boundary)
        waiting = self._held.take_all()
        try:
            self._applier.take_back_unused(boundary, self._in_force)
        finally:
            for held in waiting:
                update = held.update
                cause = update_pb2.EXPIRY_CAUSE_JOB_ENDED
                self._settled.expire(update.revision, cause, too_late(boundary), update.request_id)

    def switch_off(self, reason: str, message: str) -> None:
        """Stop steering: from the next boundary on every open or new update is rejected.

        Args:
            reason: UPPER_SNAKE_CASE.
            message: What happened and what to do, in words.
        """
        self._due.off = Problem(reason, message)
        self.actions.give_up()
        self._held.wake_at_once()

    def veto(self, reason: str, message: str) -> None:
        """Have whatever comes until all ranks have switched off come to nothing on each of them."""
        self._applier.veto(Problem(reason, message))

    def detach(self) -> None:
        """Leave every value as it is and let go of what was followed for it."""
        for parameter in self._parameters.values():
            parameter.detach()

    # What there is to tell.

    @property
    def has_news(self) -> bool:
        """Whether there are outcomes, local updates or moved readings to take."""
        return bool(self._in_force.moved) or self._settled.has_news

    @property
    def has_deadlines(self) -> bool:
        """Whether ``overdue`` could have something to return."""
        return self._held.first_deadline is not None

    def take_outcomes(self) -> list[session_pb2.UpdateOutcome]:
        """Return the outcomes since the last call, in order."""
        return self._settled.take()

    def take_local_updates(self) -> list[session_pb2.LocalUpdate]:
        """Return what was done by itself since the last call."""
        return self._settled.local.take_untold()

    def take_faults(self) -> list[session_pb2.Fault]:
        """Return what has gone wrong since the last call and does not end steering."""
        lost = self._settled.local.take_lost()
        return [session_pb2.Fault(component="local_updates", message=lost)] if lost else []

    def take_moved_readings(self) -> list[update_pb2.ParameterReading]:
        """Return the values now in force of what updates have moved since the last call."""
        moved, self._in_force.moved = self._in_force.moved, {}
        return self._settled.readings(moved)

    def full_state(self) -> session_pb2.FullState:
        """Return what can be changed and done, and what is in force, held and settled."""
        return session_pb2.FullState(
            parameters=self.specs(),
            actions=() if self._due.off else self.actions.offered(),
            in_force=self.in_force(),
            held=self.unsettled(),
            outcomes=self.unacknowledged(),
            local_updates=self._settled.local.all(),
            newest_revision=max(self._settled.lineage.newest, *self.unsettled(), 0),
        )

    def in_force(self) -> list[session_pb2.RevisionRange]:
        """Return every revision in force."""
        return [
            session_pb2.RevisionRange(first=first, last=last)
            for first, last in self._settled.lineage.in_force
        ]

    @property
    def has_unsettled(self) -> bool:
        """Whether ``unsettled`` has something to return, or what was done by itself is open."""
        return len(self._held) > 0 or any(True for _ in self._in_force)

    def unsettled(self) -> list[int]:
        """Return the revisions whose outcome is still to come.

        They are held for a later step, or in force and not verified yet.
        """
        return sorted({*self._held, *(each.revision for each in self._in_force)} - {0})

    def unacknowledged(self) -> list[session_pb2.UpdateOutcome]:
        """Return the outcomes that nobody has confirmed to have on disk."""
        return self._settled.lineage.unacknowledged()

    def specs(self) -> list[parameter_pb2.ParameterSpec]:
        """Return what can be changed live, with the values in force and the owner's limits."""
        why = None if self._due.off is None else self._due.off.message
        return [
            convert.spec_to_proto(replace(each.spec(), guard_rails=self._applier.rails(name)), why)
            for name, each in self._parameters.items()
        ]

    # What rides in the checkpoint.

    def state_dict(self) -> dict[str, Any]:
        """Return, as JSON, what a resumed run needs.

        Updates held for later steps are not part of it: whether they still stand by then is for
        the control plane to say, which delivers them again. Neither is a pause.

        Raises:
            TypeError: A parameter of the script's own has a value that JSON does not know, with
                which the framework could not save its checkpoint.
        """
        reached("trainer.checkpoint")
        state = {
            "version": STATE_VERSION,
            "lineage": self._settled.lineage.state_dict(),
            "unverified": self._in_force.state_dict(),
            "local": self._settled.local.state_dict(),
            "parameters": {name: each.state_dict() for name, each in self._parameters.items()},
        }
        reached("trainer.checkpointed")
        # Of plain types alone: torch.load(weights_only=True) takes no others, such as enums.
        return cast("dict[str, Any]", json.loads(json.dumps(state)))

    def load_state_dict(
        self, state: Mapping[str, Any], *, same_job: bool = True, checkpoint: str = ""
    ) -> None:
        """Go on from a saved state, after the training framework has loaded its own.

        Args:
            state: What ``state_dict`` returned.
            same_job: The revisions in it are this job's; if not, only values are taken over.
            checkpoint: Path of the checkpoint that it rode in; empty: not known.

        Raises:
            ValueError: The state does not fit this run.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the saved state has version {state.get('version')!r}, and this is version "
                f"{STATE_VERSION}"
            )
        lineage = Lineage.from_state_dict(state["lineage"])
        stored = state["parameters"]
        for name, saved in stored.items():
            if saved and name not in self._parameters:
                raise ValueError(
                    f"the checkpoint holds a state of {name}, and this run has no such parameter; "
                    f"it has: {', '.join(sorted(self._parameters)) or 'none'}"
                )
        # In the order in which they were found, as some lie over others: a checkpoint's is by name.
        for name, parameter in self._parameters.items():
            if name in stored:
                parameter.load_state_dict(stored[name])
                self._in_force.follow(name)
        if same_job:
            self._settled.local.load_state_dict(state["local"])
            self._in_force.load_state_dict(state["unverified"], lineage, checkpoint)

    # Within.

    def _is_open(self, revision: int) -> bool:
        return revision > 0 and (revision in self._held or self._in_force.waits_for(revision))
