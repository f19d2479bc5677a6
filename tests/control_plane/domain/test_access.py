"""Roles, scopes and tokens."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.domain.access import (
    EVERYTHING,
    Access,
    Role,
    Token,
    check_access,
    check_principal,
    check_usable,
    new_token,
    parse_token_name,
    scope_of,
)
from control_plane.domain.errors import Reason, Refusal
from tests.support.domain_values import NOW, SECOND, refused

_IDS = st.text("ab-", min_size=1, max_size=4)
_PATTERNS = st.lists(st.tuples(_IDS | st.just(""), st.booleans()), max_size=4).map(
    lambda made: tuple(f"{text}{'*' if star or not text else ''}" for text, star in made)
)
_LABELS = st.dictionaries(st.sampled_from(["team", "env"]), st.sampled_from(["a", "b"]))


@given(job_id=_IDS, patterns=_PATTERNS)
def test_a_pattern_is_an_id_or_the_beginning_of_ids(job_id: str, patterns: tuple[str, ...]) -> None:
    named = not patterns or any(
        job_id == each or (each[-1] == "*" and job_id[: len(each) - 1] == each[:-1])
        for each in patterns
    )
    assert scope_of("", patterns).names(job_id) == named
    assert scope_of("", patterns).has(job_id, {}) == named


@given(job_id=_IDS, patterns=_PATTERNS, labels=_LABELS)
def test_a_scope_has_what_both_its_halves_have(
    job_id: str, patterns: tuple[str, ...], labels: dict[str, str]
) -> None:
    both = scope_of("team=a,!env", patterns)
    by_labels, by_id = scope_of("team=a,!env", ()), scope_of("", patterns)
    assert both.has(job_id, labels) == (by_labels.has(job_id, labels) and by_id.has(job_id, labels))
    assert both.goes_by_labels
    assert not by_id.goes_by_labels


@given(job_id=_IDS, labels=_LABELS)
def test_everything_is_everything(job_id: str, labels: dict[str, str]) -> None:
    for scope in (EVERYTHING, scope_of("", ()), scope_of(" ", ("x", "*"))):
        assert scope.is_everything
        assert scope.has(job_id, labels)
    assert not scope_of("", ("x*",)).is_everything
    assert not scope_of("team", ()).is_everything


@pytest.mark.parametrize(
    ("access", "field"),
    [
        (Access(Role.AGENT), "access.jobs"),
        (Access(Role.AGENT, "team=a"), "access.jobs"),
        (Access(Role.ADMIN, "team=a"), "access"),
        (Access(Role.ADMIN, "", ("a*",)), "access"),
        (Access(Role.VIEWER, "state=running"), "access.selector"),
        (Access(Role.VIEWER, "!state"), "access.selector"),
        (Access(Role.VIEWER, "team in (a"), "access.selector"),
        (Access(Role.VIEWER, "", ("",)), "access.jobs[0]"),
        (Access(Role.VIEWER, "", ("a", "*b")), "access.jobs[1]"),
        (Access(Role.VIEWER, "", ("a*b",)), "access.jobs[0]"),
        (Access(Role.VIEWER, "", ("A",)), "access.jobs[0]"),
        (Access(Role.VIEWER, "", ("a",) * 101), "access.jobs"),
    ],
)
def test_an_access_that_makes_no_sense_is_refused(access: Access, field: str) -> None:
    refusal = refused(lambda: check_access(access))
    assert refusal is not None
    assert [violation.field for violation in refusal.violations] == [field]


@pytest.mark.parametrize(
    "access",
    [
        Access(Role.VIEWER),
        Access(Role.OPERATOR, "team=a,job!=x,method in (dpo)", ("a", "b-*")),
        Access(Role.AGENT, "", ("*",)),
        Access(Role.AGENT, "team=a", ("my-run",)),
        Access(Role.ADMIN),
        Access(Role.ADMIN, "", ("*",)),
    ],
)
def test_an_access_that_makes_sense(access: Access) -> None:
    check_access(access)


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "ä", "x" * 64, "guard", "anonymous", "a/b", "a\n"]
)
def test_names_that_nobody_may_have(name: str) -> None:
    refusal = refused(lambda: check_principal(name))
    assert refusal is not None
    assert refusal.reason is Reason.INVALID_ARGUMENT


def make(**fields: Any) -> Token:
    given: dict[str, Any] = {
        "description": "",
        "creator": "root",
        "lifetime": None,
        "now": NOW,
        **fields,
    }
    return new_token("a" * 12, "ops", Access(Role.VIEWER), **given)


def test_a_token_is_good_for_as_long_as_was_said() -> None:
    assert make().expire_time == NOW + timedelta(days=90)
    assert make(lifetime=timedelta()).expire_time is None
    assert make(lifetime=SECOND).expire_time == NOW + SECOND
    for lifetime in (-SECOND, timedelta(days=36_501)):
        refusal = refused(lambda lifetime=lifetime: make(lifetime=lifetime))  # type: ignore[misc]
        assert refusal is not None
        assert refusal.violations[0].field == "lifetime"
    assert refused(lambda: make(description="x" * 1_001)) is not None


def test_what_is_wrong_with_a_token_is_said() -> None:
    good = make(lifetime=SECOND)
    assert check_usable(good, NOW) is good
    revoked = replace(good, revoke_time=NOW)
    cases = [
        (None, NOW, Reason.TOKEN_UNKNOWN),
        (good, NOW + SECOND, Reason.TOKEN_EXPIRED),
        (revoked, NOW, Reason.TOKEN_REVOKED),
        (revoked, NOW + SECOND, Reason.TOKEN_REVOKED),
    ]
    for token, now, reason in cases:
        with pytest.raises(Refusal, match="midcourse token create") as unusable:
            check_usable(token, now)
        assert unusable.value.reason is reason
        assert token is None or not token.is_active(now)


def test_a_secret_in_the_place_of_a_name_is_not_repeated() -> None:
    secret = "mc_" + "x" * 43
    for name in (secret, f"tokens/{secret}", "tokens/", "tokens/aaaaaaaaaaaa/b"):
        refusal = refused(lambda name=name: parse_token_name(name))  # type: ignore[misc]
        assert refusal is not None
        assert "mc_" not in refusal.message
    assert parse_token_name("tokens/0123456789ab") == "0123456789ab"
