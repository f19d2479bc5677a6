"""GGUF files, written by the package of that name, and read as transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from analytics_service.providers.base import Fault, ProviderError, ProviderRequest, UserTurn
from analytics_service.providers.local_engine import Engine
from analytics_service.providers.local_gguf import GgufError, read

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<pad>", "<s>", "</s>", *LETTERS, "lo", "ss", "loss"]
MERGES = ["l o", "s s", "lo ss"]
HIDDEN, WIDE, HEADS, KEY_HEADS = 64, 96, 4, 2
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
Q4, Q8, F16 = GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16


def write(
    file: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    *,
    is_tied: bool = True,
    architecture: str = "llama",
    pre: str = "smollm",
) -> Path:
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(5)

    def add(name: str, *shape: int) -> None:
        numbers = random.normal(scale=0.3, size=shape).astype(np.float32)
        if len(shape) == 1 or kind is GGMLQuantizationType.F32:
            writer.add_tensor(name, numbers)
        else:
            writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)

    add("token_embd.weight", len(TOKENS), HIDDEN)
    add("output_norm.weight", HIDDEN)
    if not is_tied:
        add("output.weight", len(TOKENS), HIDDEN)
    keys = HIDDEN // HEADS * KEY_HEADS
    for layer in range(2):
        for name, *shape in (
            ("attn_norm", HIDDEN),
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", keys, HIDDEN),
            ("attn_v", keys, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_norm", HIDDEN),
            ("ffn_gate", WIDE, HIDDEN),
            ("ffn_up", WIDE, HIDDEN),
            ("ffn_down", HIDDEN, WIDE),
        ):
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("kind", "is_tied"), [(Q4, True), (Q8, False), (F16, True)])
def test_it_reads_what_transformers_reads(
    tmp_path: Path, kind: GGMLQuantizationType, is_tied: bool
) -> None:
    file = write(tmp_path / "tiny.gguf", kind, is_tied=is_tied)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    model: Any
    model, tokenizer = read(file)
    expected, got = theirs.state_dict(), model.state_dict()
    assert got.keys() == expected.keys()
    for name, weight in got.items():
        assert torch.equal(weight, expected[name]), name
    prompt = tokenizer("the loss at step 12", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(model.eval()(prompt).logits, theirs.eval()(prompt).logits)
    assert model.generation_config.eos_token_id == 2


def test_its_tokens_are_those_of_transformers_but_for_spaces_before_digits(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf")
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    _, tokenizer = read(file)
    text = "loss, the\n\n<s>loss</s> é🎉 loss"
    assert tokenizer(text).input_ids == theirs(text).input_ids
    assert tokenizer.decode(tokenizer("a  12").input_ids) == "a  12"
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.tokenize("loss") == ["loss"]


def test_an_engine_opens_it(tmp_path: Path) -> None:
    engine = Engine.open(write(tmp_path / "tiny.gguf"), threads=1)
    request = ProviderRequest("m", "", (UserTurn("hi"),), max_output_tokens=3)
    assert len(list(engine.answer(request, lambda: False))) > 3


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@settings(max_examples=40)
@given(part=st.floats(0, 0.99))
def test_a_file_that_was_cut_is_told(
    part: float, content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("cut") / "tiny.gguf"
    file.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(GgufError):
        read(file)


def test_what_is_not_known_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tiny.gguf"
    for said, changed in (
        ("begins with b'FUGG'", b"FUGG" + content[4:]),
        ("version 9", content[:4] + b"\x09\0\0\0" + content[8:]),
    ):
        file.write_bytes(changed)
        with pytest.raises(GgufError, match=said):
            read(file)
    with pytest.raises(GgufError, match=r"general\.architecture is 'mamba', known: llama"):
        read(write(tmp_path / "mamba.gguf", architecture="mamba"))
    with pytest.raises(GgufError, match=r"tokenizer\.ggml\.pre is 'qwen2', known: gpt-2, smollm"):
        read(write(tmp_path / "qwen.gguf", pre="qwen2"))


def test_the_engine_names_the_file_at_fault(tmp_path: Path) -> None:
    missing = tmp_path / "none.gguf"
    with pytest.raises(ProviderError, match=r"none\.gguf") as caught:
        Engine.open(missing, threads=1)
    assert caught.value.fault is Fault.MODEL_NOT_FOUND
