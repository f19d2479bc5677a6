"""A local model that is made on the spot: tiny, its weights random, its characters bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.offline import byte_tokenizer

CONTEXT = 512
TEMPLATE = (
    "{% for message in messages %}{{ bos_token }}{{ message['role'] }}\n"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)


def save_local_model(directory: Path) -> Path:
    """Saves a checkpoint; its model never ends an answer by itself, for all that is known."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
        # Far apart, so that what comes next depends on what was said.
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def end_answers_at(directory: Path, token: int) -> None:
    """Lets a token end the answers of a checkpoint."""
    file = directory / "generation_config.json"
    settings: dict[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token_id": [token]}))
