"""How a fuzzer is run: drawn by hypothesis, which also makes what fails as small as it can be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from tests.fuzz.material import Draw

BOUND_SECONDS = 30.0
"""What takes longer hangs."""


class Fuzzer:
    """Says anything to something real, and looks at what comes of it.

    Attributes:
        name: What speaks and what listens.
        cases: How many conversations there were.
        said: How many messages.
        expected: Failures beside everything else that are known, and mended by others.
    """

    name = ""
    expected: tuple[type[BaseException], ...] = ()

    def __init__(self, folder: Path) -> None:
        """Takes a folder for files."""
        self.folder = folder
        self.cases = 0
        self.said = 0

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Starts what listens; what is pushed onto the stack ends it."""

    async def converse(self, draw: Draw) -> None:
        """One conversation, from its beginning to the proof that nothing has suffered.

        Raises:
            AssertionError: Something is not as promised.
        """
        raise NotImplementedError


class Exploration:
    """A fuzzer that is ready, and the loop that it works in."""

    def __init__(self, runner: asyncio.Runner, fuzzer: Fuzzer) -> None:
        self.fuzzer = fuzzer
        self._runner = runner
        self._failure: Exception | None = None

    def explore(self, cases: int, seed: int | None = None, *, shrink: bool = False) -> None:
        """Has so many conversations.

        Args:
            cases: How many, at most.
            seed: What they are drawn from; None: as the profile says.
            shrink: Look for the smallest that fails, which takes many more of them.
        """
        options: dict[str, Any] = {"max_examples": cases, "deadline": None, "database": None}
        options["suppress_health_check"] = list(HealthCheck)
        options["phases"] = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
        if seed is not None:
            options["derandomize"] = False

        @settings(**options)
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            self._runner.run(self._one(data.draw))

        self._failure = None
        try:
            (hypothesis.seed(seed)(holds) if seed is not None else holds)()
        except Flaky:
            # What needs luck to fail does fail: as it did when it did.
            raise self._first_failure() from None

    def _first_failure(self) -> Exception:
        return self._failure or AssertionError("no failure was seen")

    async def _one(self, draw: Draw) -> None:
        self.fuzzer.cases += 1
        loop = asyncio.get_running_loop()
        failed: list[dict[str, Any]] = []

        def note(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            expected = isinstance(context.get("exception"), self.fuzzer.expected)
            if not expected and not _of_another_loop(context):
                failed.append(context)

        loop.set_exception_handler(note)
        try:
            async with asyncio.timeout(4 * BOUND_SECONDS):
                await self.fuzzer.converse(draw)
            assert not failed, f"failed beside everything else: {failed}"
        except Exception as error:
            self._failure = self._failure or error
            raise
        finally:
            loop.set_exception_handler(None)


def _of_another_loop(context: Mapping[str, Any]) -> bool:
    """Whether something came for a loop that is closed: gRPC has one poller for all of them."""
    closed = str(context.get("exception")) == "Event loop is closed"
    return closed and "PollerCompletionQueue" in str(context.get("handle"))


@contextlib.contextmanager
def ready(kind: type[Fuzzer], folder: Path) -> Iterator[Exploration]:
    """Starts what a fuzzer talks to, and ends it."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        fuzzer = kind(folder)
        runner.run(fuzzer.open(stack))
        try:
            yield Exploration(runner, fuzzer)
        finally:
            runner.run(stack.aclose())
