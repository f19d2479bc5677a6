"""Updates between protobuf and domain."""

from __future__ import annotations

from control_plane.domain.errors import invalid
from control_plane.domain.names import update_name
from control_plane.domain.parameter import (
    Change,
    Coupling,
    MultiplyChange,
    RampChange,
    ReleaseChange,
    ScheduleChange,
    SetChange,
    Shape,
    Value,
)
from control_plane.domain.update import (
    Action,
    ActionKind,
    Applied,
    Cancelled,
    Expired,
    ExpiryCause,
    Reading,
    Rejected,
    Transition,
    Update,
    UpdateSpec,
    UpdateState,
)
from control_plane.rpc.convert_parameter import value, value_of
from control_plane.services.records import Place
from grpc_runtime import paging
from grpc_runtime.convert import time_of, timestamp
from midcourse.control.v1 import update_pb2 as pb

_SHAPES = {
    pb.SCHEDULE_SHAPE_LINEAR: Shape.LINEAR,
    pb.SCHEDULE_SHAPE_COSINE: Shape.COSINE,
    pb.SCHEDULE_SHAPE_CONSTANT: Shape.CONSTANT,
}
_COUPLINGS = {
    pb.COUPLING_UNSPECIFIED: Coupling.NONE,
    pb.COUPLING_LINEAR: Coupling.LINEAR,
    pb.COUPLING_SQRT: Coupling.SQRT,
}
ACTIONS = {
    pb.ACTION_KIND_PAUSE: ActionKind.PAUSE,
    pb.ACTION_KIND_RESUME: ActionKind.RESUME,
    pb.ACTION_KIND_SAVE_CHECKPOINT: ActionKind.SAVE_CHECKPOINT,
    pb.ACTION_KIND_EVALUATE: ActionKind.EVALUATE,
    pb.ACTION_KIND_STOP: ActionKind.STOP,
    pb.ACTION_KIND_ROLL_BACK: ActionKind.ROLL_BACK,
}
STATES = {
    pb.UPDATE_STATE_PENDING: UpdateState.PENDING,
    pb.UPDATE_STATE_DELIVERED: UpdateState.DELIVERED,
    pb.UPDATE_STATE_APPLIED: UpdateState.APPLIED,
    pb.UPDATE_STATE_REJECTED: UpdateState.REJECTED,
    pb.UPDATE_STATE_EXPIRED: UpdateState.EXPIRED,
    pb.UPDATE_STATE_CANCELLED: UpdateState.CANCELLED,
}
_CAUSES = {
    pb.EXPIRY_CAUSE_DEADLINE: ExpiryCause.DEADLINE,
    pb.EXPIRY_CAUSE_MAX_STEP: ExpiryCause.MAX_STEP,
    pb.EXPIRY_CAUSE_JOB_ENDED: ExpiryCause.JOB_ENDED,
}
_SHAPES_OUT = {domain: proto for proto, domain in _SHAPES.items()}
_COUPLINGS_OUT = {domain: proto for proto, domain in _COUPLINGS.items()}
STATES_OUT = {domain: proto for proto, domain in STATES.items()}
_CAUSES_OUT = {domain: proto for proto, domain in _CAUSES.items()}
ACTIONS_OUT = {domain: proto for proto, domain in ACTIONS.items()}


def _value_of(proto: pb.SetChange | pb.RampChange, field: str) -> Value:
    got = value_of(proto.value)
    if got is None:
        raise invalid(f"{field}.value", "got none; a value is needed")
    return got


