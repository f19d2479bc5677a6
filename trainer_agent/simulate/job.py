"""One light job: a training process without training, and its agent, on the loop of its caller."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from typing import TYPE_CHECKING, Final

from grpc_runtime.logging import get_logger
from midcourse.control.v1 import job_pb2, update_pb2
from trainer_agent.agent.background import Background
from trainer_agent.identity import new_instance_id
from trainer_agent.parameters import Boundary
from trainer_agent.simulate.curve import LossCurve
from trainer_agent.simulate.link import DirectLink
from trainer_agent.simulate.parameters import light_parameters
from trainer_agent.simulate.spec import METRICS, LightJobSpec
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.reporting import Identity
from trainer_agent.steering.session import HOLD_SECONDS, SteeringSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from midcourse.agent.v1 import session_pb2
    from midcourse.link.v1 import link_pb2
    from trainer_agent.agent.connector import OpenChannel
    from trainer_agent.agent.ledger import AgentIdentity
    from trainer_agent.agent.relay import Relay
    from trainer_agent.parameters import Value

_log = get_logger(__name__)

_OFFER: Final = {
    ActionKind.PAUSE: None,
    ActionKind.RESUME: None,
    ActionKind.EVALUATE: None,
    ActionKind.STOP: None,
    ActionKind.SAVE_CHECKPOINT: "a light job trains nothing, so that there is nothing to save",
    ActionKind.ROLL_BACK: "a light job has no checkpoints",
}
_OUTCOMES_KEPT: Final = 1_000
# A process that was stopped for a while does not make up for more steps than this.
_MOST_STEPS_BEHIND: Final = 100
_EXITED: Final = "the light job ended with exit code 0"
_END_TIMEOUT: Final = 5.0


class LightJob:
    """A training process that only counts its steps, and is steered as any other.

    It steps by a timer of the running event loop. As long as nobody can tell the difference it
    wakes up only to report, and not at each step.

    Attributes:
        spec: What it is like.
        values: The values in force of what can be changed live.
        outcomes: How updates ended, by revision; the newest thousand.
        counts: How many updates ended in each way: applied, rejected, expired, withdrawn.
    """

    def __init__(
        self,
        spec: LightJobSpec,
        identity: AgentIdentity,
        *,
        open_channel: OpenChannel | None = None,
        changed: Callable[[], None] = lambda: None,
        actions: Actions | None = None,
        step: int = 0,
        go_on: Callable[[ParameterController], None] = lambda _: None,
    ) -> None:
        """Prepares a job.

        Args:
            spec: What it is like.
            identity: Who serves it.
            open_channel: Opens the channel of each of its sessions; None: one of its own.
            changed: Is called whenever something may be different.
            actions: What it can be asked to do; None: what needs no checkpoint.
            step: Steps done before it begins.
            go_on: Has its controller go on from a checkpoint, before anybody hears of it.

        Raises:
            ValueError: Something in the specification can not be.
        """
        unknown = set(spec.metrics) - set(METRICS)
        if unknown or not 0 < spec.step_time < math.inf:
            raise ValueError(
                f"step_time must be a number of seconds above 0, got {spec.step_time}; metrics "
                f"must be of {', '.join(METRICS)}, got {', '.join(spec.metrics)}"
            )
        self.spec = spec
        self.values: dict[str, Value] = dict(spec.values)
        self._step = step
        self.outcomes: dict[int, session_pb2.UpdateOutcome] = {}
        self.counts: dict[str, int] = {}
        self._agent_identity = identity
        self._open_channel = open_channel
        self._tell = changed
        self._background = Background()
        self._curve = LossCurve(spec.seed, self._rate())
        self._report_steps = max(1, round(spec.report_every / spec.step_time))
        self._reported = step
        self._anchor = (0.0, 0)
        self._timer: asyncio.TimerHandle | None = None
        self._news = self._working = self._stepping = self._ended = self._parted = False
        self._link: DirectLink | None = None
        self._actions = actions or Actions(_OFFER)
        instance_id = new_instance_id()
        self._controller = ParameterController(
            light_parameters(self.values), instance_id, actions=self._actions
        )
        go_on(self._controller)
        measured: dict[str, Callable[[], float | None]] = {
            "loss": lambda: self._curve.loss(self._step),
            "learning_rate": self._rate,
            "grad_norm": lambda: self._curve.gradient_norm(self._step),
        }
        self._session = SteeringSession(
            Identity(spec.job_id, instance_id, spec.control_plane, spec.method, spec.labels),
            self._controller,
            self._boundary(),
            self._make_link,
            {name: measured[name] for name in spec.metrics},
        )

    # --------------------------------------------------------------------------- what can be seen

    @property
    def job_id(self) -> str:
        """Id of the job."""
        return self.spec.job_id

    @property
    def step(self) -> int:
        """Steps done by now."""
        if not self._stepping or self._actions.paused:
            return self._step
        done = self._done_by(time.monotonic())
        return max(
            self._step, done if self.spec.max_steps is None else min(done, self.spec.max_steps)
        )

    @property
    def loss(self) -> float:
        """Loss at the newest step."""
        return self._curve.loss(self.step)

    @property
    def paused(self) -> bool:
        """Whether it is held by a pause."""
        return self._actions.paused

    @property
    def finished(self) -> bool:
        """Whether its training has ended."""
        return self._ended

    @property
    def connected(self) -> bool:
        """Whether the control plane serves it right now."""
        return self._link is not None and self._link.relay.connected

    @property
    def address(self) -> str:
        """Address of the control plane that serves it; of several, the one that it tries next."""
        return self.spec.control_plane if self._link is None else self._link.relay.address

    @property
    def sessions(self) -> int:
        """How many sessions the control plane has welcomed: more than one after reconnects."""
        return 0 if self._link is None else self._link.relay.sessions

    @property
    def applied(self) -> list[int]:
        """Revisions that were applied, in the order in which they came into force."""
        return [number for number, each in self.outcomes.items() if each.HasField("applied")]

    @property
    def trouble(self) -> str:
        """Why the control plane does not serve it, in words; empty: it does, or may yet."""
        detached = None if self._link is None else self._link.detached
        return "" if detached is None else f"{detached.reason}: {detached.message}"

    @property
    def everything_stored(self) -> bool:
        """Whether the control plane has acknowledged all that it was told."""
        return self._link is None or self._link.relay.ledger.owes_nothing

    def __repr__(self) -> str:
        state = "finished" if self._ended else "paused" if self.paused else "training"
        return (
            f"<LightJob {self.job_id}: {state} at step {self._step}, "
            f"{'connected' if self.connected else 'not connected'}{self.trouble and ', '}"
            f"{self.trouble}>"
        )

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:
        """Waits until something holds, which is looked at whenever something may have changed.

        Raises:
            TimeoutError: It does not within so many seconds; tells where the job stands.
        """
        if not await self._background.until(condition, timeout):
            raise TimeoutError(f"not within {timeout:g} s: {self!r}")

    async def outcome(self, revision: int, timeout: float = 30.0) -> session_pb2.UpdateOutcome:
        """Waits until an update has ended here, and returns how.

        Raises:
            TimeoutError: It has not within so many seconds.
        """
        await self.until(lambda: revision in self.outcomes, timeout)
        return self.outcomes[revision]

    # ------------------------------------------------------------------------- beginning and end

    def start(self) -> None:
        """Begins to train, and to look for the control plane."""
        assert self._link is not None
        self._session.start()
        self._background.start(self._link.relay.converse())
        self._stepping = True
        self._anchor = (time.monotonic(), self._step)
        self._plan()

    async def end(self, timeout: float = _END_TIMEOUT) -> None:
        """Ends training where it stands, in good order, and waits until that is delivered.

        Args:
            timeout: Longest time for what is still to be delivered, in seconds.
        """
        if self._stepping:
            self._finish()
        assert self._link is not None
        try:
            # The control plane may know of a session whose welcome is still on the way.
            if self.sessions or self._link.relay.session is not None:
                await self._background.until(lambda: self._parted, timeout)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Ends at once, and tells nobody: as a host that is gone."""
        self._stop_stepping()
        self._ended = True
        await self._background.stop()
        self._changed()

    def _finish(self) -> None:
        """Ends training in good order, and then the training process."""
        self._stop_stepping()
        self._session.finish(self._boundary())
        self._ended = True
        assert self._link is not None
        relay = self._link.relay
        relay.ledger.exited(job_pb2.TrainerExit(exit_code=0, message=_EXITED), time.time_ns())
        relay.wake()
        self._background.start(self._part(relay))

    async def _part(self, relay: Relay) -> None:
        await relay.part("the light job has ended", math.inf)
        self._parted = True
        self._changed()

    # -------------------------------------------------------------------------------------- steps

    def _plan(self) -> None:
        """Sets the timer for the next step that anybody could care about."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._stepping:
            return
        loop = asyncio.get_running_loop()
        if self._actions.paused:
            if self._news:
                self._timer = loop.call_later(0.0, self._wake)
            elif self._controller.has_deadlines:
                self._timer = loop.call_later(HOLD_SECONDS, self._wake)
            return
        now = time.monotonic()
        target = max(self._step + 1, self._reported + self._report_steps)
        if self._controller.has_unsettled:
            target = self._step + 1
        elif self._news:
            target = min(target, max(self._step, self._done_by(now)) + 1)
        if self.spec.max_steps is not None:
            target = min(target, self.spec.max_steps)
        begun, first = self._anchor
        delay = begun + (target - first) * self.spec.step_time - now
        # The loop's timers count milliseconds, and must not go off before the step is done.
        self._timer = loop.call_later(max(0.0, math.ceil(delay * 1000) / 1000), self._wake)

    def _done_by(self, now: float) -> int:
        """Returns how many steps are done at a moment."""
        begun, first = self._anchor
        return first + int((now - begun) / self.spec.step_time + 1e-6)

    def _wake(self) -> None:
        """Does what is due by now."""
        self._timer = None
        self._working = True
        self._news = False
        try:
            if self._actions.paused:
                self._hold()
            else:
                self._catch_up()
        except Exception as error:  # noqa: BLE001 - whoever waits for the job is told
            self._stop_stepping()
            _log.exception("light_job_failed", job=self.job_id)
            self._background.fail(error)
        finally:
            self._working = False
        self._changed()
        self._plan()

    def _hold(self) -> None:
        self._session.look()
        self._carry_out()
        # As long as it is held the clock of its steps stands still.
        self._anchor = (time.monotonic(), self._step)

    def _catch_up(self) -> None:
        now = time.monotonic()
        due = self._done_by(now)
        if self._controller.has_unsettled and due > self._step + _MOST_STEPS_BEHIND:
            due = self._step + 1
            self._anchor = (now, due)
        if self.spec.max_steps is not None:
            due = min(due, self.spec.max_steps)
        while self._step < due and self._stepping and not self._actions.paused:
            self._reach(self._step + 1 if self._controller.has_unsettled else due)

    def _reach(self, step: int) -> None:
        """Has the steps up to this one done, and works at the boundary after it."""
        self._step = step
        self._session.optimizer_stepped()
        last = step == self.spec.max_steps
        if self._session.step_done(self._boundary(), last=last):
            self._carry_out()
        if step >= self._reported + self._report_steps:
            self._reported = step
        self._follow_rate()
        if last and self._stepping:
            self._finish()

    def _carry_out(self) -> None:
        """Does what is asked for besides training."""
        for kind in tuple(self._actions.wanted):
            self._session.action_done(kind, self._result(kind))
        self._follow_rate()
        if self._actions.stopping:
            self._finish()

    def _result(self, kind: ActionKind) -> update_pb2.ActionResult:
        """Does one thing besides training, and returns what it led to."""
        result = update_pb2.ActionResult()
        if kind is ActionKind.EVALUATE:
            result.metrics["eval_loss"] = self._curve.eval_loss(self._step)
        return result

    def _follow_rate(self) -> None:
        rate = self._rate()
        if rate != self._curve.rate:
            self._curve.change(self._step, rate)

    def _rate(self) -> float:
        rate = self.values.get("learning_rate", 0.0)
        return float(rate)

    def _boundary(self) -> Boundary:
        return Boundary(self._step, self.spec.max_steps)

    def _stop_stepping(self) -> None:
        self._stepping = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------------------------ from the link

    def _make_link(
        self, *, job_id: str, hello: Callable[[], link_pb2.TrainerHello], control_plane: str
    ) -> DirectLink:
        self._link = DirectLink(
            job_id=job_id,
            hello=hello,
            control_plane=control_plane,
            identity=self._agent_identity,
            background=self._background,
            events=self,
            open_channel=self._open_channel,
        )
        return self._link

    def arrived(self) -> None:
        """There is something for the trainer."""
        self._news = True
        if not self._working:
            self._plan()

    def settled(self, outcome: session_pb2.UpdateOutcome) -> None:
        """The trainer has said how an update ended."""
        result = outcome.WhichOneof("result") or "unknown"
        self.counts[result] = self.counts.get(result, 0) + 1
        self.outcomes[outcome.revision] = outcome
        if len(self.outcomes) > _OUTCOMES_KEPT:
            del self.outcomes[next(iter(self.outcomes))]

    def _changed(self) -> None:
        self._background.changed()
        self._tell()


def new_agent_id() -> str:
    """Returns an id for an agent that is just beginning."""
    return uuid.uuid4().hex
