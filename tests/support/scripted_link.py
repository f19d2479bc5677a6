"""A link without an agent: says what it is told to at given steps, and keeps what it hears."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.link.steps import reports


class ScriptedLink:
    """A link whose agent delivers fixed updates at fixed boundaries.

    Args:
        script: What arrives at which boundary, by optimizer steps done.
        hello: As the session gives it.
        while_held: What arrives while the run is held, one wait after the other.
    """

    def __init__(
        self,
        script: Mapping[int, Sequence[link_pb2.AgentMessage]],
        hello: Callable[[], link_pb2.TrainerHello],
        while_held: Sequence[Sequence[link_pb2.AgentMessage]] = (),
    ) -> None:
        self._script = dict(script)
        self._while_held = list(while_held)
        self._arrived: list[link_pb2.AgentMessage] = []
        self.hello = hello
        self.first_hello: link_pb2.TrainerHello | None = None
        self.sent: list[link_pb2.TrainerMessage] = []
        self.closed: list[str | None] = []

    def start(self) -> None:
        self.first_hello = self.hello()

    def send(self, message: link_pb2.TrainerMessage) -> None:
        self.sent.append(link_pb2.TrainerMessage.FromString(message.SerializeToString()))

    def poll(self) -> Sequence[link_pb2.AgentMessage]:
        arrived, self._arrived = self._arrived, []
        return [*arrived, *self._script.pop(self.hello().state.progress.step, ())]

    def wait(self, seconds: float) -> None:
        if not self._while_held:
            raise AssertionError("the run is held, and nothing more is to come")
        self._arrived += self._while_held.pop(0)

    def close(self, error: str | None = None, timeout: float = 0.0) -> bool:
        self.closed.append(error)
        return True

    @property
    def outcomes(self) -> list[session_pb2.UpdateOutcome]:
        return [each.outcome for each in self.sent if each.HasField("outcome")]

    @property
    def steps(self) -> list[link_pb2.StepReport]:
        return [
            report
            for each in self.sent
            for report in ([each.step] if each.HasField("step") else reports(each.steps))
        ]

    @property
    def states(self) -> list[session_pb2.FullState]:
        return [each.state for each in self.sent if each.HasField("state")]

    @property
    def local_updates(self) -> list[session_pb2.LocalUpdate]:
        return [each.local_update for each in self.sent if each.HasField("local_update")]

    @property
    def faults(self) -> list[session_pb2.Fault]:
        return [each.fault for each in self.sent if each.HasField("fault")]

    def metric(self, name: str) -> dict[int, float]:
        """Return a metric's values by step."""
        return {
            report.metrics_step if report.HasField("metrics_step") else report.step: value
            for report in self.steps
            for metric, value in zip(report.names, report.values, strict=True)
            if metric == name
        }


class LinkScript:
    """A link factory: every link it makes follows the script."""

    def __init__(
        self,
        script: Mapping[int, Sequence[link_pb2.AgentMessage]] | None = None,
        while_held: Sequence[Sequence[link_pb2.AgentMessage]] = (),
    ) -> None:
        self.script = script or {}
        self.while_held = while_held
        self.links: list[ScriptedLink] = []
        self.addresses: list[str] = []

    def __call__(
        self, *, job_id: str, hello: Callable[[], link_pb2.TrainerHello], control_plane: str
    ) -> ScriptedLink:
        self.links.append(ScriptedLink(self.script, hello, self.while_held))
        self.addresses.append(control_plane)
        return self.links[-1]

    @property
    def link(self) -> ScriptedLink:
        """The only link so far."""
        (link,) = self.links
        return link


def delivery(
    revision: int,
    *changes: update_pb2.Change,
    at_step: int | None = None,
    max_step: int | None = None,
    action: update_pb2.Action | None = None,
    deadline: int | None = None,
    author: str = "",
    force: bool = False,
    state: update_pb2.UpdateState.ValueType = update_pb2.UPDATE_STATE_DELIVERED,
    request_id: str = "",
) -> link_pb2.AgentMessage:
    """Return the delivery of an update."""
    spec = update_pb2.UpdateSpec(changes=changes, force=force)
    if at_step is not None or max_step is not None:
        spec.apply_at.CopyFrom(update_pb2.ApplyAt(step=at_step, max_step=max_step))
    if action is not None:
        spec.action.CopyFrom(action)
    update = update_pb2.Update(
        revision=revision,
        spec=spec,
        request_id=request_id or f"request-{revision}",
        author=author,
        state=state,
    )
    return link_pb2.AgentMessage(
        delivery=link_pb2.LinkDelivery(update=update, deadline_monotonic_nanos=deadline)
    )


def pause() -> update_pb2.Action:
    """Return the action that holds a run."""
    return update_pb2.Action(pause=update_pb2.PauseAction())


def resume() -> update_pb2.Action:
    """Return the action that ends a pause."""
    return update_pb2.Action(resume=update_pb2.ResumeAction())


def save_checkpoint() -> update_pb2.Action:
    """Return the action that saves a checkpoint."""
    return update_pb2.Action(save_checkpoint=update_pb2.SaveCheckpointAction())


def evaluate() -> update_pb2.Action:
    """Return the action that evaluates."""
    return update_pb2.Action(evaluate=update_pb2.EvaluateAction())


def stop() -> update_pb2.Action:
    """Return the action that ends a run in good order."""
    return update_pb2.Action(stop=update_pb2.StopAction())


def roll_back(checkpoint: str = "") -> update_pb2.Action:
    """Return the action that takes a run back to a checkpoint."""
    return update_pb2.Action(roll_back=update_pb2.RollBackAction(checkpoint=checkpoint))


def withdrawal(revision: int) -> link_pb2.AgentMessage:
    """Return the withdrawal of an update."""
    return link_pb2.AgentMessage(withdrawal=session_pb2.Withdrawal(revision=revision))


def set_change(
    value: float,
    mode: update_pb2.SetMode.ValueType = update_pb2.SET_MODE_UNSPECIFIED,
    hold_steps: int | None = None,
    parameter: str = "learning_rate",
) -> update_pb2.Change:
    """Return a change that sets a value."""
    change = update_pb2.Change(parameter=parameter)
    change.set.value.number = value
    change.set.mode = mode
    if hold_steps is not None:
        change.set.hold_steps = hold_steps
    return change


def set_changes(values: Mapping[str, float]) -> list[update_pb2.Change]:
    """Return changes that set values, by parameter."""
    return [set_change(value, parameter=name) for name, value in values.items()]


def multiply_change(factor: float, parameter: str = "learning_rate") -> update_pb2.Change:
    """Return a change that scales a value."""
    return update_pb2.Change(parameter=parameter, multiply=update_pb2.MultiplyChange(factor=factor))


def ramp_change(value: float, steps: int) -> update_pb2.Change:
    """Return a change that moves the learning rate to a value over some steps."""
    change = update_pb2.Change(parameter="learning_rate")
    change.ramp.value.number = value
    change.ramp.steps = steps
    return change
