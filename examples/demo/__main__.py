"""Steers a real training run and shows it: ``python -m examples.demo --method sft``.

A control plane, a TRL run and its agent, each in a process of its own on this machine; the run
begins with too low a learning rate, which is changed while it goes on. Nothing is downloaded, and
nothing stays behind but two pictures in the output directory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console

from control_plane.client import Client, JobWatch, MidcourseError
from examples.demo import picture
from examples.demo.display import Display
from examples.demo.processes import DemoError, Process, Processes
from examples.demo.scenarios import ANSWERS_FILE, SCENARIOS, Scenario
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2

_HEARTBEAT: Final = "0.2"
_PROGRESS_INTERVAL: Final = 0.1
_APPLY_TIMEOUT: Final = 60.0
_EXIT_TIMEOUT: Final = 60.0
_PATIENCE: Final = 5.0
_AVERAGED: Final = 10
_RATE: Final = "learning_rate"
_ENDED: Final = {job_pb2.JOB_STATE_FINISHED, job_pb2.JOB_STATE_FAILED}
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit status."""
    options = _options(arguments)
    scenario = SCENARIOS[options.method]
    if options.quick:
        scenario = scenario.quick()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        with tempfile.TemporaryDirectory(prefix="midcourse-") as directory:
            _Demo(console, scenario, Path(directory), options).run()
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped", style="yellow")
        return _INTERRUPTED
    except DemoError as error:
        if error.log:
            console.print(f"\n{error.log}\n", style="dim")
        console.print(f"the demo failed: {error}", style="red")
        return 1
    return 0


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


