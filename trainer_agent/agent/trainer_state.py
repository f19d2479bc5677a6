"""The trainer's full state, kept up with what the trainer says after its hello."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2
from trainer_agent.steering.lineage import RevisionSet

if TYPE_CHECKING:
    from midcourse.link.v1 import link_pb2


class TrainerState:
    """What a training process is and stands at, as far as it has said.

    Outcomes and local updates are left out: they are kept until the control plane has them,
    elsewhere.
    """

    def __init__(self, state: session_pb2.FullState) -> None:
        """Begins with what a hello says."""
        self._state = session_pb2.FullState()
        self._in_force = RevisionSet()
        self._held: set[int] = set()
        self.replace(state)

    @property
    def progress(self) -> job_pb2.Progress:
        """How far training has come; belongs to this object."""
        return self._state.progress

    @property
    def phase(self) -> session_pb2.TrainerPhase.ValueType:
        """What the trainer is doing, by its own words."""
        return self._state.phase

    def replace(self, state: session_pb2.FullState) -> bool:
        """Takes full state anew; returns whether other than before can be changed or done."""
        before = self._offer()
        self._state.CopyFrom(state)
        self._state.ClearField("outcomes")
        self._state.ClearField("local_updates")
        self._in_force = RevisionSet.covering((each.first, each.last) for each in state.in_force)
        self._held = set(state.held)
        return self._offer() != before

    def step(self, report: link_pb2.StepReport) -> bool:
        """Takes a step.

        Returns:
            Whether it is news. Reports that waited in the trainer while a newer full state
            overtook them are not; their metrics are.
        """
        progress = self._state.progress
        # What is logged at the step of a pause is no sign of its end.
        if report.step > progress.step or self.phase != session_pb2.TRAINER_PHASE_PAUSED:
            phase = session_pb2.TRAINER_PHASE_TRAINING
        else:
            phase = self.phase
        if report.step < progress.step and not report.HasField("progress"):
            return False
        if report.HasField("progress"):
            if report.progress.step < progress.step and report.step < progress.step:
                return False
            progress.MergeFrom(report.progress)
        progress.step = report.step
        self._state.phase = phase
        if report.HasField("epoch"):
            progress.epoch = report.epoch
        if report.HasField("max_steps"):
            progress.max_steps = report.max_steps
        if report.time_nanos:
            progress.step_time.FromNanoseconds(report.time_nanos)
        self._read(report.readings)
        return True

    def outcome(self, outcome: session_pb2.UpdateOutcome) -> None:
        """Takes how an update ended, in this process or in one before it."""
        self._held.discard(outcome.revision)
        # What a roll back took away is told all the same, where nobody has heard of it yet.
        if outcome.HasField("applied") and not outcome.rolled_back:
            self._in_force.add(outcome.revision)
            self._read(
                update_pb2.ParameterReading(
                    parameter=transition.parameter,
                    group=transition.group,
                    value=transition.new_value,
                )
                for transition in outcome.applied.transitions
                if transition.HasField("new_value")
            )

    def full(
        self,
        outcomes: Iterable[session_pb2.UpdateOutcome],
        local_updates: Iterable[session_pb2.LocalUpdate],
    ) -> session_pb2.FullState:
        """Returns full state with these outcomes and local updates."""
        state = session_pb2.FullState()
        state.CopyFrom(self._state)
        del state.in_force[:]
        for first, last in self._in_force:
            state.in_force.add(first=first, last=last)
        state.held[:] = sorted(self._held)
        state.outcomes.extend(outcomes)
        state.local_updates.extend(local_updates)
        return state

    def _offer(self) -> session_pb2.FullState:
        """Returns what can be changed and done, whatever the values in force are."""
        offer = session_pb2.FullState(
            parameters=self._state.parameters, actions=self._state.actions
        )
        for spec in offer.parameters:
            spec.ClearField("current_value")
        return offer

    def _read(self, readings: Iterable[update_pb2.ParameterReading]) -> None:
        for reading in readings:
            # A declaration has one value; that of a group is not it.
            spec = None if reading.group else self._spec(reading.parameter)
            if spec is not None and reading.HasField("value"):
                spec.current_value.CopyFrom(reading.value)

    def _spec(self, name: str) -> parameter_pb2.ParameterSpec | None:
        return next((spec for spec in self._state.parameters if spec.name == name), None)
