"""The examples and demos that the README's commands do not run."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from tools.newcomer.place import MINUTES, Place, SkippedError


def run(place: Place, python: Path) -> None:
    """Those that the README's commands do not run."""
    with contextlib.ExitStack() as servers:

        def serve() -> None:
            servers.enter_context(place.background("midcourse serve", python))
            ask = f"midcourse health --address {place.plane}"
            place.until(lambda: place.succeeds(python, ask), "the control plane serves")

        def raw_loop() -> None:
            raw = ("examples/raw_loop.py", "--job=raw", "--steps=300")
            place.run(python, *raw, f"--directory={place.folder / 'raw'}", python=python)
            place.run("midcourse", "job", "raw", python=python)

        def backend_service() -> str:
            simulated = "midcourse simulate --jobs 3 --label team=nlp --report-every 0.5"
            guard = "python examples/backend_service.py --selector team=nlp --metric loss"
            with (
                place.background(simulated, python, signal.SIGINT),
                place.background(f"{guard} --rises 1", python) as log,
            ):
                place.until(lambda: "light-" in log.read_text(), "it does something")
            return log.read_text().splitlines()[-1][:60]

        def lightning() -> str:
            if place.succeeds(python, "python -c 'import lightning'"):
                place.run(python, "examples/lightning_loop.py", python=python)
                return "ok"
            raise SkippedError("lightning is not among the requirements")

        place.step("example: a control plane for them", serve)
        place.step("example: raw_loop.py", raw_loop)
        place.step("example: backend_service.py, over light jobs", backend_service)
        place.step("example: lightning_loop.py", lightning)
        place.step("example: the control plane ends", servers.close)


def demo_cluster(place: Place) -> None:
    """The one that the README tells of in passing."""
    if not place.asked.demos:
        raise SkippedError("--no-demos")
    place.run("make", "demo-cluster", seconds=10 * MINUTES)
