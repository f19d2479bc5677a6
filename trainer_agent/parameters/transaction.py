"""Several changes at one boundary: all of them or none.

A change of the batch size may take the learning rate with it: then the rate is multiplied, at once
after that change, by what the batch size was multiplied by (``Coupling.LINEAR``), or by its square
root (``Coupling.SQRT``). If the batch size stays what it is, so does the rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from trainer_agent.parameters.base import Applied, Boundary, LiveParameter, Refused
from trainer_agent.parameters.changes import Change, Coupling, Multiply, Set, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LEARNING_RATE: Final = "learning_rate"
_MAX_STEPS: Final = "max_steps"


class ChangeFailed(Refused):
    """One of several changes was not made, and the others were taken back.

    Attributes:
        change: The culprit.
    """

    def __init__(self, change: Change, cause: Refused) -> None:
        """Name the culprit; reason, message and value in force are the cause's."""
        super().__init__(cause.reason, cause.message, value_in_force=cause.value_in_force)
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
    parameters: Mapping[str, LiveParameter],
    changes: Sequence[Change],
    boundary: Boundary,
    check_following: Callable[[Change], None] | None = None,
) -> list[Applied]:
    """Make all changes in order, or none.

    A later change sees what the earlier ones did, so each is checked when its turn comes.

    Args:
        parameters: The live parameters by name.
        changes: What to change.
        boundary: Where the run stands.
        check_following: Raises ``Refused`` where the learning rate must not follow with this
            change, which nobody asked for by itself; None: it always may.

    Returns:
        What was done, in the order of ``changes``. A change that took the learning rate with it is
        followed by a ``Multiply`` of that.

    Raises:
        ChangeFailed: One change was refused or failed; nothing has changed. Where the learning
            rate must not follow, the culprit is its change.
        UndoError: One change failed and another one could not be taken back.
    """
    done: list[tuple[LiveParameter, Applied]] = []
    for change in changes:
        try:
            done.append(_apply(parameters, change, boundary))
            applied = done[-1][1]
            following = _coupled(change, applied.old.value, applied.new.value)
            if following is not None:
                if check_following is not None:
                    _check_following(check_following, following)
                done.append(_apply(parameters, following, boundary))
        except Exception as error:
            _undo_all(done, error)
            # What is stuck is itself still in force; a failed change names its culprit already.
            if isinstance(error, UndoError | ChangeFailed):
                raise
            raise ChangeFailed(change, _as_refusal(change, error)) from error
    return [applied for _, applied in done]


def check_each(
    parameters: Mapping[str, LiveParameter],
    changes: Sequence[Change],
    boundary: Boundary,
    check_limits: Callable[[Change], None],
) -> None:
    """Say of changes that are to be made together, later, what can be said against them now.

    What an earlier one of them may make possible is left to be seen, and so is what stands against
    them only as long as the values in force are what they are.

    Args:
        parameters: The live parameters by name.
        changes: What is to be changed. Parameters that there are not are passed over.
        boundary: Where the run stands.
        check_limits: Raises ``Refused`` where a change must not be made; asked about the learning
            rate's too where that is to follow.

    Raises:
        ChangeFailed: One of them will not be made.
    """
    earlier: set[str] = set()
    for change in changes:
        parameter = parameters.get(change.parameter)
        if parameter is None:
            continue
        try:
            check_limits(change)
            if earlier.isdisjoint({change.parameter, *_rests_on(parameter)}):
                parameter.check(change, boundary)
                following = _coupled(change, parameter.read().value, _target(change, parameter))
                if following is not None:
                    _check_following(check_limits, following)
        except ChangeFailed:
            raise
        except Refused as refused:
            if not refused.for_now:
                raise ChangeFailed(change, refused) from refused
        earlier.add(change.parameter)


def _target(change: Change, parameter: LiveParameter) -> Value | None:
    """Return what a batch size is to become."""
    now = parameter.read().value
    match change:
        case Set(value=value):
            return value
        case Multiply(factor=factor) if isinstance(now, int | float):
            return now * factor
        case _:
            return now


def _check_following(check: Callable[[Change], None], following: Change) -> None:
    try:
        check(following)
    except Refused as refused:
        raise ChangeFailed(following, refused) from refused


def _apply(
    parameters: Mapping[str, LiveParameter], change: Change, boundary: Boundary
) -> tuple[LiveParameter, Applied]:
    parameter = _find(parameters, change)
    if _coupling(change) is not Coupling.NONE and not _couples(parameter):
        allowed = ", ".join(sorted(name for name, each in parameters.items() if _couples(each)))
        raise Refused(
            "UNSUPPORTED_COUPLING",
            f"the learning rate follows changes of the batch size, not of {change.parameter}; in "
            f"this run it can follow: {allowed or 'nothing'}",
        )
    return parameter, parameter.apply(change, _here(parameters, boundary))


def _here(parameters: Mapping[str, LiveParameter], boundary: Boundary) -> Boundary:
    """Return the boundary with the length that the run has by now.

    What was changed before at this boundary may have moved it, as a batch size does.
    """
    length = parameters.get(_MAX_STEPS)
    steps = None if length is None else length.read().value
    return boundary._replace(max_steps=steps) if isinstance(steps, int) else boundary


def _couples(parameter: LiveParameter) -> bool:
    """Say whether a parameter is in proportion to the samples that a step takes."""
    return getattr(parameter, "couples", False) is True


def _rests_on(parameter: LiveParameter) -> frozenset[str]:
    """Return the parameters whose change may make possible what is not possible now."""
    return getattr(parameter, "rests_on", frozenset())


def coupled_to(change: Change) -> tuple[str, ...]:
    """Return the names of the parameters that a change takes with it."""
    return () if _coupling(change) is Coupling.NONE else (_LEARNING_RATE,)


def _coupling(change: Change) -> Coupling:
    return change.coupling if isinstance(change, Set | Multiply) else Coupling.NONE


def _coupled(change: Change, old: Value | None, new: Value | None) -> Multiply | None:
    """Return what a change of the batch size makes of the learning rate; None: nothing."""
    coupling = _coupling(change)
    if coupling is Coupling.NONE or new == old:
        return None
    if isinstance(old, str | None) or isinstance(new, str | None) or old <= 0:
        raise Refused(
            "UNSUPPORTED_COUPLING",
            f"{change.parameter} went from {old!r} to {new!r}, which no factor leads to",
        )
    ratio = new / old
    return Multiply(_LEARNING_RATE, math.sqrt(ratio) if coupling is Coupling.SQRT else ratio)


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
