"""Sessions and controllers on two ranks, each in a thread: what differs must not part them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from tests.support.plain_loop import PlainLoop
from tests.support.scripted_link import (
    LinkScript,
    ScriptedLink,
    delivery,
    pause,
    roll_back,
    set_change,
    stop,
)
from tests.trainer_agent.steering.test_controller import Brittle
from trainer_agent import loop_session
from trainer_agent.link.protocol import INSTANCE_SUPERSEDED
from trainer_agent.loop import Loop
from trainer_agent.parameters import Boundary, Change
from trainer_agent.parameters.user import Parameter
from trainer_agent.ranks import Alone, Apart, Ranks, shared_instance_id
from trainer_agent.ranks import group as ranks_group
from trainer_agent.ranks.group import GroupRanks
from trainer_agent.steering.actions import ActionKind, Actions
from trainer_agent.steering.links import MuteLink
from trainer_agent.steering.session import Identity, SteeringSession

SECONDS = 20.0
"""What a wait for a rank that never answers would take, at least."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def ranks(pool: ThreadPoolExecutor) -> Iterator[list[GroupRanks]]:
    store = HashStore()
    met = list(pool.map(lambda rank: ranks_group.meet(store, 1, rank, 2, wait=SECONDS), range(2)))
    begun = time.monotonic()
    yield met
    list(pool.map(GroupRanks.close, met))
    assert time.monotonic() - begun < SECONDS / 2, "somebody was waited for"


class Late(Brittle):
    """Can be changed at no boundary so far."""

    def opens(self, change: Change, boundary: Boundary) -> bool:
        return False


def outcomes(
    pool: ThreadPoolExecutor,
    ranks: Sequence[GroupRanks],
    prepare: Callable[[int], Mapping[str, Any]],
    *updates: Mapping[str, Any],
) -> list[list[str]]:
    """Return what became of updates on each rank, one step after they were due."""

    def run(each: GroupRanks) -> list[str]:
        loop = PlainLoop(ranks=each, **prepare(each.rank))
        for revision, update in enumerate(updates, start=1):
            loop.deliver(revision, *update.get("changes", ()), action=update.get("action"))
        loop.steps(2)
        return [
            f"{outcome.revision} {outcome.rejected.reason or outcome.WhichOneof('result')}"
            for outcome in loop.outcomes
        ]

    return list(pool.map(run, ranks, timeout=60))


def unreadable(path: str, before: int | None) -> str:
    raise OSError("the disk of this rank can not be read")


def on_the_second(
    first: Mapping[str, Any], second: Mapping[str, Any], rank: int
) -> Mapping[str, Any]:
    return second if rank else first


OTHER = {"changes": [set_change(0.25)]}


def offering(find: Callable[[str, int | None], str], *kinds: ActionKind) -> Mapping[str, Any]:
    return {"actions": Actions(dict.fromkeys(kinds), find)}


