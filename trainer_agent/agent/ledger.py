"""What the agent knows of its trainer, and what it owes the control plane.

Pure: no I/O, no clock of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Final

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import job_pb2, update_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.agent.local_updates import LocalUpdates
from trainer_agent.agent.pace import Pace
from trainer_agent.agent.samples import DEFAULT_LIMIT, SampleBuffer
from trainer_agent.agent.trainer_state import TrainerState
from trainer_agent.agent.unacknowledged import Unacknowledged

PROTOCOL_VERSION: Final = 1
"""Version of the session protocol."""

_RESTING: Final = (session_pb2.TRAINER_PHASE_PAUSED, session_pb2.TRAINER_PHASE_FINISHED)
_OF_PACE: Final = 0  # key of the one event that tells of stalling or recovering
_SETTLED_REMEMBERED: Final = 10_000
_SAMPLE_BYTES: Final = 64  # of one sample in a heartbeat, its share of the name included


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """Who this agent is.

    Attributes:
        agent_id: New for every start of an agent.
        version: Version of its software.
        host: Host name.
    """

    agent_id: str
    version: str
    host: str


class Ledger:
    """One training process in the eyes of its agent.

    Attributes:
        pace: Step times.
        urgent: Something happened that must not wait for the next heartbeat; reset by
            :meth:`heartbeat`.
        offers_anew: Other than what the control plane was told can be changed or done; reset by
            :meth:`full_state`.
    """

    def __init__(
        self, hello: link_pb2.TrainerHello, now: float, *, sample_limit: int = DEFAULT_LIMIT
    ) -> None:
        """Begins with a training process's first hello, at ``now`` of the monotonic clock."""
        self._hello = link_pb2.TrainerHello()
        self._hello.CopyFrom(hello)
        self._hello.ClearField("state")
        self._state = TrainerState(hello.state)
        self._samples = SampleBuffer(sample_limit)
        self._outcomes: Unacknowledged[int, session_pb2.UpdateOutcome] = Unacknowledged()
        self._events: Unacknowledged[int, session_pb2.TrainerEvent] = Unacknowledged()
        self._event_numbers = count(1)
        self._settled: dict[int, session_pb2.UpdateOutcome] = {}
        self._stored: set[int] = set()
        self._readings: Unacknowledged[tuple[str, str], update_pb2.ParameterReading] = (
            Unacknowledged()
        )
        self._locals = LocalUpdates()
        self._non_finite: set[str] = set()
        self._ending: session_pb2.TrainerPhase.ValueType | None = None
        self._stalled = False
        self._epoch = 0
        self._acknowledged_sequence = 0
        self._max_samples = 1
        self.pace = Pace(now)
        self.urgent = False
        self.offers_anew = False
        self._keep(hello.state.outcomes)
        for local in hello.state.local_updates:
            self._locals.take(local)

    # --------------------------------------------------------------------- what the trainer says

    @property
    def instance_id(self) -> str:
        """The training process."""
        return self._hello.instance_id

    @property
    def phase(self) -> session_pb2.TrainerPhase.ValueType:
        """What the trainer is doing, as far as is known."""
        if self._ending is not None:
            return self._ending
        return session_pb2.TRAINER_PHASE_STALLED if self._stalled else self._state.phase

    @property
    def may_stall(self) -> bool:
        """Tells whether the absence of steps would be news."""
        return self._ending is None and not self._stalled and self._state.phase not in _RESTING

    @property
    def _paused(self) -> bool:
        return self._state.phase == session_pb2.TRAINER_PHASE_PAUSED

    def trainer_returned(self, hello: link_pb2.TrainerHello, now: float) -> list[int]:
        """Takes the hello of the same training process over a new connection.

        Returns:
            Revisions whose outcomes the trainer need not keep: they are on disk.
        """
        return self._replace(hello.state, now)

    def state(self, state: session_pb2.FullState, now: float) -> list[int]:
        """Takes full state anew; returns what :meth:`trainer_returned` does."""
        stored = self._replace(state, now)
        self.pace.rest(now)
        self.urgent = True
        return stored

    def local_update(self, local: session_pb2.LocalUpdate) -> None:
        """Takes what the training process has changed by itself."""
        if self._locals.take(local):
            self.urgent = True

    def step(self, report: link_pb2.StepReport, now: float) -> None:
        """Takes a step, and whatever was measured at it."""
        was_paused = self._paused
        if self._state.step(report):
            for reading in report.readings:
                self._readings.owe((reading.parameter, reading.group), reading)
        if self._stalled:
            self._stalled = False
            recovered = session_pb2.Recovered(step=report.step)
            self._event(report.time_nanos, recovered=recovered)
        if was_paused and not self._paused:
            # The pause ended without a word: what of the time was the step's is not known.
            self.pace.resume(now)
        self.pace.step(report.step, now)
        measured_at = report.metrics_step if report.HasField("metrics_step") else report.step
        pairs = list(zip(report.names, report.values, strict=False))
        self._samples.add(
            measured_at,
            report.time_nanos // 1000,
            [name for name, _ in pairs],
            [value for _, value in pairs],
        )
        for name, value in pairs:
            if math.isfinite(value):
                self._non_finite.discard(name)
            elif name not in self._non_finite:
                self._non_finite.add(name)
                self.urgent = True  # once, not at every step of a run that has diverged

    def outcome(self, outcome: session_pb2.UpdateOutcome) -> list[int]:
        """Takes how an update ended; returns what :meth:`trainer_returned` does."""
        self._state.outcome(outcome)
        return self._keep([outcome])

    def fault(self, fault: session_pb2.Fault, time_nanos: int) -> None:
        """Takes a failure of our own code in the training process."""
        self._event(time_nanos, fault=fault)

    def finished(self, finished: session_pb2.TrainingFinished, time_nanos: int) -> None:
        """Takes the end of training."""
        self._ending = session_pb2.TRAINER_PHASE_FINISHED
        self._event(time_nanos, finished=finished)

    # ------------------------------------------------------------------- what the agent notices

    def stalled(self, idle: float, time_nanos: int) -> None:
        """Notes that there has been no step for ``idle`` seconds, which is long."""
        self._stalled = True
        stalled = session_pb2.Stalled(step=self._state.progress.step)
        stalled.idle.FromNanoseconds(round(idle * 1e9))
        self._event(time_nanos, stalled=stalled)

    def exited(self, trainer_exit: job_pb2.TrainerExit, time_nanos: int) -> None:
        """Notes that the training process is gone."""
        if self._ending != session_pb2.TRAINER_PHASE_FINISHED:
            self._ending = session_pb2.TRAINER_PHASE_EXITED
        trainer_exit.time.FromNanoseconds(time_nanos)
        self._event(time_nanos, exited=trainer_exit)

    def outcome_of(self, revision: int) -> session_pb2.UpdateOutcome | None:
        """Returns how an update ended; None: not known here."""
        return self._settled.get(revision)

    # ------------------------------------------------------------ what the control plane is told

    @property
    def owes_nothing(self) -> bool:
        """Tells whether the control plane has acknowledged everything."""
        return not (self._outcomes or self._events or self._samples or self._locals.owed)

    def owed(self) -> dict[str, int]:
        """Returns how much the control plane has not acknowledged, by kind."""
        return {
            "outcomes": len(self._outcomes),
            "events": len(self._events),
            "samples": len(self._samples),
            "local_updates": self._locals.owed + self._locals.left_out,
        }

    def begin_stream(self, identity: AgentIdentity) -> session_pb2.Hello:
        """Begins a new stream and returns its first message, whose number is 1."""
        self._samples.begin_stream()
        self._outcomes.begin_stream()
        self._events.begin_stream()
        self._readings.begin_stream()
        self._locals.begin_stream()
        hello = session_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            job_id=self._hello.job_id,
            labels=self._hello.labels,
            method=self._hello.method,
            instance_id=self._hello.instance_id,
            agent_id=identity.agent_id,
            agent_version=identity.version,
            host=identity.host,
            trainer_pid=self._hello.pid,
            last_acknowledged_sequence=self._acknowledged_sequence,
            last_epoch=self._epoch,
            start_step=self._hello.start_step,
            state=self.full_state(sequence=1),
        )
        self._acknowledged_sequence = 0
        return hello

    def welcome(self, welcome: session_pb2.Welcome) -> list[int]:
        """Takes the answer to the hello.

        Returns:
            Revisions whose outcomes the trainer need not keep.
        """
        self._epoch = welcome.epoch
        by_bytes = welcome.max_message_bytes // _SAMPLE_BYTES
        limits = [limit for limit in (welcome.max_samples, by_bytes) if limit > 0]
        self._max_samples = min(limits, default=1000)
        if welcome.HasField("stall_after") and welcome.stall_after.ToNanoseconds() > 0:
            self.pace.stall_after = welcome.stall_after.ToNanoseconds() / 1e9
        owed = [outcome.revision for outcome in self._outcomes.items()]
        return self._store(
            self._outcomes.forget(
                revision
                for revision in owed
                if any(each.first <= revision <= each.last for each in welcome.settled)
            )
        )

    def full_state(self, sequence: int) -> session_pb2.FullState:
        """Returns full state, which goes out in the message of this number."""
        self._outcomes.all_sent(sequence)
        self.offers_anew = False
        state = self._state.full(self._outcomes.items(), self._locals.all(sequence))
        state.phase = self.phase
        state.newest_revision = max(state.newest_revision, max(self._settled, default=0))
        return state

    def next_outcome(self, sequence: int) -> session_pb2.UpdateOutcome | None:
        """Returns the oldest outcome that has not gone out, which now does; None: all have."""
        entry = self._outcomes.next_unsent()
        if entry is None:
            return None
        self._outcomes.sent(entry[0], sequence)
        return entry[1]

    def next_local_update(self, sequence: int) -> session_pb2.LocalUpdate | None:
        """Returns the oldest local update that has not gone out, which now does; None: all have."""
        return self._locals.next(sequence)

    def delivered(self, update: update_pb2.Update) -> None:
        """Notes that an update has come: what the trainer did by itself has its revision."""
        self._locals.delivered(update.request_id)

    def refused(self, sequence: int, *, for_now: bool) -> None:
        """Notes that the control plane did not take a message, for now or for good."""
        self._locals.refused(sequence, for_now=for_now)

    def next_event(self, sequence: int) -> session_pb2.TrainerEvent | None:
        """Returns the oldest event that has not gone out, which now does; None: all have."""
        entry = self._events.next_unsent()
        if entry is None:
            return None
        self._events.sent(entry[0], sequence)
        return entry[1]

    def heartbeat(self, sequence: int, now: float) -> session_pb2.Heartbeat:
        """Returns a heartbeat with as many samples as it may carry; see :attr:`has_samples`."""
        self.urgent = False
        self._locals.try_again()
        progress = job_pb2.Progress()
        progress.CopyFrom(self._state.progress)
        moving = self._ending is None and not self._paused
        rate = self.pace.steps_per_second(now) if moving else None
        if rate is None:
            progress.ClearField("steps_per_second")
        else:
            progress.steps_per_second = rate
        heartbeat = session_pb2.Heartbeat(
            progress=progress,
            phase=self.phase,
            metrics=self._samples.take(self._max_samples, sequence),
            dropped_samples=self._samples.dropped,
        )
        while (entry := self._readings.next_unsent()) is not None:
            heartbeat.readings.append(entry[1])
            self._readings.sent(entry[0], sequence)
        return heartbeat

    @property
    def has_samples(self) -> bool:
        """Tells whether there are samples that no message of this stream carries."""
        return self._samples.unsent > 0

    @property
    def has_full_heartbeat(self) -> bool:
        """Tells whether there are as many of them as a heartbeat may carry."""
        return self._samples.unsent >= self._max_samples

    def answer_again(self, revision: int) -> bool:
        """Sends the outcome of an update once more, if it is known."""
        outcome = self._settled.get(revision)
        if outcome is not None:
            self._outcomes.owe(revision, outcome)
            self._stored.discard(revision)
        return outcome is not None

    def acknowledged(self, sequence: int) -> list[int]:
        """Takes an acknowledgement of all messages up to this number.

        Returns:
            Revisions whose outcomes the trainer need not keep.
        """
        self._acknowledged_sequence = max(self._acknowledged_sequence, sequence)
        self._samples.acknowledged(sequence)
        self._events.acknowledged(sequence)
        self._readings.acknowledged(sequence)
        self._locals.acknowledged(sequence)
        return self._store(self._outcomes.acknowledged(sequence))

    def _replace(self, state: session_pb2.FullState, now: float) -> list[int]:
        was_paused = self._paused
        self.offers_anew |= self._state.replace(state)
        if was_paused and not self._paused:
            self.pace.resume(now)
        if self._stalled and self._state.phase in _RESTING:
            # It has a reason to rest, so that it stalled before is no news any more.
            self._stalled = False
            self._events.forget([_OF_PACE])
        for local in state.local_updates:
            self._locals.take(local)
        return self._keep(state.outcomes)

    def _keep(self, outcomes: Iterable[session_pb2.UpdateOutcome]) -> list[int]:
        stored = []
        for outcome in outcomes:
            revision = outcome.revision
            if self._settled.get(revision) == outcome:
                if revision in self._stored:
                    stored.append(revision)
                continue
            kept = session_pb2.UpdateOutcome()
            kept.CopyFrom(outcome)
            self._settled[revision] = kept
            self._stored.discard(revision)
            self._outcomes.owe(revision, kept)
            self.urgent = True
        return stored

    def _store(self, revisions: list[int]) -> list[int]:
        self._stored.update(revisions)
        while len(self._settled) > _SETTLED_REMEMBERED and self._stored:
            oldest = min(self._stored)
            self._stored.discard(oldest)
            self._settled.pop(oldest, None)
        return revisions

    def _event(
        self,
        time_nanos: int,
        *,
        stalled: session_pb2.Stalled | None = None,
        recovered: session_pb2.Recovered | None = None,
        finished: session_pb2.TrainingFinished | None = None,
        exited: job_pb2.TrainerExit | None = None,
        fault: session_pb2.Fault | None = None,
    ) -> None:
        event = session_pb2.TrainerEvent(
            stalled=stalled, recovered=recovered, finished=finished, exited=exited, fault=fault
        )
        event.time.FromNanoseconds(time_nanos)
        # A trainer may falter for days while the control plane is away: only the newest counts.
        of_pace = stalled is not None or recovered is not None
        self._events.owe(_OF_PACE if of_pace else next(self._event_numbers), event)
        self.urgent = True
