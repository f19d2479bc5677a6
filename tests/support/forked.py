"""Processes that need not import what takes seconds: forked from one that has, by the fork server.

Nothing that forks badly is in there: no thread, no grpc.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.processes import ROOT


class Forked:
    """Starts processes, and ends those that are left.

    Args:
        preload: The modules that are imported already.
    """

    def __init__(self, *preload: str) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._started: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'protos'}")
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("HF_HUB_OFFLINE", "1")
            from multiprocessing import forkserver

            forkserver.ensure_running()

    def start(self, function: Callable[..., object], *args: object) -> Any:
        """Run a function of a module in a process of its own."""
        process = self._context.Process(target=function, args=args)
        process.start()
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join(30)
