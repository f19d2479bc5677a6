"""Tiny training runs of every method, made on the spot: no hub, no downloads, no accelerator.

A byte-level tokenizer, a two-layer Llama, a data set per method and a function that builds a ready
trainer::

    trainer = build_trainer("sft", output_dir, max_steps=20, learning_rate=3e-3)
    trainer.train()

The same seed gives the same run, to the bit, on one thread of one machine.
"""

from __future__ import annotations

import os

# Before the libraries that read them are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
)

METHODS = ("sft", "dpo", "orpo", "kto", "reward", "grpo", "rloo")
"""The training methods there are."""

LETTERS = "abcdefgh"
WORD_LENGTH = 6

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def build_trainer(
    method: str, output_dir: str | Path, *, samples: int = 1024, **args: Any
) -> Trainer:
    """Build a ready trainer.

    ``sft`` learns to write words backwards: 300 steps of 32 samples, some 60 ms each on one core,
    take the loss from 5.5 to below 0.1 at the default learning rate.

    Args:
        method: One of ``METHODS``.
        output_dir: Where the tiny model, and what the trainer saves, go.
        samples: Size of the data set.
        args: More training arguments, over the defaults of :func:`training_arguments`.

    Raises:
        ValueError: There is no such method.
    """
    build = _BUILDERS.get(method)
    if build is None:
        raise ValueError(f"the methods are {', '.join(METHODS)}; got {method!r}")
    output_dir = Path(output_dir)
    seed = args.get("seed", 0)
    model = save_tiny_model(output_dir / f"tiny-model-{seed}", seed)
    trainer = build(str(model), training_arguments(output_dir, **args), samples)
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(output_dir: str | Path, **args: Any) -> dict[str, Any]:
    """Return training arguments for a tiny run on the CPU, with those given over the defaults."""
    return {
        "output_dir": str(output_dir),
        "max_steps": 10,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 0,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": [],
        "disable_tqdm": True,
        **args,
    }


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that makes each byte one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    fast = make(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    fast.padding_side = "left"
    return fast


def save_tiny_model(directory: Path, seed: int = 0, hidden_size: int = 64) -> Path:
    """Save a two-layer Llama with random weights, and its tokenizer; once for a directory.

    DPO and RLOO load their reference model from where the model came from, so it must lie there.
    """
    if (directory / "config.json").exists():
        return directory
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def words(count: int, seed: int) -> list[str]:
    """Return random words."""
    generator = random.Random(seed)
    return ["".join(generator.choices(LETTERS, k=WORD_LENGTH)) for _ in range(count)]


def reversal_task(count: int, seed: int = 0) -> Dataset:
    """Return words to write backwards, as prompts and completions."""
    return Dataset.from_list(
        [{"prompt": f"{word}>", "completion": word[::-1]} for word in words(count, seed)]
    )


def preference_task(count: int, seed: int = 0) -> Dataset:
    """Return words with a right and a wrong way to write them backwards."""
    return Dataset.from_list(
        [
            {"prompt": f"{word}>", "chosen": word[::-1], "rejected": word}
            for word in words(count, seed)
        ]
    )


def prompt_task(count: int, seed: int = 0) -> Dataset:
    """Return words to continue."""
    return Dataset.from_list([{"prompt": f"{word}>"} for word in words(count, seed)])


def ascii_reward(completions: list[str], **_: Any) -> list[float]:
    """Reward the share of a completion's characters that are ASCII.

    About half of what an untrained model writes is, so that there is something to learn from.
    """
    return [
        sum(character.isascii() for character in text) / max(len(text), 1) for text in completions
    ]


def reversal_accuracy(trainer: Trainer, count: int = 32, seed: int = 1) -> float:
    """Return the share of words never seen in training that the model writes backwards."""
    asked = words(count, seed)
    right = sum(
        answer == word[::-1] for answer, word in zip(answers(trainer, asked), asked, strict=True)
    )
    return right / len(asked)


def answers(trainer: Trainer, asked: Sequence[str]) -> list[str]:
    """Return what the model writes, without any chance in it, when asked for these words."""
    tokenizer = trainer.processing_class
    model: Any = trainer.model
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    prompts = tokenizer([f"{word}>" for word in asked], return_tensors="pt")
    was_training = model.training
    model.eval()
    generated = model.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=WORD_LENGTH,
        do_sample=False,
    )
    model.train(was_training)
    written: list[str] = tokenizer.batch_decode(
        generated[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return written


def _sft(model: str, args: dict[str, Any], samples: int) -> Trainer:
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]  # loaded lazily

    config = SFTConfig(**{"completion_only_loss": True, "max_length": 32, **args})
    return _trainer(SFTTrainer, model, config, train_dataset=reversal_task(samples))


def _dpo(model: str, args: dict[str, Any], samples: int) -> Trainer:
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]  # loaded lazily

    config = DPOConfig(**{"max_length": 32, **args})
    return _trainer(DPOTrainer, model, config, train_dataset=preference_task(samples))


def _orpo(model: str, args: dict[str, Any], samples: int) -> Trainer:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config = ORPOConfig(**{"max_length": 32, **args})
    return _trainer(ORPOTrainer, model, config, train_dataset=preference_task(samples))


def _kto(model: str, args: dict[str, Any], samples: int) -> Trainer:
    from trl import KTOConfig, KTOTrainer  # type: ignore[attr-defined]  # loaded lazily

    config = KTOConfig(**{"max_length": 32, **args})
    return _trainer(KTOTrainer, model, config, train_dataset=preference_task(samples))


def _reward(model: str, args: dict[str, Any], samples: int) -> Trainer:
    from trl import RewardConfig, RewardTrainer  # type: ignore[attr-defined]  # loaded lazily

    make: Callable[..., LlamaForSequenceClassification] = LlamaForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args["seed"])
        scorer = make(LlamaConfig.from_pretrained(model, num_labels=1))
    scorer.model = LlamaForCausalLM.from_pretrained(model).model
    return RewardTrainer(
        model=scorer,
        args=RewardConfig(**{"max_length": 32, **args}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(model),
        train_dataset=preference_task(samples),
    )


def _grpo(model: str, args: dict[str, Any], samples: int) -> Trainer:
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]  # loaded lazily

    config = GRPOConfig(**{"num_generations": 4, "max_completion_length": 8, **args})
    return _trainer(
        GRPOTrainer, model, config, train_dataset=prompt_task(samples), reward_funcs=ascii_reward
    )


def _rloo(model: str, args: dict[str, Any], samples: int) -> Trainer:
    from trl import RLOOConfig, RLOOTrainer  # type: ignore[attr-defined]  # loaded lazily

    config = RLOOConfig(**{"num_generations": 4, "max_completion_length": 8, **args})
    return _trainer(
        RLOOTrainer, model, config, train_dataset=prompt_task(samples), reward_funcs=ascii_reward
    )


def _trainer(cls: Callable[..., Trainer], path: str, config: Any, **rest: Any) -> Trainer:
    return cls(
        model=LlamaForCausalLM.from_pretrained(path),
        args=config,
        processing_class=PreTrainedTokenizerFast.from_pretrained(path),
        **rest,
    )


_BUILDERS: dict[str, Callable[[str, dict[str, Any], int], Trainer]] = {
    "sft": _sft,
    "dpo": _dpo,
    "orpo": _orpo,
    "kto": _kto,
    "reward": _reward,
    "grpo": _grpo,
    "rloo": _rloo,
}
