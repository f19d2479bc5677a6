"""Messages of the agent session between protobuf and domain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import structlog

from control_plane.domain.errors import Reason, Refusal, invalid
from control_plane.domain.session import (
    FullState,
    Heartbeat,
    Hello,
    MetricColumn,
    Phase,
    TrainerEvent,
    TrainerFault,
    TrainerOutcome,
    Withdrawn,
    check_protocol,
)
from control_plane.domain.update import LocalUpdate
from control_plane.rpc.convert_job import exit_of, progress_of
from control_plane.rpc.convert_parameter import spec_of
from control_plane.rpc.convert_update import (
    ACTIONS,
    applied_of,
    expired_of,
    reading_of,
    rejected_of,
    update,
)
from control_plane.rpc.convert_update import spec_of as spec_of_update
from control_plane.services.agent_session import Received, Refused, ReplyResult
from control_plane.services.outbox import (
    Acknowledgement,
    Delivery,
    GoAway,
    ItemError,
    ServerMessage,
    StateRequest,
    Welcome,
    Withdrawal,
)
from grpc_runtime.convert import (
    FIRST_MICROSECOND,
    LAST_MICROSECOND,
    MAX_COUNT,
    count_of,
    duration,
    seconds_of,
    time_of,
    timestamp,
)
from midcourse.agent.v1 import session_pb2 as pb
from midcourse.control.v1 import parameter_pb2

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.domain.job import TrainerExit
    from control_plane.domain.parameter import ParameterSpec

_log: FilteringBoundLogger = structlog.get_logger(__name__)

_PHASES = {
    pb.TRAINER_PHASE_UNSPECIFIED: Phase.UNKNOWN,
    pb.TRAINER_PHASE_TRAINING: Phase.TRAINING,
    pb.TRAINER_PHASE_STALLED: Phase.STALLED,
    pb.TRAINER_PHASE_PAUSED: Phase.PAUSED,
    pb.TRAINER_PHASE_FINISHED: Phase.FINISHED,
    pb.TRAINER_PHASE_EXITED: Phase.EXITED,
}
MAX_METRIC_NAME = 200


def hello_of(request: pb.SessionRequest) -> Hello:
    """The first message of a stream.

    Raises:
        Refusal: If it is no Hello, or can not be read.
    """
    if request.WhichOneof("message") != "hello":
        got = request.WhichOneof("message") or "an empty message"
        raise Refusal(
            Reason.PROTOCOL_VIOLATION, f"a session begins with hello, but it began with {got}"
        )
    hello = request.hello
    # First of all: what another version says need not make sense here.
    check_protocol(hello.protocol_version)
    for name in ("instance_id", "agent_id"):
        if not getattr(hello, name):
            raise invalid(f"hello.{name}", "got none; it is needed")
    return Hello(
        protocol_version=hello.protocol_version,
        job_id=hello.job_id,
        labels=dict(hello.labels),
        method=hello.method,
        instance_id=hello.instance_id,
        agent_id=hello.agent_id,
        agent_version=hello.agent_version,
        host=hello.host,
        trainer_pid=hello.trainer_pid,
        start_step=count_of(hello.start_step, "hello.start_step"),
        state=state_of(hello.state, "hello.state"),
    )


def state_of(proto: pb.FullState, field: str) -> FullState:
    """What a trainer says of itself.

    Raises:
        Refusal: If it can not be read.
    """
    for index, each in enumerate(proto.in_force):
        if not 1 <= each.first <= each.last:
            raise invalid(
                f"{field}.in_force[{index}]",
                f"got {each.first} to {each.last}, allowed: 1 or more, ascending",
            )
    return FullState(
        parameters=_parameters_of(
            tuple(each.SerializeToString(deterministic=True) for each in proto.parameters),
            f"{field}.parameters",
        ),
        actions=tuple(ACTIONS[each] for each in proto.actions if each in ACTIONS),
        in_force=tuple((each.first, each.last) for each in proto.in_force),
        held=frozenset(proto.held),
        outcomes=tuple(
            outcome_of(each, f"{field}.outcomes[{i}]") for i, each in enumerate(proto.outcomes)
        ),
        progress=progress_of(proto.progress, f"{field}.progress")
        if proto.HasField("progress")
        else None,
        phase=_PHASES.get(proto.phase, Phase.UNKNOWN),
        local_updates=tuple(_readable(proto.local_updates, f"{field}.local_updates")),
        newest_revision=proto.newest_revision,
    )


@lru_cache(maxsize=1024)
def _parameters_of(specs: tuple[bytes, ...], field: str) -> tuple[ParameterSpec, ...]:
    """What jobs offer; many offer the same, which is read and kept once."""
    return tuple(
        spec_of(parameter_pb2.ParameterSpec.FromString(each), f"{field}[{index}]")
        for index, each in enumerate(specs)
    )


def _readable(protos: Iterable[pb.LocalUpdate], field: str) -> Iterator[LocalUpdate]:
    """What can be understood; the rest must not keep a job from being served."""
    for index, each in enumerate(protos):
        try:
            yield local_update_of(each, f"{field}[{index}]")
        except Refusal as refusal:
            _log.warning("a local update can not be read", error=refusal.message)


def local_update_of(proto: pb.LocalUpdate, field: str) -> LocalUpdate:
    """What a training process has changed by itself.

    Raises:
        Refusal: If it can not be read.
    """
    return LocalUpdate(proto.request_id, spec_of_update(proto.spec, f"{field}.spec"))


def outcome_of(proto: pb.UpdateOutcome, field: str) -> TrainerOutcome:
    """How an update ended in the trainer.

    Raises:
        Refusal: If it does not say how.
    """
    revision = count_of(proto.revision, f"{field}.revision")
    match proto.WhichOneof("result"):
        case "applied":
            applied = applied_of(proto.applied, f"{field}.applied")
            return TrainerOutcome(revision, applied, proto.rolled_back)
        case "rejected":
            return TrainerOutcome(revision, rejected_of(proto.rejected))
        case "expired":
            return TrainerOutcome(revision, expired_of(proto.expired, f"{field}.expired"))
        case "withdrawn":
            return TrainerOutcome(revision, Withdrawn())
        case _:
            raise invalid(field, "got an outcome without a result; one is needed")


def reply_of(proto: pb.DeliveryReply) -> ReplyResult:
    """An agent's answer to a delivery.

    Raises:
        Refusal: If it has no result.
    """
    match proto.WhichOneof("result"):
        case "received":
            return Received()
        case "settled":
            return outcome_of(proto.settled, "reply.settled")
        case "refused":
            return Refused(proto.refused.reason, proto.refused.message)
        case _:
            raise invalid("reply", "got a reply without a result; one is needed")


def heartbeat_of(proto: pb.Heartbeat) -> Heartbeat:
    """Progress and metrics.

    Raises:
        Refusal: If the columns of a metric differ in length, its name is too long, or a
            number is too large to be stored.
    """
    return Heartbeat(
        progress=progress_of(proto.progress, "heartbeat.progress")
        if proto.HasField("progress")
        else None,
        phase=_PHASES.get(proto.phase, Phase.UNKNOWN),
        metrics=tuple([_column_of(each, i) for i, each in enumerate(proto.metrics)]),
        dropped_samples=count_of(proto.dropped_samples, "heartbeat.dropped_samples"),
        readings=tuple(map(reading_of, proto.readings)) if proto.readings else (),
        patient=proto.patient,
    )


def _column_of(proto: pb.MetricColumn, index: int) -> MetricColumn:
    name, steps, values = proto.name, proto.steps[:], proto.values[:]
    times = proto.time_micros[:]
    if not len(steps) == len(values) == len(times):
        raise invalid(
            f"heartbeat.metrics[{index}]",
            f"got {len(steps)} steps, {len(values)} values and {len(times)} times; "
            "they must be equally many",
        )
    if not 0 < len(name) <= MAX_METRIC_NAME:
        raise invalid(
            f"heartbeat.metrics[{index}].name",
            f"got {len(name)} characters, allowed: 1 to {MAX_METRIC_NAME}",
        )
    if steps:
        if (most := max(steps)) > MAX_COUNT:
            count_of(most, f"heartbeat.metrics[{index}].steps")
        first, last = min(times), max(times)
        if first < FIRST_MICROSECOND or last > LAST_MICROSECOND:
            raise invalid(
                f"heartbeat.metrics[{index}].time_micros",
                f"got {first if first < FIRST_MICROSECOND else last}, allowed: a time between "
                "the years 1 and 9999",
            )
    return MetricColumn(name, steps, values, times)


def event_of(proto: pb.TrainerEvent) -> TrainerEvent:
    """Something that happened to a trainer.

    Raises:
        Refusal: If it does not say what.
    """
    time = time_of(proto.time, "event.time")
    match proto.WhichOneof("kind"):
        case "stalled":
            idle = seconds_of(proto.stalled.idle, "event.stalled.idle")
            return TrainerEvent(
                Phase.STALLED, f"no step for {idle:.0f} s after step {proto.stalled.step}", time
            )
        case "recovered":
            return TrainerEvent(Phase.TRAINING, "", time)
        case "finished":
            text = f"training reached its end at step {proto.finished.step}"
            return TrainerEvent(Phase.FINISHED, text, time)
        case "exited":
            ended = exit_of(proto.exited, "event.exited")
            return TrainerEvent(Phase.EXITED, ended.message or _in_words(ended), time, exit=ended)
        case "fault":
            fault = TrainerFault(proto.fault.component, proto.fault.message)
            text = f"steering failed in {fault.component}: {fault.message}; training goes on"
            return TrainerEvent(Phase.UNKNOWN, text, time, fault=fault)
        case _:
            raise invalid("event", "got an event without a kind; one is needed")


def _in_words(ended: TrainerExit) -> str:
    if ended.signal is not None:
        return f"the training process was ended by signal {ended.signal}"
    if ended.exit_code is not None:
        return f"the training process ended with exit code {ended.exit_code}"
    return "the training process is gone; its exit code is unknown"


def response(of: ServerMessage) -> pb.SessionResponse:
    """What the server says, as protobuf."""
    match of:
        case Welcome():
            welcome = pb.Welcome(
                epoch=of.epoch,
                heartbeat_interval=duration(of.heartbeat_interval),
                max_message_bytes=of.max_message_bytes,
                max_samples=of.max_samples,
                server_time=timestamp(of.server_time),
                stall_after=duration(of.stall_after),
                settled=[pb.RevisionRange(first=a, last=b) for a, b in of.settled],
            )
            return pb.SessionResponse(welcome=welcome)
        case Delivery():
            delivery = pb.Delivery(nonce=of.nonce, update=update(of.update))
            if of.time_left is not None:
                delivery.time_left.CopyFrom(duration(of.time_left))
            return pb.SessionResponse(delivery=delivery)
        case Withdrawal():
            return pb.SessionResponse(withdrawal=pb.Withdrawal(revision=of.revision))
        case Acknowledgement():
            return pb.SessionResponse(acknowledgement=pb.Acknowledgement(sequence=of.sequence))
        case StateRequest():
            return pb.SessionResponse(state_request=pb.StateRequest(reason=of.reason))
        case GoAway():
            away = pb.GoAway(reconnect_delay=duration(of.delay), reason=of.reason)
            return pb.SessionResponse(go_away=away)
        case ItemError():
            error = pb.MessageError(reason=of.reason, message=of.message)
            return pb.SessionResponse(item_error=pb.ItemError(sequence=of.sequence, error=error))
