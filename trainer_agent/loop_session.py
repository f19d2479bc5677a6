"""How a loop that somebody wrote by hand begins to be steered: what it asked for becomes a session.

What the loop does from then on is in ``loop``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer_agent import identity
from trainer_agent.discovery import find
from trainer_agent.parameters import Boundary, GuardRails, LiveParameter
from trainer_agent.ranks import met, shared_instance_id
from trainer_agent.run import Run
from trainer_agent.steering import guard_rails as rails
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.links import LinkFactory, MuteLink
from trainer_agent.steering.reporting import Identity
from trainer_agent.steering.session import SteeringSession
from trainer_agent.telemetry import Telemetry
from trainer_agent.telemetry.gpu import find_gpu

if TYPE_CHECKING:
    from trainer_agent.parameters import Refused
    from trainer_agent.steering.protection import Protection

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopOptions:
    """What a loop was made with; see :class:`trainer_agent.loop.Loop`."""

    optimizer: Any
    scheduler: Any
    model: Any
    job: str | None
    control_plane: str
    labels: Mapping[str, str]
    method: str
    total_steps: int | None
    actions: Sequence[ActionKind]
    samples_per_step: int | None
    guard_rails: Mapping[str, GuardRails]
    protection: Protection | None
    link_factory: LinkFactory


@dataclass(frozen=True, slots=True)
class LoopSession:
    """A loop's session, on one rank.

    Attributes:
        job_id: Id of the job.
        controller: Applies its updates.
        session: Talks to its agent.
        telemetry: Measures its steps.
    """

    job_id: str
    controller: ParameterController
    session: SteeringSession
    telemetry: Telemetry
    _options: LoopOptions
    _loaded: Mapping[str, Any] | None
    _names: frozenset[str]
    _apart: Refused | None

    @classmethod
    def make(
        cls,
        options: LoopOptions,
        own: Sequence[LiveParameter],
        steps: int,
        loaded: Mapping[str, Any] | None,
    ) -> LoopSession:
        """Meet the other ranks and find what can be changed.

        Args:
            options: What the loop was made with.
            own: Live parameters of its own.
            steps: Optimizer steps done.
            loaded: What a loop's ``state_dict`` returned; None: nothing.
        """
        ranks, apart = met(*_place_among_ranks())
        try:
            parameters, metrics = _find(options, own)
            ranks, instance_id, lost = shared_instance_id(ranks, identity.new_instance_id())
        except Exception:
            ranks.close()  # which tells the others at once
            raise
        job_id = (
            options.job
            or (None if loaded is None else loaded["job"])
            or identity.generated_job_id(options.method)
        )
        if options.job is None and ranks.rank == 0:
            logger.info("this run is job %s; watch it with: midcourse watch %s", job_id, job_id)
        controller = ParameterController(
            parameters,
            instance_id,
            actions=Actions(dict.fromkeys((ActionKind.PAUSE, ActionKind.RESUME, *options.actions))),
            guard_rails=options.guard_rails,
            protection=options.protection,
            ranks=ranks,
        )
        telemetry = Telemetry(lambda: options.samples_per_step, find_gpu())
        session = SteeringSession(
            Identity(job_id, instance_id, options.control_plane, options.method, options.labels),
            controller,
            Boundary(steps, options.total_steps),
            link_factory=options.link_factory if ranks.rank == 0 else MuteLink,
            step_metrics=metrics,
            measures=telemetry.measures(),
            ranks=ranks,
        )
        names = frozenset(parameters)
        return cls(job_id, controller, session, telemetry, options, loaded, names, apart or lost)

    def begin(self) -> None:
        """Go on from the loaded state and begin to look for the agent.

        Raises:
            ValueError: State or guard rails do not fit; the agent is looked for all the same.
        """
        options, loaded, controller = self._options, self._loaded, self.controller
        try:
            if self._apart is not None:
                logger.warning("job %s: %s", self.job_id, self._apart.message)
                controller.switch_off(self._apart.reason, self._apart.message)
            if loaded is not None:
                same_job = options.job in {None, loaded["job"]}
                controller.load_state_dict(loaded["controller"], same_job=same_job)
            rails.check_names(options.guard_rails, self._names)
        except Exception as error:
            # What is in force here is not what is on the others, which would wait for votes.
            self.session.leave_ranks(error, "begin")
            raise
        finally:
            self.session.start()


def _find(
    options: LoopOptions, own: Sequence[LiveParameter]
) -> tuple[dict[str, LiveParameter], dict[str, Callable[[], float | None]]]:
    mine = {each.spec().name: each for each in own}
    if options.optimizer is None:
        return mine, {}
    found = find(
        Run(
            optimizer=options.optimizer,
            lr_scheduler=options.scheduler,
            model=options.model,
            method=options.method,
        )
    )
    return {**found.parameters, **mine}, found.metrics


def _place_among_ranks() -> tuple[int, int]:
    """Return the number of this rank, and how many there are."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
