"""A run that is held says so, and is not held for good where nobody could let it go on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from midcourse.link.v1 import link_pb2
from tests.support.plain_loop import PlainLoop
from tests.support.scripted_link import LinkScript, delivery, pause, resume
from trainer_agent.link.protocol import FINAL_REASONS, INSTANCE_SUPERSEDED
from trainer_agent.steering import pauses
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.session import Identity, SteeringSession

MINUTE = 60 * 10**9


def detached(reason: str) -> link_pb2.AgentMessage:
    return link_pb2.AgentMessage(
        detached=link_pb2.Detached(reason=reason, message="another process has taken over")
    )


class Run:
    """A loop and its session, with a clock that stands until it is moved."""

    def __init__(
        self,
        script: Mapping[int, Sequence[link_pb2.AgentMessage]],
        while_held: Sequence[Sequence[link_pb2.AgentMessage]] = (),
        wait_minutes: float = 0.0,
    ) -> None:
        self.now = 0
        actions = Actions(dict.fromkeys((ActionKind.PAUSE, ActionKind.RESUME)))
        self.loop = PlainLoop(actions=actions)
        links = LinkScript(script, while_held)
        self.session = SteeringSession(
            Identity("my-run", "instance", "127.0.0.1:1"),
            self.loop.controller,
            self.loop.boundary,
            links,
            monotonic_clock=lambda: self.now,
        )
        self.link = cast("Any", links.link)
        plain = self.link.wait

        def wait(seconds: float) -> None:
            self.now += int(wait_minutes * MINUTE)
            plain(seconds)

        self.link.wait = wait

    def step(self) -> bool:
        """Takes a step; returns whether the run is held after it."""
        self.session.optimizer_stepped()
        self.loop.global_step += 1
        self.session.step_done(self.loop.boundary)
        return self.session.actions.paused


@pytest.mark.parametrize("reason", sorted(FINAL_REASONS))
def test_a_pause_that_nobody_can_end_ends_by_itself(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run({1: [delivery(1, action=pause())]}, [[], [detached(reason)]])
    assert run.step()
    run.session.hold()  # a wait more than is scripted fails
    assert not run.session.actions.paused
    assert not run.step()
    (line,) = [each.getMessage() for each in caplog.records if "is over" in each.getMessage()]
    assert "job my-run: the pause is over and training goes on" in line
    assert f"another process has taken over ({reason})" in line


def test_no_pause_begins_where_nobody_could_end_it(caplog: pytest.LogCaptureFixture) -> None:
    later = delivery(1, action=pause(), at_step=4)
    run = Run({1: [later], 2: [detached(INSTANCE_SUPERSEDED)]})
    assert [run.step() for _ in range(5)] == [False] * 5
    assert "the pause is over" in caplog.text
    assert [each.revision for each in run.link.outcomes] == [1]


def test_what_may_still_be_mended_ends_no_pause() -> None:
    away = [[detached("PERMISSION_DENIED")], [], [delivery(2, action=resume())]]
    run = Run({1: [delivery(1, action=pause())]}, away)
    assert run.step()
    run.session.hold()
    assert [each.revision for each in run.link.outcomes] == [1, 2], "it waited for the resume"


def test_a_run_that_is_held_says_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger=pauses.__name__)
    resumed = [*[()] * 8, (delivery(2, action=resume()),)]
    run = Run({1: [delivery(1, action=pause())]}, resumed, wait_minutes=0.25)
    assert run.step()
    run.session.hold()
    said = [each.getMessage() for each in caplog.records]
    assert said == [
        f"job my-run: paused after step 1, for {minutes} min now: `midcourse resume my-run` lets "
        "it go on, `midcourse stop my-run` ends it with a checkpoint"
        for minutes in range(3)
    ]
