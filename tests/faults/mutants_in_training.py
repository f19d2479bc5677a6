"""Mutants of what becomes of updates in training, and of what is sent to a process that begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

from control_plane.services import admission
from trainer_agent.agent.ledger import Ledger
from trainer_agent.parameters import transaction
from trainer_agent.parameters.base import Applied, Reading
from trainer_agent.parameters.value import ValueParameter
from trainer_agent.steering.due import DueUpdates
from trainer_agent.steering.held import HeldUpdates
from trainer_agent.steering.in_force import InForce
from trainer_agent.steering.lineage import Lineage
from trainer_agent.steering.settling import Settlements

Patch = AbstractContextManager[object]


@contextlib.contextmanager
def applies_each_delivery() -> Iterator[None]:
    with (
        mock.patch.object(Ledger, "outcome_of", return_value=None),
        mock.patch.object(Settlements, "repeat", return_value=False),
    ):
        yield


def applies_the_newest_first() -> Patch:
    return mock.patch.object(
        HeldUpdates, "__iter__", lambda self: iter(sorted(self._held, reverse=True))
    )


@contextlib.contextmanager
def believes_what_it_was_asked() -> Iterator[None]:
    def unread(self: ValueParameter, change: Any, boundary: Any) -> Applied:
        planned = self._plan(change, boundary)
        old = dict(self.get())
        self.put(planned)
        return Applied(change, boundary, Reading(old), Reading({**old, **planned}), None)

    with mock.patch.object(ValueParameter, "apply", unread), takes_it_for_granted():
        yield


@contextlib.contextmanager
def takes_it_for_granted() -> Iterator[None]:
    with (
        mock.patch.object(InForce, "_wrong", return_value=None),
        # Which goes on with what is read then.
        mock.patch.object(InForce, "_read_back", return_value=None),
    ):
        yield


def leaves_half_of_it() -> Patch:
    return mock.patch.object(transaction, "_undo_all", return_value=None)


def applies_piece_by_piece() -> Patch:
    go_on_with = DueUpdates.go_on_with

    def piecewise(self: DueUpdates, held: Any, boundary: Any, **how: Any) -> None:
        if len(held.changes) < 2:
            go_on_with(self, held, boundary, **how)
            return
        go_on_with(self, replace(held, changes=held.changes[:1]), boundary, **how)
        later = boundary.next_step + 1
        self._held.put_back(replace(held, changes=held.changes[1:], due_step=later))

    return mock.patch.object(DueUpdates, "go_on_with", piecewise)


def sends_what_was_rolled_back() -> Patch:
    return mock.patch.object(admission, "redelivered", lambda update: bool(update.spec.changes))


def sends_nothing_again() -> Patch:
    return mock.patch.object(admission, "redelivered", return_value=False)


@contextlib.contextmanager
def saves_nothing_of_what_is_in_force() -> Iterator[None]:
    state_dict = Lineage.state_dict
    with (
        mock.patch.object(InForce, "state_dict", return_value=[]),
        mock.patch.object(Lineage, "state_dict", lambda self: {**state_dict(self), "in_force": []}),
    ):
        yield


def forgets_its_checkpoint() -> Patch:
    return mock.patch.object(Lineage, "from_state_dict", side_effect=lambda _: Lineage())
