"""Which training process an agent serves."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from midcourse.link.v1 import link_pb2
from trainer_agent.link.protocol import (
    HELLO_INVALID,
    JOB_HAS_ANOTHER_TRAINER,
    LINK_VERSION_UNSUPPORTED,
    PROTOCOL_VERSION,
)

CONTROL_PLANE_UNKNOWN: Final = "CONTROL_PLANE_UNKNOWN"
"""Reason for Detached: nobody has said where the control plane is."""


class Served(Enum):
    """Where an agent is in the life of the training process that it serves."""

    NOBODY_YET = auto()
    ALIVE = auto()
    ENDING = auto()


def refusal(
    hello: link_pb2.TrainerHello,
    *,
    job_id: str,
    control_plane: str,
    served: Served,
    instance_id: str,
) -> link_pb2.Detached | None:
    """Returns what to tell a training process that is not served; None: it need not be told.

    Args:
        hello: What it says.
        job_id: Job of the agent.
        control_plane: Address that the agent was told; empty: none.
        served: Where the agent is with the process that it serves.
        instance_id: That process; empty: none yet.
    """
    if hello.protocol_version != PROTOCOL_VERSION:
        return link_pb2.Detached(
            reason=LINK_VERSION_UNSUPPORTED,
            message=f"this process speaks version {hello.protocol_version} of the local wire, the "
            f"agent version {PROTOCOL_VERSION}; start the agent from the same installation",
        )
    if hello.job_id != job_id or not hello.instance_id:
        return link_pb2.Detached(
            reason=HELLO_INVALID,
            message=f"the agent serves job {job_id!r} and needs an instance id, got job "
            f"{hello.job_id!r} and instance id {hello.instance_id!r}",
        )
    if not (hello.control_plane or control_plane):
        return link_pb2.Detached(
            reason=CONTROL_PLANE_UNKNOWN,
            message="nobody has said where the control plane is: name its address in "
            "MIDCOURSE_CONTROL_PLANE, such as 127.0.0.1:50051",
        )
    if served is Served.ALIVE and hello.instance_id != instance_id:
        return link_pb2.Detached(
            reason=JOB_HAS_ANOTHER_TRAINER,
            message=f"another live process trains job {job_id!r} on this host; this one is not "
            f"steered. If both are meant to run, give them different job ids",
        )
    return None
