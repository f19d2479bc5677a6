"""Steps at which nothing can be due are passed by, and whatever may be due ends that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from midcourse.link.v1 import link_pb2
from tests.support.plain_loop import PlainLoop
from tests.support.scripted_link import LinkScript, delivery, ramp_change, set_change
from trainer_agent.steering.controller import ParameterController
from trainer_agent.steering.session import Identity, SteeringSession


class Run:
    """A loop and its session, which notes the steps after which it looked at its updates."""

    def __init__(self, script: Mapping[int, Sequence[link_pb2.AgentMessage]] | None = None) -> None:
        self.now = 0
        self.loop = PlainLoop()
        links = LinkScript(script or {})
        self.session = SteeringSession(
            Identity("my-run", "instance", "127.0.0.1:1"),
            self.loop.controller,
            self.loop.boundary,
            links,
            monotonic_clock=lambda: self.now,
        )
        self.link = cast("Any", links.link)
        self.looked: list[int] = []
        self.rates: list[float] = []
        plain = self.loop.controller.at_boundary

        def at_boundary(*args: Any, **options: Any) -> None:
            self.looked.append(self.loop.global_step)
            plain(*args, **options)

        cast("Any", self.loop.controller).at_boundary = at_boundary

    def steps(self, count: int) -> list[int]:
        """Takes so many steps; returns those after which the updates were looked at."""
        self.looked.clear()
        for _ in range(count):
            self.rates.append(self.loop.rate)
            self.session.optimizer_stepped()
            self.loop.global_step += 1
            self.session.step_done(self.loop.boundary)
        return list(self.looked)


def test_where_nothing_is_held_nothing_is_looked_at_and_every_step_is_told() -> None:
    run = Run()
    assert run.steps(5) == [1]
    run.session.finish(run.loop.boundary)
    assert [each.step for each in run.link.steps] == [1, 2, 3, 4, 5]


def test_an_update_for_a_later_step_is_looked_at_before_that_step() -> None:
    run = Run({2: [delivery(1, set_change(0.25), at_step=6)]})
    assert run.steps(8) == [1, 2, 5, 6]  # due before the sixth, verified after it
    assert run.rates == [0.5] * 5 + [0.25] * 3
    assert run.link.outcomes[0].applied.step == 6


def test_what_varies_with_time_moves_at_every_step() -> None:
    run = Run({1: [delivery(1, ramp_change(0.25, 4))]})
    run.steps(7)
    assert run.rates == pytest.approx([0.5, 0.4375, 0.375, 0.3125, 0.25, 0.25, 0.25])
    assert 4 not in run.looked


def test_a_deadline_passes_where_nothing_else_is_due() -> None:
    run = Run({1: [delivery(1, set_change(0.25), at_step=50, deadline=100)]})
    run.steps(3)
    run.now = 100
    run.steps(1)
    assert run.link.outcomes[0].HasField("expired")
    run.steps(1)
    assert run.steps(3) == []


def test_a_stop_that_is_asked_for_in_the_midst_of_a_boundary_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    asks = cast("Any", vars(ParameterController)["asks"]).fget

    def interrupted(controller: ParameterController) -> bool:
        found = asks(controller)
        run.session.request_stop()  # as a signal does, wherever the process is
        return bool(found)

    with monkeypatch.context() as patched:
        patched.setattr(ParameterController, "asks", property(interrupted))
        run.steps(1)
    assert not run.loop.controller.stop_asked
    run.steps(1)
    assert run.loop.controller.stop_asked


def test_an_alarm_and_a_failure_of_ours_are_seen_to_after_the_next_step() -> None:
    run = Run()
    run.steps(3)
    run.session.loss_alarm(3, float("nan"))
    assert run.steps(2) == [4]
    run.session.fault("on_log", RuntimeError("broken"))
    assert run.steps(2) == [6]


def test_a_clock_that_is_set_back_keeps_no_step_from_being_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    hour = 3600 * 10**9
    for nanos in (500_000 * hour, 499_999 * hour, 499_999 * hour + 1):
        monkeypatch.setattr("trainer_agent.steering.session.time.time_ns", lambda at=nanos: at)
        run.steps(1)
    assert [each.step for each in run.link.steps] == [1, 2], "the third waits for others"
