"""Page sizes and page tokens."""

from __future__ import annotations

import base64
import json

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_runtime.errors import FieldViolation, StatusError
from grpc_runtime.paging import DEFAULT_SIZE, MAX_SIZE, page_size, read_token, write_token

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@given(st.integers(0, 2**31 - 1))
def test_a_page_has_a_sane_size(asked: int) -> None:
    assert page_size(asked) == (min(asked, MAX_SIZE) if asked else DEFAULT_SIZE)


def test_a_page_that_is_none_unless_it_is_asked_for() -> None:
    assert (page_size(0, default=0), page_size(7, default=0)) == (0, 7)
    with pytest.raises(StatusError, match=r"got -1, allowed: 0 \(for none\) to 1000"):
        page_size(-1, default=0)


def test_a_page_of_less_than_nothing() -> None:
    with pytest.raises(StatusError) as caught:
        page_size(-1)
    description = "got -1, allowed: 0 (for 100) to 1000"
    assert (caught.value.code, caught.value.reason) == (INVALID, "INVALID_ARGUMENT")
    assert caught.value.message == f"page_size: {description}"
    assert caught.value.violations == (FieldViolation("page_size", description),)


PLACES = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(after=PLACES | st.integers(0, 2**63 - 1), query=st.text())
def test_a_token_says_where_to_go_on(after: str | int, query: str) -> None:
    token = write_token(after, query)
    assert token
    assert token.isascii()
    assert read_token(token, query) == after


def test_the_start_and_the_end_have_no_token() -> None:
    assert write_token(None, "q") == ""
    assert read_token("", "q") is None


def refuse(token: str, query: str) -> None:
    with pytest.raises(StatusError) as caught:
        read_token(token, query)
    assert (caught.value.code, caught.value.reason) == (INVALID, "PAGE_TOKEN_INVALID")
    assert "begin again without a token" in caught.value.message


@given(after=st.text(), query=st.text(), other=st.text())
def test_a_token_is_good_for_its_own_query_only(after: str, query: str, other: str) -> None:
    if query != other:
        refuse(write_token(after, query), other)


@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda raw: base64.b64encode(raw).decode()))
def test_a_token_that_was_made_up(token: str) -> None:
    refuse(token, "q")


@pytest.mark.parametrize("after", [-1, 2**63, 1.5, True, None, [1], {}, "\ud800", "a\0"])
def test_a_forged_place_is_refused(after: object) -> None:
    """With the right digest: what is in a token is not believed."""
    _, digest = json.loads(base64.urlsafe_b64decode(write_token(1, "q") + "=="))
    raw = json.dumps([after, digest]).encode()
    refuse(base64.urlsafe_b64encode(raw).decode().rstrip("="), "q")
