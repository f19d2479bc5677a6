"""Updates across jobs: in the order of their times, filtered, page by page."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from control_plane.domain.selector import parse
from control_plane.domain.update import UpdateState
from control_plane.services import history
from control_plane.services.history import HistoryQuery
from tests.support.domain_values import NOW, SECOND, set_rate, settled
from tests.support.use_cases import Clock, Talk, UseCases

BOTH = [True, False]


async def listed(plane: UseCases, limit: int = 3, **query: Any) -> list[tuple[str, int]]:
    """(job, revision) of all that is found, page by page."""
    found: list[tuple[str, int]] = []
    beyond = None
    while True:
        page = await plane.history.list(HistoryQuery(**query), beyond=beyond, limit=limit)
        assert len(page.updates) <= limit
        found += [(update.job_id, update.revision) for update in page.updates]
        beyond = page.next_beyond
        if beyond is None:
            return found


@pytest.fixture
async def asked(plane: UseCases, clock: Clock) -> list[tuple[str, int]]:
    """Updates of three jobs in turn, a second apart; those of `b` applied."""
    for name in "abc":
        await plane.session(name, labels={"team": "nlp" if name == "a" else "vision"})
    talk = Talk(await plane.session("b"))
    made = []
    for number in range(1, 5):
        for name in "abc":
            update = await plane.submit(set_rate(), name, author="else" if name == "c" else "ops")
            made.append((name, update.revision))
            if name == "b":
                await talk.session.outcome(talk.next(), settled(number))
            clock.advance(1)
    return made


@pytest.mark.parametrize("newest_first", BOTH)
@pytest.mark.parametrize("limit", [1, 5, 100])
async def test_all_in_the_order_of_their_times(
    plane: UseCases, asked: list[tuple[str, int]], newest_first: bool, limit: int
) -> None:
    expected = asked[::-1] if newest_first else asked
    assert await listed(plane, limit, newest_first=newest_first) == expected


@pytest.mark.parametrize("newest_first", BOTH)
async def test_only_some(plane: UseCases, asked: list[tuple[str, int]], newest_first: bool) -> None:
    def expected(*jobs: str) -> list[tuple[str, int]]:
        some = [each for each in asked if each[0] in jobs]
        return some[::-1] if newest_first else some

    async def some(**query: Any) -> list[tuple[str, int]]:
        return await listed(plane, newest_first=newest_first, **query)

    assert await some(selector=parse("team=nlp")) == expected("a")
    assert await some(author="else") == expected("c")
    assert await some(author="else", selector=parse("team=nlp")) == []
    assert await some(states=frozenset({UpdateState.APPLIED})) == expected("b")
    assert await some(states=frozenset({UpdateState.PENDING})) == expected("a", "c")
    start, end = NOW + 3 * SECOND, NOW + timedelta(seconds=6)
    between = asked[3:6]
    assert await some(start=start, end=end) == (between[::-1] if newest_first else between)


async def test_those_of_one_moment_are_all_there(plane: UseCases) -> None:
    for name in "abcde":
        await plane.session(name)
        await plane.submit(set_rate(), name)
        await plane.submit(set_rate(), name)
    found = await listed(plane, 3)
    assert len(found) == len(set(found)) == 10


async def test_a_page_costs_the_same_however_few_are_wanted(
    plane: UseCases, asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_SCANNED", 5)
    page = await plane.history.list(HistoryQuery(selector=parse("team=none")), beyond=None, limit=3)
    assert page.updates == ()
    assert page.next_beyond is not None, "not the end: it was only not found yet"
    assert await listed(plane, selector=parse("team=nlp")) == [
        each for each in asked[::-1] if each[0] == "a"
    ]


async def test_of_one_job_by_author_and_time(plane: UseCases, clock: Clock) -> None:
    await plane.session()
    for number in range(6):
        await plane.submit(set_rate(), author="ops" if number % 2 else "else")
        clock.advance(1)

    async def some(**query: Any) -> list[int]:
        page = await plane.updates.list("j", HistoryQuery(**query), beyond=None, limit=10)
        return [update.revision for update in page.updates]

    assert await some(author="ops") == [6, 4, 2]
    assert await some(start=NOW + 2 * SECOND, end=NOW + 4 * SECOND) == [4, 3]
