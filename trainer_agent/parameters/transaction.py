"""Several changes at one boundary: all of them or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_agent.parameters.base import Applied, Boundary, Change, LiveParameter, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ChangeFailed(Refused):
    """One of several changes was not made, and the others were taken back.

    Attributes:
        index: The culprit's place in the sequence, from 0.
        change: The culprit.
    """

    def __init__(self, index: int, change: Change, cause: Refused) -> None:
        """Name the culprit; reason, message and value in force are the cause's."""
        super().__init__(cause.reason, cause.message, value_in_force=cause.value_in_force)
        self.index = index
        self.change = change


class UndoError(RuntimeError):
    """Changes could not be taken back: the values in force are not those that were asked for.

    Attributes:
        stuck: The changes that are still in force.
    """

    def __init__(self, stuck: Sequence[Change]) -> None:
        """Name the changes that are still in force."""
        super().__init__(
            "these changes could not be taken back and are still in force: "
            + ", ".join(repr(change) for change in stuck)
        )
        self.stuck = tuple(stuck)


def apply_all(
    parameters: Mapping[str, LiveParameter], changes: Sequence[Change], boundary: Boundary
) -> list[Applied]:
    """Make all changes in order, or none.

    A later change sees what the earlier ones did, so each is checked when its turn comes.

    Args:
        parameters: The live parameters by name.
        changes: What to change.
        boundary: Where the run stands.

    Returns:
        What was done, in the order of ``changes``.

    Raises:
        ChangeFailed: One change was refused or failed; nothing has changed.
        UndoError: One change failed and another one could not be taken back.
    """
    done: list[tuple[LiveParameter, Applied]] = []
    for index, change in enumerate(changes):
        try:
            parameter = _find(parameters, change)
            done.append((parameter, parameter.apply(change, boundary)))
        except Exception as error:
            _undo_all(done, error)
            raise ChangeFailed(index, change, _as_refusal(change, error)) from error
    return [applied for _, applied in done]


def _find(parameters: Mapping[str, LiveParameter], change: Change) -> LiveParameter:
    parameter = parameters.get(change.parameter)
    if parameter is None:
        known = ", ".join(sorted(parameters)) or "none"
        raise Refused(
            "UNKNOWN_PARAMETER",
            f"this run has no live parameter {change.parameter!r}; it has: {known}",
        )
    return parameter


def _as_refusal(change: Change, error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    return Refused(
        "APPLY_FAILED",
        f"changing {change.parameter} failed and was taken back: {type(error).__name__}: {error}",
    )


def _undo_all(done: Sequence[tuple[LiveParameter, Applied]], error: Exception) -> None:
    stuck: list[Change] = []
    for parameter, applied in reversed(done):
        try:
            parameter.undo(applied)
        except Exception as undo_error:  # noqa: BLE001 - the others must still be taken back
            error.add_note(f"undoing {applied.change!r} failed: {undo_error!r}")
            stuck.append(applied.change)
    if stuck:
        raise UndoError(stuck) from error
