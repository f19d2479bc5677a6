"""One update's changes within the owner's limits: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer_agent.parameters import (
    Applied,
    Boundary,
    Change,
    ChangeFailed,
    GuardRails,
    LiveParameter,
    Refused,
    UndoError,
    apply_all,
)
from trainer_agent.steering import guard_rails


class Transactions:
    """Makes the changes of updates.

    Args:
        parameters: The live parameters, by name.
        rails: The owner's limits, by parameter.
    """

    def __init__(
        self, parameters: Mapping[str, LiveParameter], rails: Mapping[str, GuardRails]
    ) -> None:
        self._parameters = parameters
        self._rails = dict(rails)

    def rails(self, name: str) -> GuardRails | None:
        """Return the owner's limits of a parameter; None: there are none."""
        return self._rails.get(name)

    def opens(self, changes: Sequence[Change], boundary: Boundary) -> bool:
        """Say whether all of the changes can be made at this boundary; unknown ones can."""
        return all(
            parameter.opens(change, boundary)
            for change in changes
            if (parameter := self._parameters.get(change.parameter)) is not None
        )

    def check(
        self, changes: Sequence[Change], boundary: Boundary, author: str, *, force: bool
    ) -> None:
        """Say whether each of the changes, by itself, could be made.

        Raises:
            ChangeFailed: One could not.
        """
        for index, change in enumerate(changes):
            try:
                parameter = self._parameters.get(change.parameter)
                if parameter is not None:
                    self._check_rails(change, parameter, author, force=force)
                    parameter.check(change, boundary)
            except Refused as refused:
                raise ChangeFailed(index, change, refused) from refused

    def make(
        self, changes: Sequence[Change], boundary: Boundary, author: str, *, force: bool
    ) -> list[Applied]:
        """Make all of the changes, or none.

        Args:
            changes: What to change.
            boundary: Where the run stands.
            author: Who asks.
            force: Override soft limits.

        Raises:
            ChangeFailed: One was refused or failed; nothing has changed.
            UndoError: One failed, and another could not be taken back.
        """

        def check(change: Change) -> None:
            parameter = self._parameters.get(change.parameter)
            if parameter is not None:  # what there is not is refused when it is applied
                self._check_rails(change, parameter, author, force=force)

        for index, change in enumerate(changes):
            try:
                check(change)
            except Refused as refused:
                raise ChangeFailed(index, change, refused) from refused
        applied = apply_all(self._parameters, changes, boundary, check_following=check)
        for index, each in enumerate(applied):
            rails = self._rails.get(each.change.parameter)
            if rails is None:
                continue
            try:
                guard_rails.check_made(rails, each)
            except Refused as refused:
                self.undo(applied)
                raise ChangeFailed(index, each.change, refused) from refused
        return applied

    def undo(self, applied: Sequence[Applied]) -> None:
        """Take back what was made at this very boundary.

        Raises:
            UndoError: Something could not be taken back; all the rest was.
        """
        stuck: list[Change] = []
        causes: list[Exception] = []
        for each in reversed(applied):
            try:
                self._parameters[each.change.parameter].undo(each)
            except Exception as error:  # noqa: BLE001 - the others must still be taken back
                stuck.append(each.change)
                causes.append(error)
        if stuck:
            raise UndoError(stuck) from causes[0]

    def _check_rails(
        self, change: Change, parameter: LiveParameter, author: str, *, force: bool
    ) -> None:
        rails = self._rails.get(change.parameter)
        if rails is not None:
            guard_rails.check_change(rails, change, parameter, author, force=force)
