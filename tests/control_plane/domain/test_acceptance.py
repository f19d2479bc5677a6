"""Of many jobs that offer the same, an update's changes are looked at once."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest

from control_plane.domain import acceptance
from control_plane.domain.acceptance import ChangesThatPassed, Standing, check_acceptable
from control_plane.domain.change_rules import check_changes
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job, JobState
from control_plane.domain.parameter import GuardRails, MultiplyChange, ParameterSpec, Value
from control_plane.domain.update import UpdateSpec
from tests.support.domain_values import LEARNING_RATE, NOW

TWICE = UpdateSpec(changes=(MultiplyChange("learning_rate", 2.0),))
OFFERED = (LEARNING_RATE,)


def job(name: str, *offered: ParameterSpec) -> Job:
    made = Job(name, name, NOW, NOW, state=JobState.RUNNING)
    return replace(made, parameters=offered or OFFERED)


def check(passed: ChangesThatPassed, of: Job, rate: Value = 1e-4) -> None:
    standing = Standing({("learning_rate", ""): rate}, 10, 0)
    check_acceptable(*(TWICE, of, standing), author="ann", now=NOW, max_open=10, passed=passed)


def test_what_passed_is_known_and_what_differs_is_looked_at() -> None:
    passed = ChangesThatPassed()
    with mock.patch.object(acceptance, "check_changes", wraps=check_changes) as looked:
        for name in "abc":
            check(passed, job(name))
        assert looked.call_count == 1
        check(passed, job("d"), rate=2e-4)
        assert looked.call_count == 2
        with pytest.raises(Refusal) as refused:
            check(passed, job("e"), rate=1e3)
        assert refused.value.reason is Reason.INVALID_ARGUMENT
        frozen = replace(LEARNING_RATE, guard_rails=GuardRails(frozen=True))
        for _ in range(2):
            with pytest.raises(Refusal) as refused:
                check(passed, job("f", frozen))
            assert refused.value.reason is Reason.PARAMETER_FROZEN
        check(passed, job("g"))
        assert looked.call_count == 5
