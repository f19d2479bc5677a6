"""How updates ended, as a training process says it on the wire, as records."""

from __future__ import annotations

from collections.abc import Iterable

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import parameter_pb2, update_pb2
from tests.faults.records import Move, Number, Outcome


def outcome_of(said: session_pb2.UpdateOutcome) -> Outcome:
    """How an update ended, as a training process says."""
    match said.WhichOneof("result"):
        case "applied":
            applied = said.applied
            return Outcome(
                "applied",
                applied.instance_id,
                applied.step,
                _moves(applied.transitions),
                checkpoint=applied.action_result.checkpoint,
            )
        case "rejected":
            return Outcome("rejected", reason=said.rejected.reason)
        case "expired":
            cause = update_pb2.ExpiryCause.Name(said.expired.cause)
            return Outcome("expired", reason=cause.removeprefix("EXPIRY_CAUSE_").lower())
        case "withdrawn":
            return Outcome("withdrawn")
        case other:
            raise ValueError(f"an outcome is none of those there are: {other}")


def _moves(transitions: Iterable[update_pb2.ParameterTransition]) -> tuple[Move, ...]:
    return tuple(
        Move(
            each.parameter,
            number_of(each.old_value) if each.HasField("old_value") else None,
            number_of(each.new_value) if each.HasField("new_value") else None,
        )
        for each in transitions
    )


def number_of(value: parameter_pb2.Value) -> Number:
    """A value of a light job: all of them are numbers."""
    return value.integer if value.WhichOneof("kind") == "integer" else value.number
