"""What training gives, once for all tests that ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def trainer() -> ModuleType:
    """The training tool as a module."""
    pytest.importorskip("sklearn", reason="training needs scikit-learn, the service does not")
    from tools import train_recommender

    return train_recommender


@dataclass(frozen=True)
class Trained:
    """scikit-learn's model with the weights that ship, and the files that training would write."""

    model: Any
    files: dict[Path, str]


@pytest.fixture(scope="session")
def trained(trainer: ModuleType) -> Trained:
    model, files = trainer.train()
    return Trained(model, files)
