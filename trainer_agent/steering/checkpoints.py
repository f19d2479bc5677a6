"""Which checkpoints can be gone on from. Loads no torch.

Transformers takes the checkpoint with the highest number, be it whole or not. It writes
``trainer_state.json`` last, so one without it was cut short while it was being saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_NAME: Final = re.compile(r"checkpoint-(\d+)")
_STATE: Final = "trainer_state.json"
_WEIGHTS: Final = (
    "*.safetensors",
    "pytorch_model*.bin",
    "adapter_model*",
    "pytorch_model_fsdp*",
    "global_step*",
)
_OPTIMIZERS: Final = ("optimizer*", "global_step*")
_ROLLED_BACK: Final = "rolled-back"
_EARLIER: Final = "earlier"


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in an output directory."""

    newest: Path | None
    """The newest checkpoint that can be gone on from; None: there is none."""
    skipped: tuple[str, ...] = ()
    """Newer ones that cannot, and why, newest first."""


def newest(output_dir: Path, before: int | None = None) -> Found:
    """Return the newest checkpoint of a directory that can be gone on from.

    Args:
        output_dir: Where a run saves its checkpoints.
        before: Only those of fewer optimizer steps than this count; None: all.
    """
    skipped: list[str] = []
    for path in _numbered(output_dir):
        if before is not None and _step(path) >= before:
            continue
        reason = fault(path)
        if reason is None:
            return Found(path, tuple(skipped))
        skipped.append(f"{path}: {reason}")
    return Found(None, tuple(skipped))


def fault(checkpoint: Path) -> str | None:
    """Return why a run cannot go on from a checkpoint; None: it can."""
    if not checkpoint.is_dir():
        return "there is no such directory"
    state = checkpoint / _STATE
    if not state.is_file():
        return f"it has no {_STATE}, which is saved last: saving it was cut short"
    try:
        step = step_of(checkpoint)
    except ValueError:
        return f"its {_STATE} is not whole: saving it was cut short"
    except OSError as error:
        return f"its {_STATE} cannot be read: {error.strerror}"
    named = _NAME.fullmatch(checkpoint.name)
    if named is not None and int(named[1]) != step:
        return f"its {_STATE} is of step {step}"
    if not _any(checkpoint, _WEIGHTS):
        return "it has no weights"
    if not _any(checkpoint, _OPTIMIZERS):
        return "it has no optimizer state (training.save_only_model leaves it out)"
    return None


def step_of(checkpoint: Path) -> int:
    """Return the optimizer steps done at a checkpoint.

    Raises:
        ValueError: It does not tell.
        OSError: It can not be read.
    """
    state: Any = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    try:
        return int(state["global_step"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint} does not tell its step: {error!r}") from error


def set_aside_after(checkpoint: Path) -> list[Path]:
    """Move away the checkpoints that are newer than one that a run was rolled back to.

    They belong to steps that were given up; ``--resume auto`` must not find them. Nothing is
    deleted.

    Returns:
        Where they lie now, oldest first.

    Raises:
        OSError: One cannot be moved.
    """
    kept = _NAME.fullmatch(checkpoint.name)
    if kept is None:
        return []
    newer = [path for path in _numbered(checkpoint.parent) if _step(path) > int(kept[1])]
    return _move(newer, _ROLLED_BACK)


def set_aside_all(output_dir: Path) -> list[Path]:
    """Move away the checkpoints of a directory in which a run begins anew.

    They are another run's, and must not be taken for its own. Nothing is deleted.

    Returns:
        Where they lie now, oldest first.

    Raises:
        OSError: One cannot be moved.
    """
    return _move(list(_numbered(output_dir)), _EARLIER)


def holds(output_dir: Path, path: Path) -> bool:
    """Return whether a path lies in a checkpoint of a directory, or is one."""
    return any(path.resolve().is_relative_to(each.resolve()) for each in _numbered(output_dir))


def _move(found: Sequence[Path], name: str) -> list[Path]:
    """Move checkpoints, newest first, into a numbered directory beside them, if there are any."""
    if not found:
        return []
    directory = found[0].parent
    for number in range(1, 10_000):
        aside = directory / f"{name}-{number}"
        try:
            aside.mkdir()
        except FileExistsError:
            continue
        return [path.rename(aside / path.name) for path in reversed(found)]
    raise FileExistsError(f"{directory} is full of {name}-… directories: remove some")


def _numbered(directory: Path) -> Iterator[Path]:
    """Yield the checkpoints, newest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    yield from sorted(
        (path for path in found if _NAME.fullmatch(path.name) and path.is_dir()),
        key=_step,
        reverse=True,
    )


def _step(path: Path) -> int:
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return int(named[1])


def _any(directory: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in directory.glob(pattern))
