"""Pauses that somebody outside has to end: said in the training log, ended where nobody could."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from trainer_agent.link.protocol import FINAL_REASONS

if TYPE_CHECKING:
    from midcourse.link.v1 import link_pb2
    from trainer_agent.steering.actions import Actions

logger = logging.getLogger(__name__)

REMIND_SECONDS: Final = 60.0
"""Between two lines in the training log while a run is held."""


class Pauses:
    """Sees to it that a run is never held for good.

    Args:
        job_id: Id of the job.
        monotonic_clock: Nanoseconds.
    """

    def __init__(self, job_id: str, monotonic_clock: Callable[[], int]) -> None:
        self._job_id = job_id
        self._clock = monotonic_clock
        self._begun: int | None = None
        self._told: int = 0
        self._cut_off = ""

    def detached(self, why: link_pb2.Detached) -> None:
        """Note that steering has ended; for good, if the reason is one of those."""
        if why.reason in FINAL_REASONS:
            self._cut_off = f"{why.message} ({why.reason})"

    def end_for_want_of_others(self, actions: Actions) -> bool:
        """End a pause that nobody could end any more; every rank does so at the same boundary.

        Returns:
            Whether there was one.
        """
        if not self._cut_off or not actions.paused:
            return False
        actions.paused = False
        logger.warning(
            "job %s: the pause is over and training goes on: nobody could have ended it from "
            "outside, as steering has ended for good: %s",
            self._job_id,
            self._cut_off,
        )
        return True

    def remind(self, step: int) -> None:
        """Say, once a minute, that the run is held after a step, and how that can be ended."""
        now = self._clock()
        if self._begun is None:
            self._begun = now
        elif now - self._told < REMIND_SECONDS * 1e9:
            return
        self._told = now
        logger.warning(
            "job %s: paused after step %d, for %.0f min now: `midcourse resume %s` lets it go on, "
            "`midcourse stop %s` ends it with a checkpoint",
            self._job_id,
            step,
            (now - self._begun) / 60e9,
            self._job_id,
            self._job_id,
        )

    def over(self) -> None:
        """Note that the run is not held any more."""
        self._begun = None
