"""What holds for every test and for every process that a test starts."""

from __future__ import annotations

import collections
import gc
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# No test needs a model hub, and looking for one that is not there takes half a minute. To be said
# before the library that reads it is imported, which is when the first test of it is collected.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tests run side by side, one process each: threads of torch's own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make test` is a gate: it draws little, and the same every time, for a change to be judged by what
# it changes. `make test-long` asks for "thorough", which draws more and anew.
hypothesis.settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=200, deadline=None)
hypothesis.settings.load_profile("quick")

# Shells have what they start in the background ignore Ctrl-C, and whatever that starts as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What is compiled once, here and in the processes that tests start, is not compiled again by each.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests are given the most time, for nobody to wait for them last.

    Files are handed out to the workers in this order, see WORKERS in the Makefile.
    """
    seconds: dict[Path, float] = collections.defaultdict(float)
    for item in items:
        marker = item.get_closest_marker("timeout")
        given = marker.args[0] if marker else float(item.config.getini("timeout"))
        seconds[item.path] = max(seconds[item.path], given)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True, scope="module")
def _loaded_is_no_garbage() -> None:
    """Keep what is loaded out of later collections.

    A trainer collects when it begins and when it ends, and would look through every object of
    every library, which takes longer than the few steps between.
    """
    gc.collect()
    gc.freeze()
