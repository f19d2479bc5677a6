"""What the analytics service adds to the time to the first token of an answer.

The floor is the provider's SDK by itself, asking a fake provider that is a process of its own and
sending what the service sends: the same instructions, the same tools, the same history. Ours is
the client, `midcourse analytics serve` as another process with its database in a file, and the same
fake behind it. Both are asked by the same load generator, on the same kind of event loop, in turns.

One at a time the fake says all at once. Several at a time its answers take half a second, as
answers do: were they to come at once, what is measured would be how many a core can manage, and
not how long one is waited for. Questions come at random times; else they would come in step.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import openai

from analytics_service.client import AsyncClient, MidcourseError
from grpc_runtime.logging import configure_logging
from grpc_runtime.server import run
from tests.bench.report import Row, percentile
from tests.support.analytics import NOBODY, OPENAI_MODEL, XAI_MODEL, running_analytics
from tests.support.fake_provider import fake_provider_process, paced
from tests.support.processes import Process, free_port, until

QUESTION: Final = "Why did the loss of demo-sft rise after step 1,200, and what would help?"
DELTAS: Final = 20
INTERVAL_MS: Final = 25
THINK_SECONDS: Final = 0.1
"""Most seconds between an answer and the next question of the same worker."""
MODELS: Final = {"at once": OPENAI_MODEL, "paced": XAI_MODEL}
"""Which model each of the two fakes answers for."""
KEYS: Final = {"OPENAI_API_KEY": "sk-bench-1", "XAI_API_KEY": "sk-bench-2"}

Ask = Callable[[], Awaitable[float]]
"""Asks once, reads the answer to its end and returns the milliseconds to its first text."""


@dataclass
class Times:
    """Milliseconds to the first token, and what went wrong."""

    floor: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    async def take(self, into: list[float], ask: Ask) -> None:
        """Asks once and notes what came of it."""
        try:
            into.append(await ask())
        except (MidcourseError, openai.OpenAIError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Stand:
    """Everything that is asked.

    Attributes:
        client: Of the service.
        sdks: The SDK by itself, by the kind of fake.
        bodies: What the service sends with the first, the second, … question of a session.
    """

    client: AsyncClient
    sdks: Mapping[str, openai.AsyncOpenAI]
    bodies: Sequence[Mapping[str, Any]]

    async def floor(self, kind: str, turn: int = 0) -> float:
        """Asks the provider."""
        body: dict[str, Any] = {**self.bodies[turn], "model": MODELS[kind]}
        asked = time.perf_counter()
        first: float | None = None
        stream = await self.sdks[kind].responses.create(
            **body, timeout=httpx2.Timeout(60, connect=10)
        )
        async for event in stream:
            if first is None and event.type == "response.output_text.delta":
                first = time.perf_counter()
        assert first is not None
        return (first - asked) * 1e3

    async def ours(self, kind: str, session: str = "") -> float:
        """Asks the service."""
        asked = time.perf_counter()
        first: float | None = None
        async with self.client.chat(QUESTION, model=MODELS[kind], session=session) as chat:
            async for event in chat:
                if first is None and event.WhichOneof("event") == "text_delta":
                    first = time.perf_counter()
        assert first is not None
        return (first - asked) * 1e3


async def bodies_of(directory: Path, count: int) -> list[Mapping[str, Any]]:
    """What the service sends a provider for one question after the other in a session."""
    keys: dict[str, str | None] = {"ANTHROPIC_API_KEY": None, "XAI_API_KEY": None}
    async with running_analytics(directory, keys=keys) as analytics:
        analytics.fake.default = paced(DELTAS)
        session = ""
        for _ in range(count):
            answer = await analytics.client.ask(QUESTION, session=session)
            session = answer.session
        return [request.body for request in analytics.fake.requests]


@contextlib.contextmanager
def service(directory: Path, urls: Mapping[str, str]) -> Iterator[tuple[str, Process]]:
    """`midcourse analytics serve`, and its address."""
    catalogue = directory / "models.toml"
    catalogue.write_text(
        "".join(
            f'[[providers]]\nid = "{name}"\nprotocol = "openai-responses"\nbase_url = "{url}"\n\n'
            for name, url in urls.items()
        )
    )
    port = free_port()
    process = Process(
        "analytics",
        [
            *("-m", "control_plane.cli", "analytics", "serve", f"--listen=127.0.0.1:{port}"),
            *(f"--database={directory / 'analytics.db'}", f"--catalogue={catalogue}"),
            *(f"--control-plane={NOBODY}", "--log-format=json"),
        ],
        directory,
        **KEYS,
    )

    def listens() -> bool:
        assert process.exit_code is None, process.tail()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        until(listens, "the analytics service")
        yield f"127.0.0.1:{port}", process
    finally:
        process.end()


@contextlib.asynccontextmanager
async def stand(directory: Path, bodies: Sequence[Mapping[str, Any]]) -> AsyncIterator[Stand]:
    """Starts everything."""
    deltas = f"--deltas={DELTAS}"
    async with contextlib.AsyncExitStack() as stack:
        at_once = stack.enter_context(fake_provider_process(deltas))
        slow = stack.enter_context(fake_provider_process(deltas, f"--interval-ms={INTERVAL_MS}"))
        urls = {"openai": at_once.openai_url, "xai": slow.openai_url}
        address, _ = stack.enter_context(service(directory, urls))
        client = await stack.enter_async_context(AsyncClient(address))
        sdks = {}
        for kind, fake in (("at once", at_once), ("paced", slow)):
            sdks[kind] = await stack.enter_async_context(
                openai.AsyncOpenAI(api_key="sk-bench", base_url=fake.openai_url, max_retries=0)
            )
        yield Stand(client, sdks, bodies)


async def one_at_a_time(on: Stand, count: int) -> Times:
    """New sessions, one question after the other, floor and ours in turns."""
    times = Times()
    for number in range(-5, count):
        into = times if number >= 0 else Times()  # the first few connect and warm up
        await into.take(into.floor, lambda: on.floor("at once"))
        await into.take(into.ours, lambda: on.ours("at once"))
    return times


async def one_session(on: Stand) -> Times:
    """One session that grows with each question; the floor's history grows likewise."""
    times = Times()
    session = (await on.client.ask(QUESTION, model=MODELS["at once"])).session
    for turn in range(1, len(on.bodies)):

        async def floor(turn: int = turn) -> float:
            return await on.floor("at once", turn)

        await times.take(times.floor, floor)
        await times.take(times.ours, lambda: on.ours("at once", session))
    return times


