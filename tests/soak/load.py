"""What goes on during the soak: jobs that come and go, and everybody who asks something of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from analytics_service.client import AsyncClient as Analytics
from control_plane.client import (
    AsyncClient,
    FailedPreconditionError,
    MidcourseError,
    NotFoundError,
    UnauthenticatedError,
)
from grpc_runtime.client.credentials import Credentials
from grpc_runtime.client.retry import RetryPolicy
from tests.soak.stand import Stand
from trainer_agent.simulate import LightJobs

STAYING = 0.2
"""Part of the jobs that stay, and restart; the others come and go."""
STAYING_SECONDS = 600.0
"""For how long: updates are kept as long as their job, and are to become no more in the end."""
LIFE_SECONDS = 60.0
"""Mean life of a job that comes and goes."""
GONE_SECONDS = 20.0
"""Mean time from a job's end until it is deleted."""
TEAMS = ("nlp", "vision", "speech")
MODEL = "gpt-6-luna"
_EXPECTED = frozenset({"FAILED_PRECONDITION", "NOT_FOUND", "ABORTED", "CANCELLED"})
"""Jobs end and callers give up meanwhile; anything else is an error."""
_DELETED = "jobs deleted"
_WATCHED = "events of watches that stay"
_MOST_REFUSED = 10
"""What is refused more often than this has to be done more often than it is refused."""


