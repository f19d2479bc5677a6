"""The local model at work: prompts, and the loop that writes one token after the other.

Imports torch and transformers, so it is imported on a thread, and only when needed. The loop is
written out, instead of calling ``generate``, so that it can be stopped within the prompt too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

from analytics_service.providers import local_gguf
from analytics_service.providers.base import (
    Fault,
    Finished,
    FinishReason,
    ProviderError,
    ProviderEvent,
    ProviderRequest,
    TextDelta,
    UsageReport,
    UserTurn,
)
from analytics_service.providers.prompt import Round, normalized
from analytics_service.usage.tokens import TokenUsage

_CHUNK: Final = 128
"""Tokens of a prompt that are read at once: a few tenths of a second, then it can be stopped."""
_HELD: Final = 8
"""Most tokens whose text is held back because it may be a part of a character."""
_UNREADABLE: Final = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What transformers raises where a folder holds no model, or a broken one."""
_CUT: Final = "\N{REPLACEMENT CHARACTER}"


class Engine:
    """A model with its tokenizer. Not thread-safe."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Uses a causal language model, and a tokenizer with a chat template."""
        self._model = model
        self._tokenizer = tokenizer
        self._context = int(model.config.max_position_embeddings)
        ends = model.generation_config.eos_token_id
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        added = tokenizer.added_tokens_decoder.values()
        self._marks = tuple(token.content for token in added if token.special)

    @classmethod
    def open(cls, source: Path, threads: int) -> Engine:
        """Opens a model; nothing is asked of any network.

        Args:
            source: A GGUF file, or a folder as transformers saves a model and its tokenizer.
            threads: Threads that the calling thread computes with.

        Raises:
            ProviderError: It can not be read.
        """
        torch.set_num_threads(threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        model: Any
        tokenizer: Any
        try:
            if source.is_dir():
                tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
                model = AutoModelForCausalLM.from_pretrained(
                    source, local_files_only=True, dtype=torch.float32
                )
            else:
                model, tokenizer = local_gguf.read(source)
        except (*_UNREADABLE, local_gguf.GgufError) as error:
            raise ProviderError(
                Fault.MODEL_NOT_FOUND, f"the local model {source} can not be read: {error}"
            ) from error
        return cls(model.eval(), tokenizer)

    def answer(
        self, request: ProviderRequest, is_stopped: Callable[[], bool]
    ) -> Generator[ProviderEvent, None, None]:
        """Answers; ends early, without `Finished`, when told to stop.

        Raises:
            ProviderError: The prompt does not fit.
        """
        prompt = self.prompt(request)
        room = self._context - len(prompt)
        if room < 1:
            raise ProviderError(
                Fault.CONTEXT_TOO_LONG,
                f"the prompt has {len(prompt)} tokens, and the local model has room for "
                f"{self._context}, its answer included",
            )
        cache = DynamicCache(config=self._model.config)
        text = PiecewiseText(self._decode)
        reason = FinishReason.LENGTH
        unread = prompt
        written, said = 0, ""
        while written < min(request.max_output_tokens, room):
            usage = UsageReport(TokenUsage(input=len(prompt), output=written))
            scores = yield from self._read(unread, cache, usage, is_stopped)
            if scores is None:
                return
            token = _chosen(scores, request.temperature)
            unread = [token]
            written += 1
            if token in self._ends:
                reason = FinishReason.STOP
                break
            if piece := text.feed(token):
                said += piece
                yield TextDelta(piece)
                if any(each in said for each in request.stop):
                    reason = FinishReason.STOP
                    break
        if piece := text.rest():
            yield TextDelta(piece)
        yield UsageReport(TokenUsage(input=len(prompt), output=written))
        yield Finished(reason)

    def prompt(self, request: ProviderRequest) -> list[int]:
        """The tokens that a request comes to."""
        tokens: list[int] = self._tokenizer.apply_chat_template(
            chat_messages(request, self._marks), add_generation_prompt=True, return_dict=False
        )
        return tokens

    def _read(
        self,
        tokens: Sequence[int],
        cache: DynamicCache,
        usage: UsageReport,
        is_stopped: Callable[[], bool],
    ) -> Generator[ProviderEvent, None, torch.Tensor | None]:
        """Reads tokens on, with a sign of life before each chunk.

        Returns:
            The scores of what may come next; None: stopped.
        """
        scores: torch.Tensor | None = None
        for start in range(0, len(tokens), _CHUNK):
            yield usage
            if is_stopped():
                return None
            with torch.inference_mode():
                read = self._model(
                    input_ids=torch.tensor([tokens[start : start + _CHUNK]]),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            scores = read.logits[0, -1]
        return scores

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def chat_messages(request: ProviderRequest, marks: Collection[str]) -> list[dict[str, str]]:
    """A request as the messages that chat templates know.

    Tools are words to a model that can not call any. What looks like one of the tokenizer's own
    marks is taken apart, so that no text can pass itself off as another speaker's.

    Args:
        request: The request.
        marks: The tokenizer's special tokens.
    """
    said: list[tuple[str, str]] = [("system", request.system)] if request.system.strip() else []
    for turn in normalized(request.turns):
        match turn:
            case UserTurn(text):
                said.append(("user", text))
            case Round(answer, results):
                calls = [f"[{call.name}({_arguments(call.raw)})]" for call in answer.tool_requests]
                said.append(("assistant", "\n".join(filter(None, [answer.text, *calls]))))
                said += [("user", f"[result]\n{result.content}") for result in results]
    messages: list[dict[str, str]] = []
    for role, raw in said:
        text = without_marks(raw, marks)
        # Many templates want the speakers to take turns.
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{text}"
        else:
            messages.append({"role": role, "content": text})
    return messages


def without_marks(text: str, marks: Collection[str]) -> str:
    """Puts a space into whatever reads like one of the marks, behind its first character."""
    if not marks:
        return text
    pattern = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    return re.sub(pattern, lambda found: f"{found[0][0]} {found[0][1:]}", text)


class PiecewiseText:
    """Text of tokens that come one by one, cut between characters."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Decodes with a tokenizer's function."""
        self._decode = decode
        self._told: list[int] = []
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        """Takes a token; returns the text that is certain."""
        self._held.append(token)
        piece = self._piece()
        if piece.endswith(_CUT) and len(self._held) < _HELD:
            return ""
        self._told, self._held = self._held, []
        return piece

    def rest(self) -> str:
        """Returns what is left at the end, but for a character that was cut."""
        return self._piece().rstrip(_CUT) if self._held else ""

    def _piece(self) -> str:
        # What was told before is decoded along: to some tokenizers a text's beginning differs.
        return self._decode([*self._told, *self._held])[len(self._decode(self._told)) :]


def _chosen(scores: torch.Tensor, temperature: float | None) -> int:
    if not temperature:
        return int(scores.argmax())
    return int(torch.multinomial(torch.softmax(scores / temperature, dim=-1), 1))


def _arguments(raw: str) -> str:
    """Arguments in one line."""
    try:
        return json.dumps(json.loads(raw), ensure_ascii=False)
    except ValueError:
        return raw