async def at_once(on: Stand, workers: int, seconds: float, parts: int) -> Times:
    """Workers who ask again and again, each in new sessions; floor and ours in turns."""
    times = Times()
    seeds = random.Random(workers)

    async def worker(into: list[float], ask: Ask, end: float, chance: random.Random) -> None:
        answer_seconds = DELTAS * INTERVAL_MS / 1e3
        await asyncio.sleep(chance.uniform(0, answer_seconds + THINK_SECONDS))
        while time.perf_counter() < end:
            await times.take(into, ask)
            await asyncio.sleep(chance.uniform(0, THINK_SECONDS))

    for _ in range(parts):
        for into, ask in (
            (times.floor, lambda: on.floor("paced")),
            (times.ours, lambda: on.ours("paced")),
        ):
            end = time.perf_counter() + seconds / parts
            await asyncio.gather(
                *(worker(into, ask, end, random.Random(seeds.random())) for _ in range(workers))
            )
    return times


def shown(what: str, times: Times, p50: float | None, p99: float | None) -> list[Row]:
    """The rows of one way of asking.

    Args:
        what: How it was asked.
        times: What came of it.
        p50: Most milliseconds that we may add, in half of the cases; None: no goal.
        p99: The same in all cases but one of a hundred.
    """
    base = percentile(times.floor, 50)
    rows = []
    for percent, added in ((50, p50), (99, p99)):
        if added is not None:
            ours = percentile(times.ours, percent)
            rows.append(
                Row(
                    f"chat: time to first token, {what}, p{percent}",
                    "ms",
                    percentile(times.floor, percent),
                    ours,
                    base + added,
                    f"floor's p50 + {added:g} ms; added {ours - base:.2f} ms",
                )
            )
    return rows


def errors(what: str, times: Times) -> Row:
    """The row that counts what went wrong."""
    note = (
        f"of {len(times.ours)} answers; p50 {percentile(times.ours, 50):.3g} ms, "
        f"floor {percentile(times.floor, 50):.3g} ms"
    )
    if times.errors:
        note += f"; {times.errors[0]}"
    return Row(f"chat: {what}, errors", "errors", None, float(len(times.errors)), 0.0, note)


async def measure(
    directory: Path, bodies: Sequence[Mapping[str, Any]], *, quick: bool
) -> list[Row]:
    count, seconds, parts = (60, 2.0, 1) if quick else (500, 12.0, 4)
    async with stand(directory, bodies) as on:
        single = await one_at_a_time(on, count)
        growing = await one_session(on)
        sixteen = await at_once(on, 16, seconds, parts)
        many = await at_once(on, 64, seconds / 2, parts)
    return [
        *shown("1 at a time", single, 3.0, 10.0),
        *shown(f"1 at a time, session of up to {len(bodies) - 1} answers", growing, 3.0, 10.0),
        *shown("16 at a time", sixteen, None, 30.0),
        *(
            errors(what, times)
            for what, times in (
                ("1 at a time", single),
                ("one session", growing),
                ("16 at a time", sixteen),
                ("64 at a time", many),
            )
        ),
    ]


def rows(directory: Path, *, quick: bool) -> list[Row]:
    """The rows of the chat."""
    (directory / "bodies").mkdir()
    configure_logging(level="warning")
    bodies = asyncio.run(bodies_of(directory / "bodies", 20 if quick else 100))
    return run(measure(directory, bodies, quick=quick))
