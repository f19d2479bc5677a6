"""For how long a server has been able to hear anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from control_plane.services.ports import Steady

_log: FilteringBoundLogger = structlog.get_logger(__name__)


class Attention:
    """Notices that this server was held up, by a debugger or a machine that had no time for it.

    What others said meanwhile it has yet to read, so their silence tells nothing.
    """

    def __init__(self, steady: Steady, allowed: float) -> None:
        """Begins to listen.

        Args:
            steady: What silence is measured by.
            allowed: Seconds between two looks that are no gap.
        """
        self._steady = steady
        self._allowed = allowed
        self._since = self._looked = steady()

    def lasted(self) -> float:
        """Seconds since the server began, or was last held up. To be asked all the time."""
        now = self._steady()
        gap, self._looked = now - self._looked, now
        if gap > self._allowed:
            self._since = now
            _log.warning("was held up; agents get the time anew to be heard", seconds=round(gap, 1))
        return now - self._since
