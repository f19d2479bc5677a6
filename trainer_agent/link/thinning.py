"""What goes when a buffer is full: the ends stay whole, the middle thins out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_KEPT_AT_EACH_END: Final = 4
"""The oldest and the newest quarter stay."""


def thinned_out(candidates: Sequence[int]) -> frozenset[int]:
    """Returns which entries of a full buffer go: every second one of the middle.

    As new entries come in, the middle moves on and older entries are in it more often: the longer
    a wait, the coarser what is known of its past, but never its beginning or its end. Some quarter
    goes at once, so that the cost for each new entry stays constant.

    Args:
        candidates: Positions of the entries that may go, ascending.
    """
    margin = len(candidates) // _KEPT_AT_EACH_END
    return frozenset(candidates[margin : len(candidates) - margin : 2])
