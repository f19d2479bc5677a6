"""The wire between a training process and its agent, on one host.

A unix stream socket in a directory that is its owner's alone, with messages of
``midcourse.link.v1`` behind their lengths. :class:`TrainerLink` is the trainer's end, which never
blocks a step and starts an agent where there is none; the agent's end is
:mod:`trainer_agent.link.server`, which is imported by the agent alone.

Nothing here imports grpc or torch, or starts a thread.
"""

from trainer_agent.link.address import LinkAddress, LinkAddressError, locate
from trainer_agent.link.status import LinkState, LinkStatus
from trainer_agent.link.trainer import TrainerLink

__all__ = [
    "LinkAddress",
    "LinkAddressError",
    "LinkState",
    "LinkStatus",
    "TrainerLink",
    "locate",
]
