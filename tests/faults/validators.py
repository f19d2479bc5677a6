"""One validator for each guarantee of docs/guarantees.md that a history can show or refute.

Each is a pure function from a history to the violations found in it. None of them asks what should
have happened: they compare what different parties saw of the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.faults.history import History
from tests.faults.promises_of_sessions import fenced
from tests.faults.promises_to_callers import compare_and_set, durable, idempotent
from tests.faults.promises_to_trainers import atomic, once, ordered, truthful
from tests.faults.promises_to_watchers import watchable
from tests.faults.violations import Violation

Validator = Callable[[History], Iterator[Violation]]

VALIDATORS: dict[str, Validator] = {
    "durable": durable,
    "ordered": ordered,
    "once": once,
    "truthful": truthful,
    "atomic": atomic,
    "idempotent": idempotent,
    "compare-and-set": compare_and_set,
    "fenced": fenced,
    "watchable": watchable,
}
"""By the names of the guarantees."""


def validate(history: History) -> list[Violation]:
    """All violations in a history."""
    return [violation for validator in VALIDATORS.values() for violation in validator(history)]
