"""Ids that sort by the time at which they were made."""

from __future__ import annotations

import secrets
import threading
import time

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """Returns 26 characters: microseconds since 1970, then chance. Never descending here."""
    global _last  # noqa: PLW0603 - the order of ids is the process's
    with _lock:
        _last = max(_last + 1, time.time_ns() // 1_000)
        micros = _last
    return f"{micros:014x}{secrets.token_hex(6)}"
