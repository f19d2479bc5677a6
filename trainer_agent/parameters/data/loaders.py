"""Building a trainer's data loader again, and letting go of one."""

from __future__ import annotations

from typing import Any

import torch


def build(trainer: Any, like: Any) -> Any:
    """Return a new training loader with the sizes in force.

    It draws the samples as the old one would, and building it draws nothing from torch's
    generator, so that all that follows is as if the run had begun with this loader.

    Args:
        trainer: The trainer.
        like: The loader that it takes the place of.
    """
    with torch.random.fork_rng(devices=[]):
        loader = trainer.get_train_dataloader()
    old, new = _sampler(like), _sampler(loader)
    if hasattr(old, "initial_seed") and hasattr(new, "initial_seed"):
        new.initial_seed = old.initial_seed
    return loader


def batch_size(loader: Any) -> int | None:
    """Return the samples of a loader's batches, in this process; None: not known."""
    size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size if isinstance(size, int) else getattr(loader, "batch_size", None)


def let_go_of(trainer: Any, loader: Any) -> None:
    """Let a loader that is used no more be freed, and its workers end."""
    known = getattr(trainer.accelerator, "_dataloaders", [])
    known[:] = [each for each in known if each is not loader]
    loader = getattr(loader, "base_dataloader", loader)
    if getattr(loader, "_iterator", None) is not None:  # persistent workers
        loader._iterator = None  # noqa: SLF001 - torch ends workers in no other way


def _sampler(loader: Any) -> Any:
    """Return what draws the samples, inside what makes batches of them for one process."""
    batches = getattr(loader, "batch_sampler", None)
    batches = getattr(batches, "batch_sampler", batches)
    return getattr(batches, "sampler", None)
