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
    check_each,
    coupled_to,
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

    def goes_over(self, changes: Sequence[Change], made: Sequence[Change]) -> Change | None:
        """Return the first of some changes that would go over what others made; None: none would.

        They may name the same thing in two ways, and the learning rate may follow a batch size.
        """
        for change in changes:
            parameter = self._parameters.get(change.parameter)
            affected = {*getattr(parameter, "affects", ()), *coupled_to(change)}
            for other in made:
                if change.parameter == other.parameter:
                    if change.group == other.group or None in {change.group, other.group}:
                        return change
                elif (affected | {change.parameter}) & {other.parameter, *coupled_to(other)}:
                    return change
        return None

    def check(
        self, changes: Sequence[Change], boundary: Boundary, author: str, *, force: bool
    ) -> None:
        """Say whether changes could be made, as far as that can be told before they are.

        Raises:
            ChangeFailed: One could not.
        """
        check_each(
            self._parameters,
            changes,
            boundary,
            lambda change: self._check_rails(change, author, force=force),
        )

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
            self._check_rails(change, author, force=force)

        for change in changes:
            try:
                check(change)
            except Refused as refused:
                raise ChangeFailed(change, refused) from refused
        applied = apply_all(self._parameters, changes, boundary, check_following=check)
        made: dict[str, list[Applied]] = {}
        for each in applied:
            made.setdefault(each.change.parameter, []).append(each)
        for name, of_one in made.items():
            rails = self._rails.get(name)
            if rails is None:
                continue
            try:
                guard_rails.check_made(rails, of_one, author, force=force)
            except Refused as refused:
                self.undo(applied)
                raise ChangeFailed(of_one[-1].change, refused) from refused
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

    def _check_rails(self, change: Change, author: str, *, force: bool) -> None:
        name = change.parameter
        parameter, rails = self._parameters.get(name), self._rails.get(name)
        # What there is not is refused when it is applied.
        if parameter is not None and rails is not None:
            guard_rails.check_change(rails, change, parameter, author, force=force)
