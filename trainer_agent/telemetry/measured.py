"""Turns what a loop measures into numbers without ever waiting for a device."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MOST_LATE: Final = 64
"""Reports that wait for their copies from a device, at most; the oldest is given up."""


def host_numbers(metrics: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the numbers that lie on the host, and the tensors of one element that do not.

    What is neither, truth values among it, is left out.
    """
    known: dict[str, float] = {}
    elsewhere: dict[str, Tensor] = {}
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.dtype is torch.bool:
                continue
            if value.device.type == "cpu":
                known[name] = float(value.detach())
            else:
                elsewhere[name] = value.detach()
        elif type(value) is not bool and isinstance(value, Real):
            known[name] = float(value)
    return known, elsewhere


@dataclass(slots=True)
class _Late:
    step: int
    copies: dict[str, Tensor]
    arrived: Callable[[], bool]


def copy_to_host(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], bool]]:
    """Begin to copy tensors from one device; returns the copies and how to ask if they are there.

    The copies lie in pinned memory, so that beginning them does not wait, and neither does asking.
    """
    copies = {name: each.to("cpu", non_blocking=True) for name, each in tensors.items()}
    event = torch.Event(next(iter(tensors.values())).device)
    event.record()
    return copies, event.query


class LateNumbers:
    """Numbers that are still on their way from a device."""

    def __init__(
        self,
        copy: Callable[
            [Mapping[str, Tensor]], tuple[dict[str, Tensor], Callable[[], bool]]
        ] = copy_to_host,
    ) -> None:
        self._copy = copy
        self._late: deque[_Late] = deque(maxlen=MOST_LATE)
        self._broken = False

    def add(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Begin to fetch what was measured at a step. Where that can not be done it is unknown."""
        if not tensors or self._broken:
            return
        try:
            self._late.append(_Late(step, *self._copy(tensors)))
        except Exception as error:  # noqa: BLE001 - a device without events; the loop goes on
            self._broken = True
            what = f"{type(error).__name__}: {error}"
            logger.warning("numbers that lie on a device are not reported: %s", what)

    def take(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield what has arrived, with the steps that it was measured at, oldest first."""
        while self._late and self._late[0].arrived():
            late = self._late.popleft()
            yield late.step, {name: float(copy) for name, copy in late.copies.items()}
