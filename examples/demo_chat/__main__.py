"""Asks a model about a run with a spike in its loss: ``python -m examples.demo_chat``.

A control plane, a TRL run with its agent, and the analytics service, each in a process of its own
on this machine. While the run goes on, its learning rate is raised too far, which makes the loss
spike, and lowered again, which tames it. Then a model is asked what happened, and answers from what
the control plane knows: the model that ``--model`` names, else the cheapest that there is a key for
(OPENAI_API_KEY, ANTHROPIC_API_KEY, XAI_API_KEY), else a tiny one in the service's own process,
which needs neither a key nor a network. Nothing stays behind.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from analytics_service.client import Client as Analytics
from control_plane.client import Client, MidcourseError
from examples.demo.display import Display
from examples.demo.processes import DemoError, Process, Processes
from examples.demo.stage import Stage, perform
from examples.demo.steering import old_to_new, set_rate, snapshots
from examples.demo_chat.scenario import (
    CALM,
    JOB,
    QUESTION,
    RAISE_AFTER,
    RATE,
    RECKLESS,
    SPIKE,
    STEPS,
)
from midcourse.analytics.v1 import model_pb2

if TYPE_CHECKING:
    from midcourse.control.v1 import job_pb2, update_pb2

_LOSS: Final = "loss"
_LOCAL: Final = "local"
_LOCAL_TOKENS: Final = "120"
"""Most tokens that the tiny model may write: it seldom knows when to end."""
_PATIENCE: Final = 300.0
"""Seconds that the answer may take, on a machine that is busy with other things as well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_chat", description=__doc__)
    parser.add_argument("--model", default="", help="id or alias of the model to ask")
    options = parser.parse_args(arguments)
    return perform(lambda stage, directory: _play(stage, directory, options.model))


def _play(stage: Stage, directory: Path, model: str) -> None:
    """Runs it.

    Raises:
        DemoError: Something does not work; what, and what it said last.
    """
    began = time.monotonic()
    with Processes(directory) as processes:
        stage.heading("A control plane, and the analytics service")
        plane_address = processes.start_control_plane()
        stage.say(f"midcourse serve serves on {plane_address}, with a new database")
        analytics_address = processes.start_analytics(
            "--idle-timeout", f"{_PATIENCE:g}", control_plane=plane_address
        )
        stage.say(f"midcourse analytics serve serves on {analytics_address}, with one of its own")
        try:
            with Client(plane_address) as plane:
                truth = _train(stage, plane, processes, directory, plane_address)
            with Analytics(analytics_address) as analytics:
                chosen = choose(analytics.list_models(), model)
        except MidcourseError as error:
            raise DemoError(f"a service answered: {error}") from error
        _ask(stage, chosen, truth, plane_address, analytics_address)
    stage.console.print(f"\ndone in {time.monotonic() - began:.0f} s; nothing is left running")


def _train(
    stage: Stage, plane: Client, processes: Processes, directory: Path, address: str
) -> list[str]:
    """Has a run's loss spike and tames it; returns what happened."""
    stage.heading("A training run whose loss spikes")
    stage.say(f"job {JOB}, {STEPS} steps of TRL's SFTTrainer, learning rate {RATE:g}")
    plane.create_job(JOB, method="sft", labels={"demo": "true"})
    trainer = processes.start_trainer(
        "examples.demo_chat.training",
        *("--directory", str(directory / "run")),
        control_plane=address,
    )
    raised, tamed = _follow(stage, plane, trainer)
    (loss,) = (one for one in plane.query_metrics(JOB) if one.name == _LOSS)
    course = list(zip(loss.steps, loss.values, strict=True))
    before = [value for step, value in course if step < raised.applied.step]
    step, highest = max((at for at in course if at[0] >= raised.applied.step), key=lambda at: at[1])
    return [
        f"step {raised.applied.step}: {old_to_new(raised)}",
        f"step {step}: loss {highest:.3g}, its highest, after {before[-1]:.3g} before the change",
        f"step {tamed.applied.step}: {old_to_new(tamed)}",
        f"step {course[-1][0]}: loss {course[-1][1]:.3g} at the end",
    ]


def _follow(
    stage: Stage, plane: Client, trainer: Process
) -> tuple[update_pb2.Update, update_pb2.Update]:
    """Shows the run to its end; returns the change for the worse and that for the better."""
    raised: update_pb2.Update | None = None
    tamed: update_pb2.Update | None = None
    usual = 0.0
    with Display(stage.console, _LOSS, STEPS) as display:
        for job in snapshots(plane, JOB, trainer, display):
            loss = _newest(job)
            if raised is None:
                usual = loss or usual
                if usual and RAISE_AFTER <= job.progress.step < STEPS:
                    raised, _ = set_rate(
                        plane, JOB, display, RECKLESS, "to learn faster", force=True
                    )
            elif tamed is None and loss is not None and loss > SPIKE * usual:
                tamed, _ = set_rate(plane, JOB, display, CALM, "the loss has spiked")
    if raised is None or tamed is None:
        raise trainer.failed("the training run was over before its loss was seen to spike")
    return raised, tamed


def _newest(job: job_pb2.Job) -> float | None:
    return next((metric.value for metric in job.metrics if metric.name == _LOSS), None)


def choose(models: Iterable[model_pb2.Model], wanted: str) -> model_pb2.Model:
    """Returns the model to ask.

    Args:
        models: All models, the cheapest first.
        wanted: Id or alias of one; empty: the cheapest that can look at runs by itself, else the
            local one.

    Raises:
        DemoError: There is none, or the one that is wanted can not be chosen.
    """
    known = list(models)
    if wanted:
        for model in known:
            if wanted == model.model_id or wanted in model.aliases:
                if not model.available:
                    raise DemoError(f"{wanted} can not be asked: {model.unavailable_reason}")
                return model
        ids = ", ".join(model.model_id for model in known)
        raise DemoError(f"there is no model {wanted!r}; there are: {ids}")
    there = [model for model in known if model.available]
    active = [
        model
        for model in there
        if model.supports_tools and model.lifecycle.stage == model_pb2.LIFECYCLE_STAGE_ACTIVE
    ]
    local = [model for model in known if model.provider == _LOCAL]
    for model in (*active, *(model for model in local if model.available)):
        return model
    raise DemoError(
        "no model can be asked; " + "; ".join(model.unavailable_reason for model in local)
    )


def _ask(
    stage: Stage,
    model: model_pb2.Model,
    truth: Sequence[str],
    plane_address: str,
    analytics_address: str,
) -> None:
    stage.heading(f"A question to {model.display_name}")
    is_local = model.provider == _LOCAL
    if is_local:
        stage.say("It runs in the service's own process, without a network, on what the service")
        stage.say("reads for it. It is tiny: it shows the way from a question to an answer, and")
        stage.say("its words are not to be relied on. With a key, or MODEL=…, a real one answers.")
    midcourse = partial(
        stage.midcourse,
        MIDCOURSE_CONTROL_PLANE=plane_address,
        MIDCOURSE_ANALYTICS=analytics_address,
    )
    shorter = ["--max-output-tokens", _LOCAL_TOKENS] if is_local else []
    midcourse(
        *("chat", "--model", model.model_id, "--job", JOB),
        *("--timeout", f"{_PATIENCE:g}s", *shorter, QUESTION),
    )
    stage.heading("What really happened, to compare")
    for line in truth:
        stage.say(line)
    stage.heading("What it took")
    midcourse("usage", "--records")
    midcourse("usage")


if __name__ == "__main__":
    sys.exit(main())
