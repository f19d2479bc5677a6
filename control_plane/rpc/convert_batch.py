"""Batches between protobuf and domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.domain.names import batch_name, job_name, parse_job
from control_plane.domain.selector import parse
from control_plane.domain.update import UpdateState
from control_plane.rpc.convert_update import STATES_OUT, spec, spec_of, transition
from control_plane.services.batch_admission import BatchSubmission
from grpc_runtime.convert import timestamp
from midcourse.control.v1 import batch_pb2 as pb
from midcourse.control.v1 import control_pb2, update_pb2

if TYPE_CHECKING:
    from control_plane.domain.batch import BatchItem, BatchProgress
    from control_plane.services.batches import BatchNews
    from control_plane.services.followed_batch import BatchView


def submission_of(
    proto: control_pb2.BatchUpdateParametersRequest, author: str, trace_parent: str
) -> BatchSubmission:
    """What a caller asks for.

    Raises:
        Refusal: If it can not be read.
    """
    return BatchSubmission(
        selector=parse(proto.selector),
        jobs=tuple(parse_job(name, f"jobs[{index}]") for index, name in enumerate(proto.jobs)),
        spec=spec_of(proto.spec),
        author=author,
        request_id=proto.request_id,
        best_effort=proto.best_effort,
        validate_only=proto.validate_only,
        trace_parent=trace_parent,
    )


def batch(of: BatchView) -> pb.Batch:
    """A batch as protobuf; without a name if it is not stored."""
    known = of.batch
    return pb.Batch(
        name=batch_name(known.key) if known.key else "",
        spec=spec(known.spec),
        selector=known.selector,
        best_effort=known.best_effort,
        author=known.author,
        request_id=known.request_id,
        create_time=timestamp(known.create_time),
        progress=_progress(of.progress),
    )


def news(of: BatchNews) -> control_pb2.WatchBatchResponse:
    """What a watch of a batch tells, as protobuf."""
    return control_pb2.WatchBatchResponse(
        batch=batch(of.view), items=[item(each) for each in of.items]
    )


def _progress(of: BatchProgress) -> pb.BatchProgress:
    return pb.BatchProgress(
        total=of.total,
        refused=of.refused,
        pending=of.states.get(UpdateState.PENDING, 0),
        delivered=of.states.get(UpdateState.DELIVERED, 0),
        applied=of.states.get(UpdateState.APPLIED, 0),
        rejected=of.states.get(UpdateState.REJECTED, 0),
        expired=of.states.get(UpdateState.EXPIRED, 0),
        cancelled=of.states.get(UpdateState.CANCELLED, 0),
    )


def item(of: BatchItem) -> pb.BatchItem:
    """What becomes of a batch at one job, as protobuf."""
    refusal = None
    if of.refusal is not None:
        refusal = pb.BatchRefusal(reason=of.refusal.reason, message=of.refusal.message)
    return pb.BatchItem(
        job=job_name(of.job_id),
        revision=of.revision or 0,
        state=update_pb2.UPDATE_STATE_UNSPECIFIED if of.state is None else STATES_OUT[of.state],
        transitions=[transition(each) for each in of.transitions],
        step=of.step,
        refusal=refusal,
    )
