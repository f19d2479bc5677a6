"""The client's pure parts: watch cursor, rounds of a wait, changes, the exception tree."""

from __future__ import annotations

import doctest
import fractions
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane import changes, client
from control_plane._client.cursor import WatchCursor
from control_plane._client.waiting import Rounds
from control_plane.client import (
    MidcourseError,
    NotFoundError,
    RetryPolicy,
    UnavailableError,
    UpdateError,
)
from midcourse.control.v1 import control_pb2, parameter_pb2, update_pb2


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    snapshot=st.integers(0, 4),
)
def test_a_watch_over_broken_streams_has_no_gap_and_no_duplicate(
    lengths: list[int], snapshot: int
) -> None:
    """A server with a log; every stream breaks after some events, the last goes through."""
    log = [f"change {n}" for n in range(1, 7)]

    def stream(position: str) -> list[control_pb2.WatchJobsResponse]:
        def event(text: str, where: str) -> control_pb2.WatchJobsResponse:
            made = control_pb2.WatchJobsResponse(position=where)
            made.job.name = text
            return made

        if position:
            return [event(text, str(n)) for n, text in enumerate(log, 1) if n > int(position)]
        jobs = [event(f"job {n}", "") for n in range(snapshot)]
        bookmark = event("bookmark", "0")
        return [*jobs, bookmark, *(event(text, str(n)) for n, text in enumerate(log, 1))]

    cursor = WatchCursor(control_pb2.WatchJobsRequest())
    seen: list[str] = []
    for length in [*lengths, 100]:
        for event in stream(cursor.next_request().position)[:length]:
            seen += [ready.job.name for ready in cursor.feed(event)]
    assert seen == [*(f"job {n}" for n in range(snapshot)), "bookmark", *log]


@given(
    st.one_of(
        st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text()
    )
)
def test_values_survive_the_way(value: bool | float | str) -> None:
    back = changes.from_value(changes.to_value(value))
    assert back == value
    assert type(back) is type(value)


def test_values_of_other_types() -> None:
    assert changes.to_value(fractions.Fraction(1, 2)).number == 0.5  # type: ignore[arg-type]
    assert changes.from_value(parameter_pb2.Value()) is None
    with pytest.raises(ValueError, match="64 bits"):
        changes.to_value(2**63)
    with pytest.raises(TypeError, match="got list"):
        changes.to_value([1])  # type: ignore[arg-type]


def test_hold_steps_go_with_hold_only() -> None:
    with pytest.raises(ValueError, match="hold_steps goes with mode 'hold'"):
        changes.set_value("learning_rate", 1.0, hold_steps=3)


def test_the_exception_tree_is_drawn_in_full() -> None:
    drawn = f"{MidcourseError.__doc__}{UpdateError.__doc__}"
    for name in client.__all__:
        exported = getattr(client, name)
        if isinstance(exported, type) and issubclass(exported, Exception):
            if issubclass(exported, ValueError):  # there is no client, and no call yet
                continue
            assert issubclass(exported, MidcourseError), name
            assert name in drawn


def test_everything_exported_exists() -> None:
    assert [name for name in client.__all__ if not hasattr(client, name)] == []
    assert doctest.testmod(changes).failed == 0


def test_the_client_needs_only_the_base_install() -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, control_plane.client, control_plane.changes; print(*sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    heavy = {"torch", "transformers", "sqlalchemy", "alembic", "pydantic_settings", "uvloop"}
    ours = {"control_plane.server", "control_plane.services", "control_plane.store"}
    assert "control_plane.client" in loaded
    assert not (heavy | ours) & set(loaded)


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


RETRY = RetryPolicy(initial=0.001, maximum=0.001)
OPEN = update_pb2.Update(state=update_pb2.UPDATE_STATE_PENDING)
SETTLED = update_pb2.Update(state=update_pb2.UPDATE_STATE_APPLIED)


@given(timeout=st.floats(0, 200), early=st.floats(0, 1))
def test_a_wait_takes_as_long_as_it_is_told(timeout: float, early: float) -> None:
    """The server may answer a round a little before its time is up."""
    clock = Clock()
    rounds = Rounds("jobs/j/updates/1", timeout, RETRY, clock=clock)
    assert rounds.is_over(SETTLED)
    for _ in range(60):
        request, seconds = rounds.next()
        assert 0 <= seconds <= 30
        assert request.timeout.ToNanoseconds() == pytest.approx(seconds * 1e9, abs=1)
        clock.now += max(0.0, seconds - early / 4) if seconds > 1 else seconds
        if rounds.is_over(OPEN):
            break
    assert clock.now - 1000 == pytest.approx(timeout, abs=1e-6)


def test_a_wait_gives_up_after_a_minute_without_an_answer() -> None:
    clock = Clock()
    rounds = Rounds("jobs/j/updates/1", None, RETRY, clock=clock)
    down = UnavailableError("nobody there")
    assert rounds.delay_after(down) <= 0.001
    clock.now += 59
    rounds.delay_after(down)
    assert not rounds.is_over(OPEN)  # an answer begins the minute anew
    clock.now += 59
    rounds.delay_after(down)
    clock.now += 61
    with pytest.raises(UnavailableError):
        rounds.delay_after(down)


def test_a_wait_is_not_tried_again_where_that_is_in_vain() -> None:
    clock = Clock()
    with pytest.raises(NotFoundError):
        Rounds("jobs/j/updates/1", None, RETRY, clock=clock).delay_after(NotFoundError("none"))
    with pytest.raises(UnavailableError):  # the time would be over by then
        Rounds("jobs/j/updates/1", 3.0, RETRY, clock=clock).delay_after(
            UnavailableError("busy", retry_delay=5.0)
        )
