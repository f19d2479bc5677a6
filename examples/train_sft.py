"""A TRL script as anybody would write it, and the one line that lets it be watched and steered.

::

    midcourse serve                                    # in one terminal
    JOB_ID=my-run python -m examples.train_sft         # in a second one
    midcourse watch my-run                             # in a third one
    midcourse set my-run learning_rate=3e-3 --reason "too slow" --wait

It teaches a tiny model to write words backwards; that takes some 40 seconds on one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]  # loaded lazily

from examples.offline import reversal_accuracy, reversal_task, save_tiny_model
from trainer_agent import attach


def main() -> None:
    """Train."""
    torch.set_num_threads(1)  # more would only slow down a model this small
    with tempfile.TemporaryDirectory() as directory:
        model = save_tiny_model(Path(directory) / "model")
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=SFTConfig(
                output_dir=directory,
                max_steps=1_000,
                learning_rate=3e-4,
                per_device_train_batch_size=32,
                logging_steps=10,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
            ),
            train_dataset=reversal_task(1024),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        attach(trainer)  # the one line
        trainer.train()
        print(f"{reversal_accuracy(trainer):.0%} of unseen words are written backwards")


if __name__ == "__main__":
    main()
