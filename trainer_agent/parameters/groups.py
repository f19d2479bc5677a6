"""Reading and writing the learning rates of an optimizer's parameter groups.

A learning rate is a number or, for fused, capturable and compiled optimizers, a tensor of one
element that the optimizer's kernels read where it lies: that is filled in place, never replaced,
and reading one on an accelerator waits for it, so that is done only when asked.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Rate: TypeAlias = float | Tensor
"""A learning rate as an optimizer holds it."""


def copy_of(rate: Rate) -> Rate:
    """Return the rate, apart from where the optimizer holds it."""
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def host_value(rate: Rate, *, synchronise: bool) -> float | None:
    """Return the rate as a number; None where that would wait for a device and must not."""
    if isinstance(rate, Tensor) and rate.device.type != "cpu" and not synchronise:
        return None
    return float(rate)


def put_rate(holder: MutableMapping[str, Any] | MutableSequence[Any], key: Any, rate: Rate) -> None:
    """Write a rate where one is, in place if it is a tensor."""
    there = holder[key]
    if not isinstance(there, Tensor):
        holder[key] = float(rate) if isinstance(rate, Tensor) else rate
    elif isinstance(rate, Tensor):
        with torch.no_grad():
            there.copy_(rate.reshape(there.shape))
    else:
        with torch.no_grad():
            there.fill_(rate)


def as_stored(rate: Rate, value: float) -> float:
    """Return what is left of a value where ``rate`` is stored, in its precision.

    Infinite where it is too large, zero where it is too small.
    """
    if not isinstance(rate, Tensor):
        return value
    try:
        return float(torch.tensor(value, dtype=rate.dtype))
    except RuntimeError:  # "value cannot be converted to type ... without overflow"
        return float("inf")


def group_names(param_groups: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return what each group is called: its own name where that is unique, else its index."""
    own = [group.get("name") for group in param_groups]
    return tuple(
        name if isinstance(name, str) and name and own.count(name) == 1 else str(index)
        for index, name in enumerate(own)
    )


def find_group(param_groups: list[dict[str, Any]], wanted: str) -> int | None:
    """Return the index of the group with this name or, failing that, this index; None: no such."""
    names = group_names(param_groups)
    if wanted in names:
        return names.index(wanted)
    if wanted.isascii() and wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    return None


def shares_its_rate(param_groups: list[dict[str, Any]], index: int) -> bool:
    """Say whether a group's rate is the very tensor that another group uses."""
    rate = param_groups[index]["lr"]
    return isinstance(rate, Tensor) and any(
        other["lr"] is rate for at, other in enumerate(param_groups) if at != index
    )