def change_of(proto: pb.Change, field: str) -> Change:
    """A change.

    Raises:
        Refusal: If something that is needed is not there, or an enum is not known.
    """
    if not proto.parameter:
        raise invalid(f"{field}.parameter", "got none; the name of a parameter is needed")
    name, group = proto.parameter, proto.group
    if proto.coupling not in _COUPLINGS:
        raise invalid(f"{field}.coupling", f"got {proto.coupling}, allowed: 0 to 2")
    coupling = _COUPLINGS[proto.coupling]
    operation = proto.WhichOneof("operation")
    if coupling is not Coupling.NONE and operation != "set":
        raise invalid(f"{field}.coupling", "only a set can be coupled")
    match operation:
        case "set":
            new = _value_of(proto.set, f"{field}.set")
            steps = proto.set.hold_steps if proto.set.HasField("hold_steps") else None
            match proto.set.mode:
                case pb.SET_MODE_UNSPECIFIED:
                    return SetChange(name, new, group, "set", steps, coupling)
                case pb.SET_MODE_PEAK:
                    return SetChange(name, new, group, "peak", steps, coupling)
                case pb.SET_MODE_HOLD:
                    return SetChange(name, new, group, "hold", steps, coupling)
                case unknown:
                    raise invalid(f"{field}.set.mode", f"got {unknown}, allowed: 0 to 2")
        case "multiply":
            return MultiplyChange(name, proto.multiply.factor, group)
        case "ramp":
            new = _value_of(proto.ramp, f"{field}.ramp")
            return RampChange(name, new, proto.ramp.steps, group)
        case "schedule":
            schedule = proto.schedule
            if schedule.shape not in _SHAPES:
                raise invalid(
                    f"{field}.schedule.shape",
                    f"got {schedule.shape}, allowed: LINEAR (1), COSINE (2), CONSTANT (3)",
                )
            return ScheduleChange(
                name,
                _SHAPES[schedule.shape],
                schedule.peak if schedule.HasField("peak") else None,
                schedule.warmup_steps,
                schedule.floor,
                schedule.steps if schedule.HasField("steps") else None,
                group,
            )
        case "release":
            return ReleaseChange(name, group)
        case _:
            raise invalid(
                field, "got no operation; one of set, multiply, ramp, schedule, release is needed"
            )


def change(of: Change) -> pb.Change:
    """A change as protobuf."""
    proto = pb.Change(parameter=of.parameter, group=of.group)
    match of:
        case SetChange():
            proto.coupling = _COUPLINGS_OUT[of.coupling]
            mode = {
                "set": pb.SET_MODE_UNSPECIFIED,
                "peak": pb.SET_MODE_PEAK,
                "hold": pb.SET_MODE_HOLD,
            }[of.mode]
            proto.set.CopyFrom(
                pb.SetChange(value=value(of.value), mode=mode, hold_steps=of.hold_steps)
            )
        case MultiplyChange():
            proto.multiply.factor = of.factor
        case RampChange():
            proto.ramp.CopyFrom(pb.RampChange(value=value(of.value), steps=of.steps))
        case ScheduleChange():
            proto.schedule.CopyFrom(
                pb.ScheduleChange(
                    shape=_SHAPES_OUT[of.shape],
                    peak=of.peak,
                    warmup_steps=of.warmup_steps,
                    floor=of.floor,
                    steps=of.steps,
                )
            )
        case ReleaseChange():
            proto.release.SetInParent()
    return proto


def _action_of(proto: pb.Action, field: str) -> Action:
    kind = proto.WhichOneof("kind")
    if kind is None:
        raise invalid(field, "got an action without a kind; one is needed")
    return Action(ActionKind(kind), proto.roll_back.checkpoint if kind == "roll_back" else "")


def _action(of: Action) -> pb.Action:
    proto = pb.Action()
    getattr(proto, of.kind.value).SetInParent()
    if of.kind is ActionKind.ROLL_BACK:
        proto.roll_back.checkpoint = of.checkpoint
    return proto


def spec_of(proto: pb.UpdateSpec, field: str = "spec") -> UpdateSpec:
    """What a caller asks for.

    Raises:
        Refusal: If it can not be read.
    """
    at = proto.apply_at
    return UpdateSpec(
        changes=tuple(
            change_of(each, f"{field}.changes[{index}]") for index, each in enumerate(proto.changes)
        ),
        action=_action_of(proto.action, f"{field}.action") if proto.HasField("action") else None,
        at_step=at.step if at.HasField("step") else None,
        max_step=at.max_step if at.HasField("max_step") else None,
        deadline=time_of(proto.deadline, f"{field}.deadline")
        if proto.HasField("deadline")
        else None,
        reason=proto.reason,
        force=proto.force,
    )


def spec(of: UpdateSpec) -> pb.UpdateSpec:
    """What a caller asked for, as protobuf."""
    proto = pb.UpdateSpec(
        changes=[change(each) for each in of.changes],
        action=_action(of.action) if of.action is not None else None,
        deadline=timestamp(of.deadline) if of.deadline is not None else None,
        reason=of.reason,
        force=of.force,
    )
    if of.at_step is not None or of.max_step is not None:
        proto.apply_at.CopyFrom(pb.ApplyAt(step=of.at_step, max_step=of.max_step))
    return proto


_newest: tuple[UpdateSpec, pb.UpdateSpec] | None = None


def _shared_spec(of: UpdateSpec) -> pb.UpdateSpec:
    """The same, not to be changed; the updates of a batch have one, which is converted once."""
    global _newest  # noqa: PLW0603 - one that is remembered, whoever asked
    if _newest is None or _newest[0] is not of:
        _newest = of, spec(of)
    return _newest[1]


