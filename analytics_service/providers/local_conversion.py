"""Converts a GGUF file into a checkpoint: ``python -m`` this, with the file and a new folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def convert(source: Path, target: Path) -> None:
    """Writes weights, configuration, tokenizer and chat template of a GGUF file.

    Args:
        source: The file.
        target: The folder to make.
    """
    silence()
    where = {"gguf_file": source.name, "local_files_only": True}
    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, **where)
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    # The model says that it is quantized, and for that reason refuses to save itself; by now its
    # weights are plain numbers.
    del model.config.quantization_config
    target.mkdir()
    tokenizer.save_pretrained(target)
    model.config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    tied = set(model.all_tied_weights_keys)
    weights = {
        name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def silence() -> None:
    """Keeps transformers' progress bars out of the output."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def main() -> None:
    """Converts what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    convert(options.source, options.target)


if __name__ == "__main__":
    main()
