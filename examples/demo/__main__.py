"""Steers a real training run and shows it: ``python -m examples.demo --method sft``.

A control plane, a TRL run and its agent, each in a process of its own on this machine; the run
begins with too low a learning rate, which is changed while it goes on. Nothing is downloaded, and
nothing stays behind but two pictures in the output directory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from control_plane.client import Client, MidcourseError
from examples.demo import picture
from examples.demo.display import Display
from examples.demo.processes import Process, Processes
from examples.demo.scenarios import ANSWERS_FILE, SCENARIOS, Scenario
from examples.demo.stage import Stage, perform
from examples.demo.steering import old_to_new, set_rate, snapshots

if TYPE_CHECKING:
    from midcourse.control.v1 import control_pb2, update_pb2

_AVERAGED: Final = 10
_RATE: Final = "learning_rate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit status."""
    options = _options(arguments)
    scenario = SCENARIOS[options.method]
    if options.quick:
        scenario = scenario.quick()
    return perform(lambda stage, directory: _Demo(stage, scenario, directory, options).run())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--method", choices=SCENARIOS, default="sft", help="(default: sft)")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="where the pictures go (default: out)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a third of the steps: too few to learn much"
    )
    return parser.parse_args(arguments)


class _Demo:
    """One run of the demo."""

    def __init__(
        self, stage: Stage, scenario: Scenario, directory: Path, options: argparse.Namespace
    ) -> None:
        self._stage = stage
        self._scenario = scenario
        self._directory = directory
        self._options = options

    def run(self) -> None:
        """Runs it.

        Raises:
            DemoError: Something does not work; what, and what it said last.
        """
        began = time.monotonic()
        with Processes(self._directory) as processes:
            self._stage.heading("A control plane: midcourse serve")
            address = processes.start_control_plane()
            self._stage.say(f"serves on {address}, with a new database")
            server = processes.control_plane
            assert server is not None
            try:
                with Client(address) as plane:
                    self._train(plane, address, processes)
            except MidcourseError as error:
                server.check_running()
                raise server.failed(f"the control plane answered: {error}") from error
        self._stage.console.print(
            f"\ndone in {time.monotonic() - began:.0f} s; nothing is left running"
        )

    def _train(self, plane: Client, address: str, processes: Processes) -> None:
        scenario = self._scenario
        self._stage.heading(
            f"A training run: TRL's {scenario.trainer} teaches a tiny model to {scenario.learns}"
        )
        self._stage.say(
            f"job {scenario.job}, {scenario.steps} steps, learning rate {scenario.too_low:g}"
        )
        plane.create_job(scenario.job, method=scenario.method, labels={"demo": "true"})
        arguments = ["--method", scenario.method, "--directory", str(self._directory / "run")]
        trainer = processes.start_trainer(
            "examples.demo.training",
            *arguments,
            *(["--quick"] if self._options.quick else []),
            control_plane=address,
        )
        update, latency = self._follow(plane, trainer)
        self._report(plane, address, update, latency)

    def _follow(self, plane: Client, trainer: Process) -> tuple[update_pb2.Update, float]:
        """Shows the run to its end, and changes it on the way; returns the update and its delay."""
        scenario = self._scenario
        changed: tuple[update_pb2.Update, float] | None = None
        with Display(self._stage.console, scenario.metric, scenario.steps) as display:
            for job in snapshots(plane, scenario.job, trainer, display):
                if changed is None and scenario.change_after <= job.progress.step < scenario.steps:
                    changed = set_rate(
                        plane, scenario.job, display, scenario.better, scenario.reason
                    )
        if changed is None:
            raise trainer.failed(
                f"the training run was over before its step {scenario.change_after} was seen"
            )
        return changed

    def _report(
        self, plane: Client, address: str, update: update_pb2.Update, latency: float
    ) -> None:
        scenario = self._scenario
        self._stage.heading("What the control plane knows about it")
        midcourse = partial(self._stage.midcourse, MIDCOURSE_CONTROL_PLANE=address)
        midcourse("job", scenario.job)
        midcourse("history", scenario.job)
        midcourse("metrics", scenario.job, scenario.metric, _RATE, "--plot")

        self._stage.heading("What came of it")
        series = {one.name: one for one in plane.query_metrics(scenario.job)}
        metric, rate = series[scenario.metric], series[_RATE]
        step = update.applied.step
        before = [v for s, v in zip(metric.steps, metric.values, strict=True) if s < step]
        self._stage.say(
            f"{scenario.metric}, mean of {_AVERAGED} steps: {_mean(before[:_AVERAGED]):.3g} at the "
            f"start, {_mean(before[-_AVERAGED:]):.3g} before the change, "
            f"{_mean(metric.values[-_AVERAGED:]):.3g} at the end"
        )
        self._stage.say(
            f"a step takes {1e3 * _median_step_seconds(rate):.0f} ms (median), and a change waits "
            "for the end of the one that is running"
        )
        self._show_answers()
        files = picture.draw(
            self._options.out,
            scenario.job,
            f"{scenario.trainer}: a learning rate changed while the run goes on",
            metric,
            rate,
            step,
            f"{old_to_new(update)} at step {step}, {1e3 * latency:.0f} ms after the call",
        )
        self._stage.say(f"pictures: {' and '.join(str(file) for file in files)}")

    def _show_answers(self) -> None:
        file = self._directory / "run" / ANSWERS_FILE
        if not file.exists():
            return
        written = json.loads(file.read_text(encoding="utf-8"))
        for word, before, after in zip(*written.values(), strict=True):
            verdict = "right" if after == word[::-1] else "wrong"
            self._stage.say(f"{word} backwards: {before!a} before, {after!a} after, {verdict}")


def _median_step_seconds(rate: control_pb2.Series) -> float:
    """Returns how long a step takes; the learning rate is reported at every step."""
    return statistics.median(b - a for a, b in itertools.pairwise(rate.time_micros)) / 1e6


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