class Load:
    """All that goes on, until cancelled.

    Attributes:
        done: How often what was done.
        errors: What nobody should see, with how often.
        refused: How often what was refused for a reason that there may be.
        latencies: Seconds that updates took to be accepted, since somebody took them last.
    """

    def __init__(self, stand: Stand, jobs: int, rate: float, seed: int) -> None:
        """Prepares it.

        Args:
            stand: Whom it is for.
            jobs: Jobs at a time.
            rate: How often things are done, as a multiple of the usual.
            seed: What chance goes by.
        """
        self._stand = stand
        self._jobs = jobs
        self._rate = rate
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._live: set[str] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.latencies: list[float] = []

    async def run(self) -> None:
        """Goes on until cancelled; raises what is a fault of the soak itself."""
        retry = RetryPolicy(attempts=2)
        try:
            await self._run(retry)
        finally:
            for task in self._waiting:
                task.cancel()

    async def _run(self, retry: RetryPolicy) -> None:
        async with (
            AsyncClient(
                self._stand.plane.address, credentials=self._stand.admin, retry=retry
            ) as plane,
            Analytics(
                self._stand.analytics.address, credentials=self._stand.admin, retry=retry
            ) as analytics,
            asyncio.TaskGroup() as group,
        ):
            self._plane, self._analytics = plane, analytics
            staying = round(self._jobs * STAYING)
            for number in range(self._jobs):
                group.create_task(self._place(number, stays=number < staying))
            for each, seconds in (
                (self._update, 0.2),
                (self._act, 2.0),
                (self._batch, 10.0),
                (self._cancel, 5.0),
                (self._label, 5.0),
                (self._read, 0.5),
                (self._watch, 2.0),
                (self._watch_slowly, 10.0),
                (self._visit, 5.0),
                (self._ask, 2.0),
            ):
                group.create_task(self._every(seconds / self._rate, each))
            for interval in (None, None, None, 1.0):  # watches that stay
                group.create_task(self._stay(interval))

    # ------------------------------------------------------------------------------------ jobs

    async def _place(self, number: int, *, stays: bool) -> None:
        """One job after the other, each under a name of its own; those that stay restart first."""
        await asyncio.sleep(self._chance.uniform(0, 10))
        while True:
            prefix = f"{'stays' if stays else 'job'}-{number}-{next(self._numbers)}"
            # Not all of them at once, in the beginning.
            until = time.monotonic() + self._chance.uniform(0.5, 1) * STAYING_SECONDS
            job_id = await self._live_once(prefix)
            while stays and time.monotonic() < until:
                await self._live_once(prefix)
            self._later(self._delete(job_id))

    async def _live_once(self, prefix: str) -> str:
        """One life of a job; returns the job's id."""
        jobs = LightJobs(
            self._stand.plane.address,
            prefix=prefix,
            labels={"team": self._chance.choice(TEAMS)},
            step_time=0.05,
            report_every=1.0,
        )
        job = jobs[0]
        await jobs.start()
        self.done["jobs started"] += 1
        self._live.add(job.job_id)
        life = self._chance.expovariate(1 / LIFE_SECONDS) + 2
        with contextlib.suppress(TimeoutError):
            await job.until(lambda: job.finished, life)
        self._live.discard(job.job_id)
        if self._chance.random() < 0.5:
            await jobs.kill()  # as a host that is gone
            self.done["jobs killed"] += 1
        else:
            await jobs.end()
            self.done["jobs ended"] += 1
        return job.job_id

    async def _delete(self, job_id: str) -> None:
        await asyncio.sleep(self._chance.expovariate(1 / GONE_SECONDS))
        for _ in range(60):  # one that was killed seems to be connected for a while
            try:
                await self._plane.delete_job(job_id)
            except NotFoundError:  # the answer to an earlier try was lost
                break
            except MidcourseError as error:
                if not isinstance(error, FailedPreconditionError):
                    self._note(_DELETED, error)
                await asyncio.sleep(1)
            else:
                break
        else:
            self.errors["delete: a job that has ended can not be deleted for a minute"] += 1
            return
        self.done[_DELETED] += 1

    def _later(self, what: Awaitable[None]) -> None:
        task = asyncio.ensure_future(what)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    # --------------------------------------------------------------------------------- callers

    async def _every(self, seconds: float, what: Callable[[], Awaitable[None]]) -> None:
        name = what.__name__.lstrip("_")
        while True:
            await asyncio.sleep(self._chance.expovariate(1 / seconds))
            if len(self._waiting) < 500 and self._live:
                self._later(self._once(name, what))

    async def _once(self, name: str, what: Callable[[], Awaitable[None]]) -> None:
        with self._noting(name):
            await what()
            self.done[name] += 1

    @contextlib.contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        try:
            yield
        except MidcourseError as error:
            self._note(name, error)
        except Exception as error:  # noqa: BLE001 - is counted, and makes the soak fail
            self.errors[f"{name}: {error!r}"] += 1

    def _note(self, name: str, error: MidcourseError) -> None:
        code = error.code.name if error.code else "no code"
        if code in _EXPECTED:
            self.refused[name] += 1
        else:
            self.errors[f"{name}: {code} {error.reason}: {error}"] += 1

    def all_errors(self) -> Counter[str]:
        """What nobody should see, and what was mostly refused."""
        mostly = {
            f"{name}: {count} refused, {self.done[name]} done": count
            for name, count in self.refused.items()
            if count > max(_MOST_REFUSED, self.done[name])
        }
        return self.errors + Counter(mostly)

    def _job(self) -> str:
        return self._chance.choice(sorted(self._live))

    async def _update(self) -> None:
        began = time.perf_counter()
        await self._plane.set(
            self._job(), learning_rate=self._chance.uniform(1e-4, 2e-3), reason="soak"
        )
        self.latencies.append(time.perf_counter() - began)

    async def _act(self) -> None:
        job = self._job()
        kind = self._chance.choice(("pause", "evaluate", "evaluate", "stop"))
        if kind == "stop":
            await self._plane.stop(job, reason="soak")
        elif kind == "evaluate":
            await self._plane.evaluate(job)
        else:
            await self._plane.pause(job)
            await asyncio.sleep(2)
            await self._plane.resume(job)

    async def _batch(self) -> None:
        selector = f"team={self._chance.choice(TEAMS)}"
        made = await self._plane.batch_set(selector, {"weight_decay": self._chance.random() / 10})
        # Of jobs that were killed or paused meanwhile, none answers so soon.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                async for event in self._plane.watch_batch(made.batch.name):
                    if event.batch.progress.applied == len(made.items) or self._gives_up():
                        return

    def _gives_up(self) -> bool:
        return self._chance.random() < 0.1

    async def _cancel(self) -> None:
        job = self._job()
        update = await self._plane.set(job, at_step=10**9, weight_decay=0.5)
        await self._plane.cancel_update(job, update.revision, reason="soak")

    async def _label(self) -> None:
        await self._plane.label_job(self._job(), {"team": self._chance.choice(TEAMS)})

    async def _read(self) -> None:
        job = self._job()
        match self._chance.randrange(4):
            case 0:
                await self._plane.query_metrics(job, last=200)
            case 1:
                async for _ in self._plane.list_updates(job, page_size=50):
                    pass
            case 2:
                async for _ in self._plane.list_jobs("team=nlp", page_size=10):
                    pass
            case _:
                await self._plane.get_job(job)

    async def _watch(self) -> None:
        """A watch that is cut after a while."""
        interval = self._chance.choice((None, 0.5))
        watch = self._plane.watch_jobs(progress_interval=interval)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._chance.expovariate(1 / 10)):
                async for _ in watch:
                    pass

    async def _watch_slowly(self) -> None:
        """A watch of somebody who reads less than there is, and leaves without a word."""
        watch = self._plane.watch_jobs(progress_interval=0.5)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(30):
                async for _ in watch:
                    await asyncio.sleep(1)

    async def _stay(self, interval: float | None) -> None:
        """A watch for all of the run."""
        while True:
            with self._noting(_WATCHED):
                async for _ in self._plane.watch_jobs(progress_interval=interval, patience=30):
                    self.done[_WATCHED] += 1

    async def _visit(self) -> None:
        """Somebody with a token of their own, which is revoked while they watch."""
        made = await self._plane.create_token("visitor", "viewer", lifetime=600)
        credentials = Credentials(token=made.secret)
        async with AsyncClient(self._stand.plane.address, credentials=credentials) as visitor:
            await visitor.get_caller()
            watch = visitor.watch_jobs()
            await anext(aiter(watch))
            await self._plane.revoke_token(made.token.name)
            with contextlib.suppress(UnauthenticatedError):
                async with asyncio.timeout(60):
                    async for _ in watch:
                        pass

    async def _ask(self) -> None:
        """A question, in a session of its own or with one more; some are given up."""
        question = f"Why is the loss of {self._job()} what it is?"
        if self._chance.random() < 0.2:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._analytics.ask(question, model=MODEL)
            return
        answer = await self._analytics.ask(question, model=MODEL)
        if self._chance.random() < 0.3:
            await self._analytics.ask("And now?", session=answer.session)
