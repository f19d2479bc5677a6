"""How updates ended: what is remembered of it, and what is still to be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from trainer_agent.parameters import Boundary, LiveParameter, Reading
from trainer_agent.steering import convert
from trainer_agent.steering.lineage import Lineage
from trainer_agent.steering.local_updates import LocalUpdates

if TYPE_CHECKING:
    from trainer_agent.ranks import Problem


class Settlements:
    """The outcomes of a training process's updates.

    Args:
        parameters: The live parameters, by name; for the values in force.
        instance_id: Names the training process.
    """

    def __init__(self, parameters: Mapping[str, LiveParameter], instance_id: str) -> None:
        self._parameters = parameters
        self.lineage = Lineage()
        self.local = LocalUpdates(instance_id)
        self._untold: list[session_pb2.UpdateOutcome] = []

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._untold) or self.local.has_news

    def take(self) -> list[session_pb2.UpdateOutcome]:
        """Return the outcomes since the last call, in order."""
        untold, self._untold = self._untold, []
        return untold

    def repeat(self, revision: int) -> bool:
        """Tell once more how an update ended; False: nothing is known of it."""
        outcome = self.lineage.outcome(revision)
        if outcome is None:
            if revision not in self.lineage.in_force:
                return False
            # Applied so long ago that nothing but that is kept: step and values are unknown.
            outcome = session_pb2.UpdateOutcome(revision=revision, applied=update_pb2.Applied())
        self._untold.append(outcome)
        return True

    def settle(self, outcome: session_pb2.UpdateOutcome, request_id: str = "") -> None:
        """Record how an update ended.

        Args:
            outcome: How.
            request_id: By which it is known, should this process have made it by itself.
        """
        told: session_pb2.UpdateOutcome | None = outcome
        if request_id in self.local:
            told = self.local.settle(request_id, outcome)
        if told is not None:
            self._tell(told)

    def revision_given(self, update: update_pb2.Update) -> None:
        """Take the revision that the control plane has given to a local update."""
        superseded = self.local.is_superseded(update.request_id)
        told = self.local.deliver(update)
        if told is None:
            self.lineage.in_force.add(update.revision)
        else:
            self._tell(told, superseded=superseded)

    def _tell(self, outcome: session_pb2.UpdateOutcome, *, superseded: bool = False) -> None:
        self.lineage.settle(outcome, superseded=superseded)
        self._untold.append(outcome)

    def take_over(self, outcomes: Iterable[session_pb2.UpdateOutcome]) -> None:
        """Tell how updates ended in a process that went back to before what is gone on from here.

        What the checkpoint contains is told by itself; of the rest nothing is in force.
        """
        for outcome in outcomes:
            if not self.lineage.knows(outcome.revision):
                outcome.rolled_back = outcome.HasField("applied")
                self._tell(outcome, superseded=True)

    def reject(
        self, update: update_pb2.Update, problem: Problem, boundary: Boundary, names: Iterable[str]
    ) -> None:
        """Record that an update was not applied.

        Args:
            update: The update.
            problem: Why.
            boundary: Where the run stands.
            names: The parameters whose values in force the caller has to know.
        """
        rejected = update_pb2.Rejected(
            reason=problem.reason,
            message=problem.message,
            parameter=problem.parameter,
            in_force=self.readings(names),
            step=boundary.global_step,
        )
        self.settle(
            session_pb2.UpdateOutcome(revision=update.revision, rejected=rejected),
            update.request_id,
        )

    def expire(
        self,
        revision: int,
        cause: update_pb2.ExpiryCause.ValueType,
        message: str,
        request_id: str = "",
    ) -> None:
        """Record that an update was not applied in time."""
        expired = update_pb2.Expired(cause=cause, message=message)
        self.settle(session_pb2.UpdateOutcome(revision=revision, expired=expired), request_id)

    def withdrawn(self, revision: int) -> None:
        """Record that an update was given up."""
        outcome = session_pb2.UpdateOutcome(revision=revision)
        outcome.withdrawn.SetInParent()
        self.settle(outcome)

    def readings(self, names: Iterable[str]) -> list[update_pb2.ParameterReading]:
        """Return the values in force; of what is unknown or broken, nothing."""
        return [
            reading
            for name in names
            for reading in convert.readings_to_proto(name, self._reading(name))
        ]

    def _reading(self, name: str) -> Reading:
        try:
            return self._parameters[name].read()
        except Exception:  # noqa: BLE001 - what it is at is not known, which is what is said
            return Reading({})