def applied_of(proto: pb.Applied, field: str) -> Applied:
    """An application, as the trainer reports it."""
    return Applied(
        step=proto.step,
        transitions=tuple(
            Transition(t.parameter, t.group, value_of(t.old_value), value_of(t.new_value))
            for t in proto.transitions
        ),
        apply_time=time_of(proto.apply_time, f"{field}.apply_time")
        if proto.HasField("apply_time")
        else None,
        instance_id=proto.instance_id,
        checkpoint=proto.action_result.checkpoint,
        metrics=dict(proto.action_result.metrics),
    )


def applied(of: Applied) -> pb.Applied:
    """An application as protobuf."""
    proto = pb.Applied(
        step=of.step,
        transitions=[transition(each) for each in of.transitions],
        apply_time=timestamp(of.apply_time) if of.apply_time is not None else None,
        instance_id=of.instance_id,
    )
    if of.checkpoint or of.metrics:
        proto.action_result.CopyFrom(pb.ActionResult(checkpoint=of.checkpoint, metrics=of.metrics))
    return proto


def transition(of: Transition) -> pb.ParameterTransition:
    """A value before and after as protobuf."""
    return pb.ParameterTransition(
        parameter=of.parameter,
        group=of.group,
        old_value=value(of.old) if of.old is not None else None,
        new_value=value(of.new) if of.new is not None else None,
    )


def reading_of(proto: pb.ParameterReading) -> Reading:
    """A value in force."""
    return Reading(proto.parameter, proto.group, value_of(proto.value))


def rejected_of(proto: pb.Rejected) -> Rejected:
    """A rejection, as the trainer reports it."""
    return Rejected(
        proto.reason,
        proto.message,
        proto.parameter,
        tuple(reading_of(reading) for reading in proto.in_force),
        proto.step,
    )


def _rejected(of: Rejected) -> pb.Rejected:
    return pb.Rejected(
        reason=of.reason,
        message=of.message,
        parameter=of.parameter,
        in_force=[
            pb.ParameterReading(
                parameter=r.parameter,
                group=r.group,
                value=value(r.value) if r.value is not None else None,
            )
            for r in of.in_force
        ],
        step=of.step,
    )


def expired_of(proto: pb.Expired, field: str) -> Expired:
    """An expiry, as the trainer reports it."""
    if proto.cause not in _CAUSES:
        raise invalid(f"{field}.cause", f"got {proto.cause}, allowed: 1 to {len(_CAUSES)}")
    return Expired(_CAUSES[proto.cause], proto.message)


def update(of: Update) -> pb.Update:
    """An update as protobuf."""
    proto = pb.Update(
        name=update_name(of.job_id, of.revision),
        revision=of.revision,
        spec=_shared_spec(of.spec),
        author=of.author,
        request_id=of.request_id,
        batch=of.batch,
        state=STATES_OUT[of.state],
        create_time=timestamp(of.create_time),
        deliver_time=timestamp(of.deliver_time) if of.deliver_time is not None else None,
        settle_time=timestamp(of.settle_time) if of.settle_time is not None else None,
        cancel_requested=of.cancel_request is not None and of.is_open,
        reapplied=[applied(each) for each in of.reapplied],
        rolled_back_by=of.rolled_back_by or 0,
        trace_parent=of.trace_parent,
    )
    match of.outcome:
        case Applied():
            proto.applied.CopyFrom(applied(of.outcome))
        case Rejected():
            proto.rejected.CopyFrom(_rejected(of.outcome))
        case Expired():
            proto.expired.CopyFrom(
                pb.Expired(cause=_CAUSES_OUT[of.outcome.cause], message=of.outcome.message)
            )
        case Cancelled():
            proto.cancelled.CopyFrom(
                pb.Cancelled(principal=of.outcome.principal, reason=of.outcome.reason)
            )
        case None:
            pass
    return proto


def write_place(place: Place | None) -> str | None:
    """Where to go on among the updates of all jobs, for a page token."""
    if place is None:
        return None
    return paging.write_place(place.time, place.job_key, place.revision)


def read_place(text: str | int | None) -> Place | None:
    """The place that a page token names; None: the first page is asked for.

    Raises:
        StatusError: INVALID_ARGUMENT, the token was made up.
    """
    if text is None:
        return None
    time, (job_key, revision) = paging.read_place(text, 2)
    return Place(time, job_key, revision)
