"""The command: light jobs in this process, or in several that this one starts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import signal
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from grpc_runtime.logging import configure_logging
from grpc_runtime.process import prepare_for_many
from trainer_agent.simulate.display import Display
from trainer_agent.simulate.light_jobs import LightJobs, Totals
from trainer_agent.simulate.options import SimulateOptions, to_arguments
from trainer_agent.simulate.spec import METRICS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

_TELL_EVERY: Final = 0.5
_FILES_BESIDE_JOBS: Final = 100


def run(options: SimulateOptions) -> int:
    """Runs light jobs until they are to end, and returns the exit status."""
    configure_logging(level=options.log_level, log_format="auto")
    problem = _impossible(options)
    if problem:
        sys.stderr.write(f"midcourse simulate: {problem}\n")
        return 2
    if options.worker:
        return _on_fast_loop(_work(options))
    return _on_fast_loop(_show(options))


def _on_fast_loop(work: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ModuleNotFoundError:  # comes with the server; without it there is room for fewer jobs
        return asyncio.run(work)
    result: int = uvloop.run(work)
    return result


def _impossible(options: SimulateOptions) -> str:
    """Prepares this process; says what of the options can not be; empty: all of it can."""
    unknown = set(options.metrics or ()) - set(METRICS)
    if unknown:
        return f"--metrics takes {', '.join(METRICS)}, got {', '.join(sorted(unknown))}"
    if options.processes > options.jobs:
        return f"got {options.processes} processes for {options.jobs} jobs; use at most as many"
    most = prepare_for_many()
    each = -(-options.jobs // options.processes)
    needed = (options.connections or each) + _FILES_BESIDE_JOBS
    if most is not None and needed > most:
        return (
            f"{each} jobs in a process need {needed} open files, and it may have {most}; use more "
            "--processes, or fewer --connections"
        )
    return ""


def light_jobs(options: SimulateOptions) -> LightJobs:
    """Returns the jobs that the options ask for, all in this process."""
    return LightJobs(
        options.control_plane,
        options.jobs,
        first=options.first,
        prefix=options.prefix,
        labels=options.labels,
        method=options.method,
        step_time=options.step_time,
        max_steps=options.steps,
        report_every=options.report_every,
        metrics=options.metrics,
        seed=options.seed,
        connections=options.connections,
    )


# --------------------------------------------------------------------------------- in this process


async def _show(options: SimulateOptions) -> int:
    """Runs the jobs, here or in other processes, and shows how they do."""
    told = _told_to_end()
    with Display(options) as display:
        if options.processes > 1:
            return await _with_workers(options, display, told)
        jobs = light_jobs(options)
        await _run_here(jobs, options, told, lambda: display.show(jobs.totals(), jobs))
        display.ended(jobs.totals())
        return 0


async def _run_here(
    jobs: LightJobs, options: SimulateOptions, told: asyncio.Event, tell: Callable[[], None]
) -> None:
    """Runs the jobs until they are done, the time is up or they are told to end."""
    starting = asyncio.create_task(jobs.start())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(options.duration):
                while not told.is_set() and not all(job.finished for job in jobs):
                    tell()
                    if starting.done():
                        starting.result()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(told.wait(), _TELL_EVERY)
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await jobs.end()
        tell()


def _told_to_end() -> asyncio.Event:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    return told


# ------------------------------------------------------------------------------- in other processes


async def _work(options: SimulateOptions) -> int:
    """Runs jobs for the process that started this one, until that closes our input."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal interrupts all of them
    loop.add_signal_handler(signal.SIGTERM, told.set)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def parent_gone() -> None:
        await reader.read()
        told.set()

    watching = asyncio.create_task(parent_gone())
    jobs = light_jobs(options)

    def tell() -> None:
        sys.stdout.write(json.dumps(asdict(jobs.totals())) + "\n")
        sys.stdout.flush()

    try:
        await _run_here(jobs, options, told, tell)
    except BrokenPipeError:
        return 1  # nobody is there to be told
    finally:
        watching.cancel()
    return 0


async def _with_workers(options: SimulateOptions, display: Display, told: asyncio.Event) -> int:
    totals: dict[int, Totals] = {}

    def tell() -> None:
        display.show(functools.reduce(Totals.__add__, totals.values(), Totals()))

    async with contextlib.AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(_worker(each)) for each in shares(options)]
        readers = [
            asyncio.create_task(_follow(worker, functools.partial(totals.__setitem__, number)))
            for number, worker in enumerate(workers)
        ]
        while not told.is_set() and not all(reader.done() for reader in readers):
            tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), _TELL_EVERY)
        for worker in workers:
            if worker.stdin is not None:
                worker.stdin.close()
        await asyncio.gather(*readers)
        codes = [await worker.wait() for worker in workers]
    display.ended(functools.reduce(Totals.__add__, totals.values(), Totals()))
    return 0 if not any(codes) else 1


def shares(options: SimulateOptions) -> list[SimulateOptions]:
    """Returns what each of the processes has to do."""
    size, more = divmod(options.jobs, options.processes)
    found = []
    first = options.first
    for number in range(options.processes):
        jobs = size + (number < more)
        found.append(replace(options, jobs=jobs, first=first, processes=1, worker=True))
        first += jobs
    return found


@contextlib.asynccontextmanager
async def _worker(options: SimulateOptions) -> AsyncIterator[asyncio.subprocess.Process]:
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "trainer_agent.simulate",
        *to_arguments(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield worker
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()


async def _follow(worker: asyncio.subprocess.Process, tell: Callable[[Totals], None]) -> None:
    assert worker.stdout is not None
    async for line in worker.stdout:
        tell(Totals(**json.loads(line)))