def _exit_on_signal(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


class _Demo:
    """One run of the demo."""

    def __init__(
        self, console: Console, scenario: Scenario, directory: Path, options: argparse.Namespace
    ) -> None:
        self._console = console
        self._scenario = scenario
        self._directory = directory
        self._options = options
        self._headings = 0

    def run(self) -> None:
        """Runs it.

        Raises:
            DemoError: Something does not work; what, and what it said last.
        """
        began = time.monotonic()
        with Processes(self._directory) as processes:
            self._heading("A control plane: midcourse serve")
            address = processes.start_control_plane("--heartbeat-interval", _HEARTBEAT)
            self._say(f"serves on {address}, with a new database")
            server = processes.control_plane
            assert server is not None
            try:
                with Client(address) as plane:
                    self._train(plane, address, processes)
            except MidcourseError as error:
                server.check_running()
                raise server.failed(f"the control plane answered: {error}") from error
        self._console.print(f"\ndone in {time.monotonic() - began:.0f} s; nothing is left running")

    def _train(self, plane: Client, address: str, processes: Processes) -> None:
        scenario = self._scenario
        self._heading(
            f"A training run: TRL's {scenario.trainer} teaches a tiny model to {scenario.learns}"
        )
        self._say(f"job {scenario.job}, {scenario.steps} steps, learning rate {scenario.too_low:g}")
        plane.create_job(scenario.job, method=scenario.method, labels={"demo": "true"})
        arguments = ["--method", scenario.method, "--directory", str(self._directory / "run")]
        trainer = processes.start_trainer(
            *arguments, *(["--quick"] if self._options.quick else []), control_plane=address
        )
        with plane.watch_jobs(
            job=scenario.job, progress_interval=_PROGRESS_INTERVAL, patience=_PATIENCE
        ) as watch:
            threading.Thread(target=_end_watch, args=(trainer, watch), daemon=True).start()
            update, latency = self._follow(plane, watch, trainer)
        trainer.wait(_EXIT_TIMEOUT)
        self._report(plane, address, update, latency)

    def _follow(
        self, plane: Client, watch: JobWatch, trainer: Process
    ) -> tuple[update_pb2.Update, float]:
        """Shows the run to its end, and changes it on the way; returns the update and its delay."""
        scenario = self._scenario
        changed: tuple[update_pb2.Update, float] | None = None
        with Display(self._console, scenario.metric, scenario.steps) as display:
            for event in watch:
                if not event.HasField("job"):
                    continue
                job = event.job
                display.show(job, job_pb2.JobState.Name(job.state)[len("JOB_STATE_") :].lower())
                if job.state in _ENDED:
                    break
                if changed is None and job.progress.step >= scenario.change_after:
                    changed = self._change(plane, display)
        if trainer.popen.poll() not in (None, 0):
            trainer.check_running()
        if changed is None:
            raise trainer.failed(
                f"the training run was over before its step {scenario.change_after} was seen"
            )
        return changed

    def _change(self, plane: Client, display: Display) -> tuple[update_pb2.Update, float]:
        """Changes the learning rate; returns the update and the seconds until it was made."""
        scenario = self._scenario
        display.line(
            f'→ plane.set("{scenario.job}", learning_rate={scenario.better:g}, '
            f'reason="{scenario.reason}", wait=True)',
            style="bold",
        )
        called = time.time()
        update = plane.set(
            scenario.job,
            learning_rate=scenario.better,
            reason=scenario.reason,
            wait=True,
            wait_timeout=_APPLY_TIMEOUT,
        )
        latency = update.applied.apply_time.ToNanoseconds() / 1e9 - called
        display.line(
            f"← APPLIED at step {update.applied.step}, {_old_to_new(update)}, "
            f"{1e3 * latency:.0f} ms after the call",
            style="bold green",
        )
        return update, latency

    def _report(
        self, plane: Client, address: str, update: update_pb2.Update, latency: float
    ) -> None:
        scenario = self._scenario
        self._heading("What the control plane knows about it")
        self._midcourse(address, "job", scenario.job)
        self._midcourse(address, "history", scenario.job)
        self._midcourse(address, "metrics", scenario.job, scenario.metric, _RATE, "--plot")

        self._heading("What came of it")
        series = {one.name: one for one in plane.query_metrics(scenario.job)}
        metric, rate = series[scenario.metric], series[_RATE]
        step = update.applied.step
        before = [v for s, v in zip(metric.steps, metric.values, strict=True) if s < step]
        self._say(
            f"{scenario.metric}, mean of {_AVERAGED} steps: {_mean(before[:_AVERAGED]):.3g} at the "
            f"start, {_mean(before[-_AVERAGED:]):.3g} before the change, "
            f"{_mean(metric.values[-_AVERAGED:]):.3g} at the end"
        )
        self._say(
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
            f"{_old_to_new(update)} at step {step}, {1e3 * latency:.0f} ms after the call",
        )
        self._say(f"pictures: {' and '.join(str(file) for file in files)}")

    def _show_answers(self) -> None:
        file = self._directory / "run" / ANSWERS_FILE
        if not file.exists():
            return
        written = json.loads(file.read_text(encoding="utf-8"))
        for word, before, after in zip(*written.values(), strict=True):
            verdict = "right" if after == word[::-1] else "wrong"
            self._say(f"{word} backwards: {before!a} before, {after!a} after, {verdict}")

    def _midcourse(self, address: str, *arguments: str) -> None:
        """Runs the command, as anybody could beside the demo."""
        self._console.print(f"\n$ midcourse {' '.join(arguments)}", style="bold")
        sys.stdout.flush()
        command = [sys.executable, "-m", "control_plane.cli", *arguments]
        environment = {**os.environ, "MIDCOURSE_CONTROL_PLANE": address}
        done = subprocess.run(command, env=environment, check=False)  # noqa: S603 - no shell
        if done.returncode != 0:
            raise DemoError(f"midcourse {arguments[0]} ended with exit status {done.returncode}")

    def _heading(self, text: str) -> None:
        self._headings += 1
        self._console.print(f"\n{self._headings}. {text}", style="bold cyan")

    def _say(self, text: str) -> None:
        self._console.print(f"   {text}")


def _end_watch(trainer: Process, watch: JobWatch) -> None:
    """Ends the watch when the process has ended without saying so."""
    if trainer.popen.wait() == 0:
        time.sleep(_PATIENCE)  # for its agent to report the end
    watch.close()


def _old_to_new(update: update_pb2.Update) -> str:
    transition = update.applied.transitions[0]
    return (
        f"{transition.parameter} {transition.old_value.number:.3g} → "
        f"{transition.new_value.number:.3g}"
    )


def _median_step_seconds(rate: control_pb2.Series) -> float:
    """Returns how long a step takes; the learning rate is reported at every step."""
    return statistics.median(b - a for a, b in itertools.pairwise(rate.time_micros)) / 1e6


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