def test_a_checkpoint_that_one_rank_can_not_find_is_gone_back_to_by_none(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    prepare = functools.partial(
        on_the_second,
        offering(lambda path, before: "there", ActionKind.ROLL_BACK),
        offering(unreadable, ActionKind.ROLL_BACK),
    )
    found = outcomes(pool, ranks, prepare, {"action": roll_back()}, OTHER)
    assert found == [["1 APPLY_FAILED", "2 applied"]] * 2


def test_what_one_rank_refuses_while_it_waits_is_rejected_on_both(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    prepare = functools.partial(
        on_the_second,
        {"extra": {"brittle": Late()}},
        {"extra": {"brittle": Late(check=OSError("broken"))}},
    )
    change = {"changes": [set_change(2.0, parameter="brittle")]}
    found = outcomes(pool, ranks, prepare, change, OTHER)
    assert found == [["1 APPLY_FAILED", "2 applied"]] * 2


def test_what_one_rank_does_not_offer_is_done_by_none(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    prepare = functools.partial(
        on_the_second, offering(unreadable, ActionKind.STOP), offering(unreadable)
    )
    found = outcomes(pool, ranks, prepare, {"action": stop()}, OTHER)
    assert found == [["1 ACTION_UNAVAILABLE", "2 applied"]] * 2


def test_a_rank_that_fails_before_it_has_a_session_is_not_waited_for(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    def begin(each: GroupRanks) -> object:
        return each.close() if each.rank else shared_instance_id(each, "mine")

    found: Any = next(iter(pool.map(begin, ranks, timeout=60)))
    left, instance_id, refused = found
    assert isinstance(left, Apart)
    assert (left.rank, instance_id, refused.reason) == (0, "mine", "RANKS_LOST")
    assert "rank 1 has left" in refused.message


class Link(ScriptedLink):
    """Is silent while the run is held."""

    def wait(self, seconds: float) -> None:
        """Take no time, so that the test does not either."""


def session(
    ranks: GroupRanks, script: Mapping[int, Sequence[link_pb2.AgentMessage]]
) -> tuple[PlainLoop, SteeringSession, Link]:
    offer = Actions(dict.fromkeys((ActionKind.PAUSE, ActionKind.STOP)))
    loop = PlainLoop(ranks=ranks, actions=offer)
    links: list[Link] = []

    def first_link(*, hello: Any, **_: Any) -> Link:
        links.append(Link(script, hello))
        return links[-1]

    one = SteeringSession(
        Identity("job", "instance", "127.0.0.1:1"),
        loop.controller,
        loop.boundary,
        first_link if ranks.rank == 0 else MuteLink,
        ranks=ranks,
    )
    return loop, one, links[0] if links else Link({}, one._reporter.hello)


def step(loop: PlainLoop, one: SteeringSession) -> bool:
    one.optimizer_stepped()
    loop.global_step += 1
    return one.step_done(loop.boundary)


def test_a_pause_that_nobody_can_end_ends_on_all_ranks_at_once(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    gone = link_pb2.Detached(reason=INSTANCE_SUPERSEDED, message="another one is served")
    script = {
        1: [delivery(1, action=pause(), at_step=4)],
        2: [link_pb2.AgentMessage(detached=gone)],
    }

    def run(each: GroupRanks) -> list[bool]:
        loop, one, _ = session(each, script)
        held = []
        for _ in range(5):
            step(loop, one)
            held.append(one.actions.paused)
        return held

    assert list(pool.map(run, ranks, timeout=60)) == [[False] * 5] * 2


def test_whichever_rank_is_asked_to_stop_ends_the_pause_of_both(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    def run(each: GroupRanks) -> tuple[int, bool, set[ActionKind]]:
        loop, one, _ = session(each, {1: [delivery(1, action=pause())]})
        while not step(loop, one):
            assert loop.global_step < 5
        assert one.actions.paused
        if each.rank == 1:
            one.request_stop()
        one.hold()
        return loop.global_step, one.actions.stopping, one.actions.wanted

    assert list(pool.map(run, ranks, timeout=60)) == [(2, True, {ActionKind.STOP})] * 2


def test_a_rank_that_has_lost_the_others_does_not_speak_for_the_run_nor_stops_alone(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    def run(each: GroupRanks) -> tuple[bool, list[session_pb2.Fault]]:
        loop, one, link = session(each, {})
        step(loop, one)
        if each.rank == 0:
            one.leave_ranks(RuntimeError("broken here"))
        else:
            step(loop, one)  # what it brings was begun before the other left
            with pytest.raises(RuntimeError, match="rank 0 has left"):
                step(loop, one)
        one.request_stop()
        assert not step(loop, one)
        assert not one.actions.stopping
        return one.is_first, link.faults

    (first, faults), (second, _) = pool.map(run, ranks, timeout=60)
    assert (first, second) == (True, False)
    assert "broken here" in faults[0].message


def test_what_waits_on_both_gives_way_on_both_where_one_alone_knows_why(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    """What a parameter shares with others may be otherwise on each rank."""
    sharing = Late()
    vars(sharing)["affects"] = frozenset({"learning_rate"})
    prepare = functools.partial(
        on_the_second, {"extra": {"brittle": Late()}}, {"extra": {"brittle": sharing}}
    )
    waits = {"changes": [set_change(2.0, parameter="brittle")]}
    found = outcomes(pool, ranks, prepare, waits, OTHER)
    assert found == [["1 SUPERSEDED", "2 applied"]] * 2


def test_a_state_that_one_rank_can_not_take_over_has_the_other_wait_for_nothing(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an update to be confirmed, on which the ranks would vote."""
    place = threading.local()
    monkeypatch.setattr(loop_session, "met", lambda *_: (place.ranks, None))

    def train(each: Ranks, states: Sequence[Mapping[str, Any]], steps: range) -> dict[str, Any]:
        place.ranks = each
        state: dict[str, Any] = {}
        level: dict[str, Any] = {"value": 1.0}
        own = Parameter("level", lambda: level["value"], lambda value: level.update(value=value))
        updates = {2: [delivery(1, set_change(2.0, parameter="level"))]}
        links = LinkScript({} if states else updates)
        with Loop(job="job", link_factory=links) as loop:
            loop.expose(own)
            if states:
                loop.load_state_dict(states[each.rank])
            for step in steps:
                loop.step(step)
                state = loop.state_dict() if step == 2 else state
        assert bool(states and each.rank == 0) is any(link.faults for link in links.links)
        return state

    state = train(Alone(), (), range(1, 3))
    assert len(state["controller"]["unverified"]) == 1
    damaged = {**state, "controller": {"version": -1}}
    begun = time.monotonic()
    run = functools.partial(train, states=[state, damaged], steps=range(3, 8))
    list(pool.map(run, ranks, timeout=60))
    assert time.monotonic() - begun < SECONDS / 2, "somebody was waited for"
