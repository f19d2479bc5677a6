"""Whether a service can do anything at all, where that takes something that may be away."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from grpc_runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_LOOK_SECONDS: Final = 1.0

_log = get_logger(__name__)


class Readiness:
    """Notices when what a service cannot do without is away, and when it is there again.

    What fails is only a suspicion, as one attempt may fail for reasons of its own: then an attempt
    that leaves nothing tells.
    """

    def __init__(self, what: str, is_away: Callable[[Exception], bool]) -> None:
        """Begins with the belief that it is there.

        Args:
            what: Its name in the log, such as store.
            is_away: Whether an error says that it is away.
        """
        self._what = what
        self._is_away = is_away
        self._suspected = asyncio.Event()

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        """Looks at what the block raises."""
        try:
            yield
        except Exception as error:
            if self._is_away(error):
                self._suspected.set()
            raise

    async def run(
        self, attempt: Callable[[], Awaitable[object]], tell: Callable[[bool], None]
    ) -> None:
        """Tells when it is lost, and when it is there again, until cancelled.

        Args:
            attempt: Uses it, and leaves nothing.
            tell: Is called with whether it is there.

        Raises:
            Exception: What an attempt raises that does not say that it is away.
        """
        while True:
            await self._suspected.wait()
            is_lost = False
            while (error := await self._error(attempt)) is not None:
                if not is_lost:
                    is_lost = True
                    _log.warning(f"not ready: the {self._what} is away", error=error)
                    tell(False)
                await asyncio.sleep(_LOOK_SECONDS)
            if is_lost:
                _log.info(f"ready: the {self._what} is there again")
                tell(True)

    async def _error(self, attempt: Callable[[], Awaitable[object]]) -> str | None:
        """Why it can not be used; None: it can."""
        self._suspected.clear()
        try:
            await attempt()
        except Exception as error:
            if not self._is_away(error):
                raise
            return str(error)
        return None
