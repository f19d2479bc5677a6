"""What happens to the run that is asked about."""

from __future__ import annotations

from typing import Final

JOB: Final = "demo-chat"
STEPS: Final = 240
RATE: Final = 2e-3
"""Learning rate at the start."""
RECKLESS: Final = 3e-2
"""Learning rate that makes the loss spike; the guard rail would allow no more than tenfold."""
CALM: Final = 3e-3
"""Learning rate that tames it."""
RAISE_AFTER: Final = 80
"""Optimizer steps after which the learning rate is raised."""
SPIKE: Final = 1.5
"""The loss has spiked when it is so many times what it was before the change."""

QUESTION: Final = (
    f"At which step did the loss of {JOB} spike, and what changed before it? Answer in two "
    "sentences."
)
