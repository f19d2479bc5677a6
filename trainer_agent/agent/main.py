"""Composition of the agent process."""

from __future__ import annotations

import asyncio
import importlib.metadata
import signal
import socket
import uuid
from typing import TYPE_CHECKING

from grpc_runtime.logging import configure_logging, get_logger
from trainer_agent.agent.job_agent import JobAgent
from trainer_agent.agent.ledger import AgentIdentity
from trainer_agent.link.address import LinkAddressError, locate
from trainer_agent.link.server import AlreadyServedError

if TYPE_CHECKING:
    from trainer_agent.agent.options import AgentOptions

_log = get_logger(__name__)


def run(options: AgentOptions) -> int:
    """Runs an agent until it ends and returns its exit status."""
    configure_logging(level=options.log_level, log_format=options.log_format)
    try:
        return asyncio.run(_serve(options))
    except AlreadyServedError as error:
        # Two were started at once; the other one serves.
        _log.info("not_needed", job=options.job_id, reason=str(error))
        return 0
    except LinkAddressError as error:
        _log.error("socket_directory_unusable", job=options.job_id, message=str(error))
        return 1


async def _serve(options: AgentOptions) -> int:
    agent = JobAgent(
        job_id=options.job_id,
        control_plane=options.control_plane,
        address=locate(options.job_id, options.socket_dir),
        identity=AgentIdentity(
            agent_id=uuid.uuid4().hex, version=_version(), host=socket.gethostname()
        ),
        linger=options.linger,
        trainer_fd=options.trainer_fd,
        credentials=options.credentials,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop, signal.Signals(number).name)
    return await agent.run()


def _version() -> str:
    try:
        return importlib.metadata.version("midcourse")
    except importlib.metadata.PackageNotFoundError:
        return ""  # run from a source tree that is not installed: unknown
