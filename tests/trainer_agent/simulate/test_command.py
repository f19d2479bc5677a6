"""The command as a process, and its command line."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from midcourse.control.v1 import job_pb2
from tests.support.plane import RunningPlane
from trainer_agent.simulate.main import shares
from trainer_agent.simulate.options import SimulateOptions, parse_options, to_arguments

ROOT = Path(__file__).parents[3]


async def simulate(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trainer_agent.simulate", *arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def connected(plane: RunningPlane, count: int) -> None:
    async with asyncio.timeout(60):
        while plane.plane.sessions.count < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)  # between two looks


@pytest.mark.parametrize("processes", [1, 2])
async def test_an_interrupt_ends_all_in_good_order(plane: RunningPlane, processes: int) -> None:
    process = await simulate(
        *(f"--control-plane={plane.address}", "--jobs=3", "--step-time=0.01"),
        *("--label=team=nlp", f"--processes={processes}"),
    )
    await connected(plane, 3)
    process.send_signal(signal.SIGINT)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    assert "3 light jobs ended after" in output.decode()
    for number in range(3):
        job = await plane.get_job(f"light-{number:05d}")
        assert job.labels == {"team": "nlp"}
        assert job.state == job_pb2.JOB_STATE_FINISHED


async def test_it_ends_when_the_time_is_up(plane: RunningPlane) -> None:
    process = await simulate(f"--control-plane={plane.address}", "--jobs=1", "--duration=1")
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()


def test_it_loads_no_torch() -> None:
    script = (
        "import sys, trainer_agent.simulate.main\n"
        "print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs=0"], "must be a whole number, 1 or more, got '0'"),
        (["--step-time=-1"], "must be a number of seconds above 0, got '-1'"),
        (["--label=x"], "must be KEY=VALUE, such as team=nlp, got 'x'"),
        (["--prefix=A b"], "the name of a job must be 1 to 63 of a-z"),
    ],
)
def test_what_can_not_be_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments, {})
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_options_survive_the_way_to_another_process() -> None:
    options = SimulateOptions(
        control_plane="a:1,b:2",
        jobs=7,
        first=3,
        prefix="p",
        labels={"team": "nlp", "x": "a=b"},
        method="dpo",
        step_time=0.25,
        steps=9,
        metrics=("loss",),
        seed=5,
        duration=2.5,
        connections=4,
        processes=2,
        log_level="info",
    )
    assert parse_options(to_arguments(options), {}) == options
    first, second = shares(options)
    assert (first.first, first.jobs, second.first, second.jobs) == (3, 4, 7, 3)
    assert parse_options(to_arguments(second), {}) == second
