"""Agreement among ranks, each in a thread of this process: gloo does not mind."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import HashStore

from midcourse.agent.v1 import session_pb2
from midcourse.link.v1 import link_pb2
from trainer_agent.parameters import Refused
from trainer_agent.ranks import Problem
from trainer_agent.ranks import group as ranks_group
from trainer_agent.ranks.group import RANKS_LOST, SEVERAL_RANKS, GroupRanks, RanksLostError

T = TypeVar("T")
c10d: Any = dist.distributed_c10d
SIZE = 3


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def on_each(
    pool: ThreadPoolExecutor, ranks: Sequence[GroupRanks], what: Callable[[GroupRanks], T]
) -> list[T]:
    """Do something on every rank at once, and return what it came to by rank."""
    return list(pool.map(what, ranks, timeout=60))


def meet(pool: ThreadPoolExecutor, size: int = SIZE, wait: float = 20.0) -> list[GroupRanks]:
    store = HashStore()
    return list(
        pool.map(
            lambda rank: ranks_group.meet(store, 1, rank, size, wait=wait), range(size), timeout=60
        )
    )


@pytest.fixture
def ranks(pool: ThreadPoolExecutor) -> Iterator[list[GroupRanks]]:
    ranks = meet(pool)
    yield ranks
    on_each(pool, ranks, GroupRanks.close)


@pytest.fixture(scope="module")
def lasting_ranks(pool: ThreadPoolExecutor) -> Iterator[list[GroupRanks]]:
    """For tests that leave nothing behind."""
    ranks = meet(pool)
    yield ranks
    on_each(pool, ranks, GroupRanks.close)


def alarm(step: int, rank: int = 0) -> link_pb2.RankMessage:
    return link_pb2.RankMessage(loss_alarm=link_pb2.LossAlarm(step=step, rank=rank))


def fault(rank: int, text: str) -> link_pb2.RankMessage:
    return link_pb2.RankMessage(fault=session_pb2.Fault(component=str(rank), message=text))


texts = st.lists(st.text(max_size=300), max_size=3)
boundaries = st.lists(st.tuples(st.booleans(), st.tuples(*[texts] * SIZE)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(boundaries)
def test_every_rank_gets_the_same_at_the_same_boundary_and_nothing_is_lost(
    pool: ThreadPoolExecutor,
    lasting_ranks: list[GroupRanks],
    course: list[tuple[bool, tuple[list[str], ...]]],
) -> None:
    course = [*course, (True, ([],) * SIZE)]

    def run(ranks: GroupRanks) -> list[list[link_pb2.RankMessage]]:
        return [
            list(
                (ranks.hold if holding else ranks.exchange)(
                    [fault(ranks.rank, text) for text in by_rank[ranks.rank]]
                )
            )
            for holding, by_rank in course
        ]

    first, *others = on_each(pool, lasting_ranks, run)

    assert all(other == first for other in others)
    for rank in range(SIZE):
        given: list[str] = []
        back: list[str] = []
        for (holding, by_rank), returned in zip(course, first, strict=True):
            back += [each.fault.message for each in returned if each.fault.component == str(rank)]
            latest = len(given) + (len(by_rank[rank]) if holding else 0)
            given += by_rank[rank]
            assert latest <= len(back)  # at the next boundary at the latest, at once when held
            assert back == given[: len(back)]
        assert back == given


def test_what_is_given_comes_back_at_the_next_boundary(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    def run(ranks: GroupRanks) -> list[int]:
        given = [alarm(1)] if ranks.rank == 0 else []
        return [len(ranks.exchange(given)), len(ranks.exchange(())), len(ranks.exchange(()))]

    assert on_each(pool, ranks, run) == [[0, 1, 0]] * SIZE


def test_while_held_it_comes_back_at_once(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    def run(ranks: GroupRanks) -> list[int]:
        ranks.exchange(())
        given = [alarm(1)] if ranks.rank == 0 else []
        return [len(ranks.hold(given)), len(ranks.hold(()))]

    assert on_each(pool, ranks, run) == [[1, 0]] * SIZE


def test_the_problem_of_the_lowest_rank_stands_for_all(
    pool: ThreadPoolExecutor, lasting_ranks: list[GroupRanks]
) -> None:
    def problem(ranks: GroupRanks, troubled: set[int]) -> Problem | None:
        mine = Problem("BROKEN", f"rank {ranks.rank} ✗", "learning_rate")
        return ranks.vote(mine if ranks.rank in troubled else None)

    for troubled, said in ((set(), None), ({1, 2}, 1), ({0}, 0)):
        agreed = None if said is None else Problem("BROKEN", f"rank {said} ✗", "learning_rate")
        expected = agreed and agreed.on_rank(said or 0)
        voted = on_each(pool, lasting_ranks, functools.partial(problem, troubled=troubled))
        assert voted == [expected] * SIZE


def test_a_vote_between_two_boundaries_disturbs_nothing(
    pool: ThreadPoolExecutor, ranks: list[GroupRanks]
) -> None:
    def run(ranks: GroupRanks) -> tuple[object, int]:
        ranks.exchange([alarm(ranks.rank)])
        voted = ranks.vote(Problem("X", "m") if ranks.rank == 2 else None)
        return voted, len(ranks.exchange(()))

    assert on_each(pool, ranks, run) == [(Problem("X", "on rank 2: m"), SIZE)] * SIZE


def test_a_hold_goes_on_for_longer_than_any_wait_may(pool: ThreadPoolExecutor) -> None:
    ranks = meet(pool, 2, wait=0.5)

    def run(ranks: GroupRanks) -> int:
        rounds = 0
        end = time.monotonic() + 1.2
        over = False
        while not over:
            rounds += 1
            done = ranks.rank == 0 and time.monotonic() > end
            over = bool(ranks.hold([alarm(1)] if done else ()))
        return rounds

    first, second = on_each(pool, ranks, run)

    assert first == second > 1
    on_each(pool, ranks, GroupRanks.close)


def test_closing_returns_what_never_came_back(
    pool: ThreadPoolExecutor,
) -> None:
    ranks = meet(pool)

    def run(ranks: GroupRanks) -> list[link_pb2.RankMessage]:
        ranks.exchange([alarm(1, ranks.rank)])
        assert len(ranks.exchange(())) == SIZE
        ranks.exchange([alarm(2, ranks.rank)])
        closed = list(ranks.close())
        assert not ranks.close()
        return closed

    assert on_each(pool, ranks, run) == [[alarm(2, rank)] for rank in range(SIZE)]


@pytest.mark.parametrize("call", ["exchange", "hold", "vote"])
def test_who_leaves_is_missed_at_once(pool: ThreadPoolExecutor, call: str) -> None:
    ranks = meet(pool, 2, wait=60.0)
    on_each(pool, ranks, lambda each: each.exchange([alarm(1, each.rank)]))
    begun = time.monotonic()
    leaving = pool.submit(ranks[1].close)

    stays = ranks[0]
    if call == "vote":
        problem = stays.vote(None)
        assert problem is not None
        assert problem.reason == RANKS_LOST
        lost = problem.message
    else:
        with pytest.raises(RanksLostError) as caught:
            getattr(stays, call)([alarm(2)])
        lost = str(caught.value)

    assert "rank 1 has left" in lost
    assert stays.vote(Problem("MINE", "m")) == Problem("MINE", "m")
    with pytest.raises(RanksLostError, match="rank 1 has left"):
        stays.exchange([alarm(3)])
    assert list(stays.close())[-1] == alarm(3)
    assert list(leaving.result(10)) == [alarm(1, 1)]
    assert time.monotonic() - begun < 10


def test_a_rank_that_does_not_answer_is_waited_for_no_longer_than_was_said(
    pool: ThreadPoolExecutor,
) -> None:
    waits, silent = meet(pool, 2, wait=0.3)
    begun = time.monotonic()
    waits.exchange(())

    with pytest.raises(RanksLostError, match="do not agree any more"):
        waits.exchange(())

    waits.close()
    silent.close()
    assert time.monotonic() - begun < 10


def test_a_connection_that_breaks_ends_it(pool: ThreadPoolExecutor) -> None:
    stays, gone = meet(pool, 2)
    gone._group = None  # as if the process had died

    assert stays.exchange(()) == ()
    with pytest.raises(RanksLostError, match="Connection closed by peer"):
        stays.exchange(())
    stays.close()


def test_where_not_all_come_nobody_waits_for_long_and_all_hear_the_same(
    pool: ThreadPoolExecutor,
) -> None:
    store = HashStore()

    def come(rank: int, start: int = 1) -> GroupRanks:
        return ranks_group.meet(store, start, rank, 3, gathering=0.2)

    refusals = []
    for each in [pool.submit(come, rank) for rank in (0, 1)]:
        with pytest.raises(Refused) as caught:
            each.result(20)
        refusals.append(caught.value)
    begun = time.monotonic()
    for rank, start in ((2, 1), (0, 2), (2, 2)):  # late, or at another start of training
        with pytest.raises(Refused) as caught:
            come(rank, start)
        refusals.append(caught.value)

    assert time.monotonic() - begun < 0.2
    assert {refused.reason for refused in refusals} == {SEVERAL_RANKS}
    (message,) = {refused.message for refused in refusals}
    assert "of the 3 ranks of this run 2 did not begin training" in message
    assert "attach it on every rank" in message


def test_the_first_verdict_stands_for_those_that_saw_more(pool: ThreadPoolExecutor) -> None:
    """The last rank comes just when another one has given up."""
    store = HashStore()
    place = c10d.PrefixStore("1", store)
    place.compare_set("verdict", "", "some did not come")
    for rank in (0, 1):
        place.set(f"here/{rank}", "yes")

    with pytest.raises(Refused, match="some did not come"):
        ranks_group.meet(store, 1, 1, 2)


def test_without_a_process_group_ranks_do_not_join() -> None:
    with pytest.raises(Refused, match="have no way to agree"):
        ranks_group.join()


def test_the_trainings_own_timeout_bounds_every_wait(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    dist.init_process_group(
        "gloo", store=HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=10)
    )
    try:
        ranks = ranks_group.join(SimpleNamespace(ddp_timeout=7))
        assert (ranks.rank, ranks.size, ranks._wait_seconds) == (0, 1, 7.0)
        assert ranks.exchange([alarm(1)]) == ()
        assert ranks.exchange(()) == [alarm(1)]
        assert ranks.close() == []
        monkeypatch.delattr(c10d, "_get_default_store")
        with pytest.raises(Refused, match="_get_default_store"):
            ranks_group.join()
    finally:
        dist.destroy_process_group()
