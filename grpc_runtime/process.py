"""What a process that holds thousands of streams asks of Python and of the system."""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_YOUNGEST: Final = 20_000
_MIDDLE: Final = 20
_OLDEST: Final = 50
_FILES_WITHOUT_LIMIT: Final = 10_240


@contextlib.contextmanager
def importing_much() -> Iterator[None]:
    """Collects no garbage in the block: modules leave little, and going through all is slow."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def prepare_for_many() -> int | None:
    """Prepares this process for thousands of connections; to be called once, before it serves.

    Garbage is collected far less often than Python does it by itself: what messages leave behind
    is freed by counting references, while a collection goes through all that the streams hold
    and halts the loop meanwhile; with a thousand streams for more than 100 ms at times, and
    a quarter of the loop's time in all. What is loaded by now is not gone through again.

    Returns:
        How many files this process may have open from now on: as many as it is allowed to have;
        None: the system does not say.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNGEST, _MIDDLE, _OLDEST)
    return None if sys.platform == "win32" else _open_many_files()


def _open_many_files() -> int:
    import resource

    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS may say that there is no limit, and takes no more than it has.
    endless = most == resource.RLIM_INFINITY
    wanted = max(least, _FILES_WITHOUT_LIMIT) if endless else most
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return wanted
