"""Makes the tiny model that the examples train: two layers, random weights, a byte-level tokenizer.

::

    python -m examples.train.prepare
"""

from __future__ import annotations

import sys
from pathlib import Path

from examples.offline import save_tiny_model


def main(directory: str = "out/tiny-model") -> None:
    """Save the model, unless it is there."""
    print(f"the tiny model is in {save_tiny_model(Path(directory))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
