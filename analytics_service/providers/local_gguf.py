"""Reads a Llama model and its tokenizer from a GGUF file, in about three seconds.

transformers reads such files too, with the same package's reader, but takes half a minute: that
reader makes an array of each of 150,000 strings, and it is gone through three times. Here the
package does what it does fast, which is to unpack the weights.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_Array: TypeAlias = npt.NDArray[Any]

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_ALIGNMENT: Final = 32
_CONTROL: Final = 3
"""Type of the tokens that are marks rather than text."""
_FORMATS: Final = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}


class GgufError(Exception):
    """The file is no GGUF file, is damaged, or holds what is not known here."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Where a tensor lies.

    Attributes:
        shape: As numpy has it, the fastest dimension last.
        kind: How its numbers are packed.
        offset: From the start of the tensors' data.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int


def read(file: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Reads a file.

    Returns:
        The model, its weights unpacked, and its tokenizer with the chat template.

    Raises:
        GgufError: It can not be read.
        OSError: Nor can the file itself.
    """
    try:
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            header = _Header(content)
            _check(header.facts)
            return _model(header, content), _tokenizer(header.facts)
    except (struct.error, ValueError, KeyError, IndexError, OverflowError) as error:
        raise GgufError(f"it is damaged or incomplete: {error!r}") from error


class _Header:
    """Everything in a file but the weights."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = len(_MAGIC)
        if content[: len(_MAGIC)] != _MAGIC:
            raise GgufError(f"it begins with {content[:4]!r}, not with {_MAGIC!r}")
        version = self._number(GGUFValueType.UINT32)
        if version not in _VERSIONS:
            raise GgufError(f"it has version {version} of GGUF, known are {_VERSIONS}")
        tensors = self._number(GGUFValueType.UINT64)
        facts = self._number(GGUFValueType.UINT64)
        self.facts: dict[str, Any] = {}
        for _ in range(facts):
            name = self._string()
            self.facts[name] = self._value(self._kind())
        self.tensors = dict(self._tensor() for _ in range(tensors))
        alignment = self.facts.get("general.alignment", _ALIGNMENT)
        self.data = -(-self._at // alignment) * alignment

    def _number(self, kind: GGUFValueType) -> Any:
        form = _FORMATS[kind]
        (number,) = form.unpack_from(self._content, self._at)
        self._at += form.size
        return number

    def _kind(self) -> GGUFValueType:
        return GGUFValueType(self._number(GGUFValueType.UINT32))

    def _string(self) -> str:
        start = self._at + 8
        end = start + self._number(GGUFValueType.UINT64)
        self._at = end
        return self._content[start:end].decode()

    def _value(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is not GGUFValueType.ARRAY:
            return self._number(kind)
        inner = self._kind()
        return [self._value(inner) for _ in range(self._number(GGUFValueType.UINT64))]

    def _tensor(self) -> tuple[str, _Tensor]:
        name = self._string()
        dimensions = self._number(GGUFValueType.UINT32)
        shape = [self._number(GGUFValueType.UINT64) for _ in range(dimensions)]
        kind = GGMLQuantizationType(self._number(GGUFValueType.UINT32))
        return name, _Tensor(tuple(reversed(shape)), kind, self._number(GGUFValueType.UINT64))


def _check(facts: dict[str, Any]) -> None:
    for name, known in (
        ("general.architecture", ("llama",)),
        ("tokenizer.ggml.model", ("gpt2",)),
        ("tokenizer.ggml.pre", tuple(_SPLITTERS)),
    ):
        if facts[name] not in known:
            raise GgufError(f"{name} is {facts[name]!r}, known: {', '.join(known)}")


def _model(header: _Header, content: mmap.mmap) -> LlamaForCausalLM:
    facts = header.facts
    heads, key_heads = facts["llama.attention.head_count"], facts["llama.attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=len(facts["tokenizer.ggml.tokens"]),
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=facts["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in header.tensors,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with torch.device("meta"):
        wanted = LlamaForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    weights = {}
    for name in wanted:
        theirs = names.get_name(name, try_suffixes=(".weight",))
        tensor = _unpacked(header.tensors[theirs or name], content, header.data)
        if name.endswith("q_proj.weight"):
            tensor = _halves(tensor, heads)
        elif name.endswith("k_proj.weight"):
            tensor = _halves(tensor, key_heads)
        weights[name] = torch.from_numpy(np.ascontiguousarray(tensor))
    load: Any = LlamaForCausalLM.from_pretrained
    model: LlamaForCausalLM = load(None, config=config, state_dict=weights, dtype=torch.float32)
    return model


def _unpacked(tensor: _Tensor, content: mmap.mmap, data: int) -> _Array:
    in_block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
    rows = int(np.prod(tensor.shape[:-1]))
    row_bytes = tensor.shape[-1] // in_block * block_bytes
    # A copy, as a view would keep the file from being closed.
    start = data + tensor.offset
    packed = np.frombuffer(content[start : start + rows * row_bytes], dtype=np.uint8)
    packed = packed.reshape(*tensor.shape[:-1], row_bytes)
    if tensor.kind is GGMLQuantizationType.F32:
        return packed.view(np.float32).copy()
    return gguf.dequantize(packed, tensor.kind)


def _halves(weight: _Array, heads: int) -> _Array:
    """Puts rows in the order in which transformers rotates them: halves instead of pairs."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(facts: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _SPLITTERS[facts["tokenizer.ggml.pre"]]
    tokenizer.decoder = decoders.ByteLevel()
    kinds = facts["tokenizer.ggml.token_type"]
    marks = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    make: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        bos_token=tokens[facts["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[facts["tokenizer.ggml.eos_token_id"]],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = facts["tokenizer.chat_template"]
    return made


_BYTES: Final = pre_tokenizers.ByteLevel(add_prefix_space=False)
_SPLITTERS: Final = {
    "gpt-2": _BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
}
"""What cuts a text before its pieces are made tokens, by its name in GGUF."""
