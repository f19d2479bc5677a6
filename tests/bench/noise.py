"""How busy the machine is with what is none of ours."""

from __future__ import annotations

import hashlib
import os
import threading
import time

_SECONDS = 0.25
_BLOCK = bytes(1 << 20)


def free_share() -> float:
    """Share of the processors' time that is to be had, of 1.

    A thread for each processor works for a quarter of a second, outside the interpreter's lock.
    """
    processors = len(os.sched_getaffinity(0))
    shares: list[float] = []

    def work() -> None:
        begun, used = time.perf_counter(), time.thread_time()
        while (passed := time.perf_counter() - begun) < _SECONDS:
            hashlib.sha256(_BLOCK)
        shares.append((time.thread_time() - used) / passed)

    threads = [threading.Thread(target=work) for _ in range(processors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return min(1.0, sum(shares) / processors)
