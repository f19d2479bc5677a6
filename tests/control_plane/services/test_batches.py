"""Batches: accepted for all or for some, answered again, followed to their end, withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from control_plane.domain import batch as rules
from control_plane.domain.access import scope_of
from control_plane.domain.batch import BatchItem
from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.parameter import MultiplyChange
from control_plane.domain.selector import parse
from control_plane.domain.session import Phase, TrainerEvent
from control_plane.domain.update import (
    GUARD,
    Cancelled,
    Rejected,
    Transition,
    UpdateSpec,
    UpdateState,
)
from control_plane.services import batches, upkeep
from control_plane.services.agent_session import AgentSession
from control_plane.services.batch_admission import BatchSubmission
from control_plane.services.batches import BatchNews
from control_plane.services.outbox import Delivery
from control_plane.services.ports import Transaction
from control_plane.services.scoped import ScopedStore
from tests.control_plane.store.helpers import connection_of
from tests.support.domain_values import NOW, set_rate, settled
from tests.support.use_cases import Talk, UseCases, only

HALF = UpdateSpec(changes=(MultiplyChange("learning_rate", 0.5),))
EXITED = TrainerEvent(Phase.EXITED, "gone", NOW)


async def fleet(plane: UseCases, count: int = 3, **hello: Any) -> dict[str, AgentSession]:
    """Sessions of a, b, c, …; all but the first with a label."""
    return {
        name: await plane.session(name, labels={"n": str(i)} if i else {}, **hello)
        for i, name in enumerate("abcdefgh"[:count])
    }


async def send(plane: UseCases, selector: str = "", **fields: Any) -> BatchNews:
    given: dict[str, Any] = {"jobs": (), "spec": set_rate(), "author": "ops", **fields}
    return await plane.batches.submit(BatchSubmission(parse(selector), **given))


async def refused(plane: UseCases, selector: str = "", **fields: Any) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await send(plane, selector, **fields)
    return refusal.value


async def revisions(plane: UseCases, *jobs: str) -> list[int]:
    return [(await plane.job(each)).revision for each in jobs]


async def test_one_update_each_in_one_go(plane: UseCases) -> None:
    sessions = await fleet(plane)
    await plane.submit(set_rate(), "b")
    news = await send(plane, "job", spec=HALF, request_id="r")
    assert [(i.job_id, i.revision, i.state) for i in news.items] == [
        ("a", 1, UpdateState.PENDING),
        ("b", 2, UpdateState.PENDING),
        ("c", 1, UpdateState.PENDING),
    ]
    assert news.items[0].transitions == (Transition("learning_rate", "", 2e-5, 1e-5),)
    batch = news.view.batch
    assert (batch.total, batch.refused, batch.author) == (3, 0, "ops")
    made = await plane.update(2, "b")
    assert (made.batch, made.spec, made.author) == (f"batches/{batch.key}", HALF, "ops")
    assert (await plane.job("b")).desired[-1].revision == 2
    assert await plane.batches.get(batch.key) == news.view
    sessions["b"].deliveries.begin()
    messages = [await asyncio.wait_for(sessions["b"].outbox.get(), 5) for _ in range(3)]
    assert [d.update for d in only(messages, Delivery)] == [await plane.update(1, "b"), made]
    sessions["b"].deliveries.close()


async def test_whom_a_selector_chooses(plane: UseCases) -> None:
    await fleet(plane, 4)
    await plane.jobs.create("waits", {"n": "9"}, "")
    done = Talk(await plane.session("done", labels={"n": "1"}))
    await done.session.event(done.next(), TrainerEvent(Phase.FINISHED, "over", NOW))
    failed = Talk(await plane.session("failed", labels={"n": "1"}))
    await failed.session.event(failed.next(), EXITED)
    chosen = await send(plane, "n in (1,2)")
    assert [item.job_id for item in chosen.items] == ["b", "c"]
    assert chosen.view.batch.selector == "n in (1,2)"
    nobody = await refused(plane, "n=77")
    assert nobody.reason is Reason.JOB_NOT_SELECTED
    named = await send(plane, jobs=("failed", "a"))
    assert [item.job_id for item in named.items] == ["a", "failed"], "by name, also one that failed"


async def test_all_or_nothing(plane: UseCases) -> None:
    await fleet(plane)
    await plane.jobs.create("waits", {}, "")
    await plane.submit(set_rate(2e-6), "b")
    refusal = await refused(plane, jobs=("b", "a", "nobody", "waits"))
    assert refusal.reason is Reason.BATCH_REFUSED
    assert [v.field for v in refusal.violations] == ["jobs/nobody", "jobs/waits"]
    assert refusal.metadata == {"refused": "2", "total": "4"}
    assert await revisions(plane, "a", "b", "waits") == [0, 1, 0]
    unknown = UpdateSpec(changes=(MultiplyChange("nothing", 2.0),))
    assert (await refused(plane, "n", spec=unknown)).reason is Reason.PARAMETER_UNKNOWN
    assert (await plane.batches.list(beyond=None, limit=5)).batches == ()


async def test_best_effort_leaves_out_who_does_not_take_it(plane: UseCases) -> None:
    await fleet(plane)
    await plane.jobs.create("waits", {}, "")
    news = await send(plane, jobs=("waits", "a", "nobody"), best_effort=True)
    assert [(i.job_id, i.revision) for i in news.items] == [
        ("a", 1),
        ("nobody", None),
        ("waits", None),
    ]
    assert [i.refusal.reason for i in news.items if i.refusal] == [
        Reason.JOB_NOT_FOUND,
        Reason.JOB_NOT_STARTED,
    ]
    assert (news.view.progress.total, news.view.progress.refused) == (3, 2)
    none = await refused(plane, jobs=("waits", "nobody"), best_effort=True)
    assert none.reason is Reason.BATCH_REFUSED
    [told] = [each async for each in first(plane.batches.watch(news.view.batch.key))]
    assert told.items == news.items, "who was left out, and why, is kept"


async def first(news: AsyncGenerator[BatchNews]) -> AsyncGenerator[BatchNews]:
    """What a watch tells until it has told of all."""
    count = 0
    async for each in news:
        yield each
        count += len(each.items)
        if count == each.view.progress.total:
            break
    await news.aclose()


async def test_what_is_only_checked_changes_nothing(plane: UseCases) -> None:
    sessions = await fleet(plane)
    news = await send(plane, "job", spec=HALF, validate_only=True, request_id="r")
    assert news.view.batch.key == 0
    assert news.items == tuple(
        BatchItem(name, transitions=(Transition("learning_rate", "", 2e-5, 1e-5),))
        for name in sessions
    )
    assert await revisions(plane, *sessions) == [0, 0, 0]
    again = await send(plane, "n", request_id="r")
    assert again.view.batch.key, "what was only checked has not used the request id"


async def test_a_request_is_answered_again(plane: UseCases) -> None:
    sessions = await fleet(plane)
    made = await send(plane, "n", request_id="r", best_effort=True)
    talk = Talk(sessions["b"])
    await talk.session.outcome(talk.next(), settled(1))
    await plane.session("late", labels={"n": "9"})
    again = await send(plane, "n", request_id="r", best_effort=True)
    assert again.view.batch == made.view.batch
    assert [(i.job_id, i.state) for i in again.items] == [
        ("b", UpdateState.APPLIED),
        ("c", UpdateState.PENDING),
    ]
    assert (await plane.job("late")).revision == 0
    for other in ({"spec": HALF, "best_effort": True}, {}):
        assert (await refused(plane, "n", request_id="r", **other)).reason is (
            Reason.REQUEST_ID_REUSED
        )
    theirs = await send(plane, "n", request_id="r", author="else")
    assert theirs.view.batch.key != made.view.batch.key, "ids are each caller's own"


async def test_the_same_request_at_once_is_one_batch(plane: UseCases) -> None:
    await fleet(plane)
    answers = await asyncio.gather(*(send(plane, "job", request_id="r") for _ in range(5)))
    assert len({answer.view.batch.key for answer in answers}) == 1
    assert await revisions(plane, "a", "b", "c") == [1, 1, 1]


async def test_revisions_stay_contiguous_among_other_updates(plane: UseCases) -> None:
    sessions = await fleet(plane)
    await asyncio.gather(
        *(send(plane, "job") for _ in range(5)),
        *(plane.submit(set_rate(), name) for name in sessions for _ in range(5)),
    )
    for name in sessions:
        assert len(await plane.states(name)) == 10


async def test_limits(plane: UseCases, monkeypatch: pytest.MonkeyPatch) -> None:
    await fleet(plane)
    monkeypatch.setattr(rules, "MAX_JOBS", 2)
    assert "chooses 3 jobs, at most 2" in (await refused(plane, "job")).message
    assert "got 3, at most 2" in (await refused(plane, jobs=("a", "b", "c"))).message
    assert (await refused(plane, "job", author=GUARD)).reason is Reason.NOT_ALLOWED
    assert (await refused(plane, "n", request_id="a b")).violations[0].field == "request_id"
    empty = await refused(plane, "n", spec=UpdateSpec())
    assert [v.field for v in empty.violations] == ["spec.changes"]


async def test_a_job_that_has_too_many_waiting(plane: UseCases) -> None:
    await fleet(plane)
    for _ in range(100):
        await plane.submit(set_rate(), "a")
    full = await refused(plane, "job")
    assert full.reason is Reason.TOO_MANY_PENDING
    assert [v.field for v in full.violations] == ["jobs/a"]


async def test_a_watch_tells_all_then_what_changes_then_ends(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK", 2)
    monkeypatch.setattr(batches, "_COALESCE_SECONDS", 0.01)
    talks = {name: Talk(session) for name, session in (await fleet(plane)).items()}
    key = (await send(plane, "job", spec=HALF)).view.batch.key
    watch = plane.batches.watch(key)
    parts = [await anext(watch), await anext(watch)]
    assert [[i.job_id for i in part.items] for part in parts] == [["a", "b"], ["c"]]
    assert parts[0].items[0].transitions[0].new == 1e-5
    assert parts[0].view.progress.states == {UpdateState.PENDING: 3}
    await talks["b"].session.outcome(talks["b"].next(), settled(1))
    news = await asyncio.wait_for(anext(watch), 5)
    assert [(i.job_id, i.state, i.step) for i in news.items] == [("b", UpdateState.APPLIED, 7)]
    assert news.view.progress.open == 2
    await talks["a"].session.outcome(talks["a"].next(), settled(1, Rejected("NO", "not now")))
    await plane.sessions.close(talks["c"].session)
    await plane.jobs.delete("c", "")
    rest = [each async for each in watch]
    ends = {i.job_id: i for each in rest for i in each.items}
    assert ends["a"].refusal == rules.JobRefusal("NO", "not now")
    assert ends["c"].refusal is not None
    assert (ends["c"].refusal.reason, ends["c"].state) == (Reason.JOB_DELETED, None)
    assert rest[-1].view.progress.states == {UpdateState.APPLIED: 1, UpdateState.REJECTED: 1}
    [again] = [each async for each in plane.batches.watch(key)]
    assert [i.job_id for i in again.items] == ["a", "b"], "one that is settled is told and ends"


async def test_a_batch_none_of_whose_jobs_is_left_is_told_of_too(plane: UseCases) -> None:
    await plane.sessions.close((await fleet(plane, 1))["a"])
    key = (await send(plane, "job")).view.batch.key
    await plane.jobs.delete("a", "")
    [news] = [each async for each in plane.batches.watch(key)]
    assert (news.items, news.view) == ((), await plane.batches.get(key))


async def test_a_watch_ends_with_its_server(plane: UseCases) -> None:
    await fleet(plane)
    watch = plane.batches.watch((await send(plane, "job")).view.batch.key)
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await plane.drain()
    with pytest.raises(Refusal) as ended:
        await asyncio.wait_for(waiting, 5)
    assert ended.value.reason is Reason.SHUTTING_DOWN


async def test_withdrawing_a_batch(plane: UseCases) -> None:
    talks = {name: Talk(session) for name, session in (await fleet(plane)).items()}
    await plane.sessions.close(talks["c"].session)
    key = (await send(plane, "job")).view.batch.key
    await talks["a"].session.outcome(talks["a"].next(), settled(1))
    view = await plane.batches.cancel(key, "ops", "changed my mind")
    assert view.progress.states == {
        UpdateState.APPLIED: 1,
        UpdateState.PENDING: 1,
        UpdateState.CANCELLED: 1,
    }
    assert (await plane.update(1, "b")).cancel_request is not None, "its trainer may have it"
    assert (await plane.update(1, "c")).state is UpdateState.CANCELLED
    with pytest.raises(Refusal, match="no batches/77"):
        await plane.batches.cancel(77, "ops", "")
    with pytest.raises(Refusal, match="at most 1000"):
        await plane.batches.cancel(key, "ops", "x" * 1001)


async def test_withdrawing_from_many_asks_at_once_what_is_open(plane: UseCases) -> None:
    for session in (await fleet(plane)).values():
        await plane.sessions.close(session)
    batch = (await send(plane, "job")).view.batch
    asked: list[str] = []

    def withdraw(tx: Transaction) -> None:
        members = tx.batch_members(batch)
        driver = connection_of(tx).connection.driver_connection
        assert driver is not None
        driver.set_trace_callback(asked.append)
        batches._cancel_all(tx, members, Cancelled("ops"), NOW)
        driver.set_trace_callback(None)

    await plane.store.write(withdraw)
    # Of each job: what is settled is written, and what its updates wanted is read.
    assert len(asked) == 2 + 2 * 3
    for name in "abc":
        assert (await plane.job(name)).settled_revision == 1
        assert await plane.states(name) == ["cancelled"]


async def test_what_is_settled_can_not_be_withdrawn(plane: UseCases) -> None:
    talk = Talk((await fleet(plane, 1))["a"])
    key = (await send(plane, "job")).view.batch.key
    await talk.session.outcome(talk.next(), settled(1))
    with pytest.raises(Refusal) as late:
        await plane.batches.cancel(key, "ops", "")
    assert late.value.reason is Reason.BATCH_SETTLED


async def test_pages_of_batches(plane: UseCases) -> None:
    await fleet(plane, 2)
    keys = [(await send(plane, "job")).view.batch.key for _ in range(5)]
    found, beyond = [], None
    while True:
        page = await plane.batches.list(beyond=beyond, limit=2)
        found.append([view.batch.key for view in page.batches])
        assert all(view.progress.states == {UpdateState.PENDING: 2} for view in page.batches)
        if (beyond := page.next_beyond) is None:
            break
    assert found == [[keys[4], keys[3]], [keys[2], keys[1]], [keys[0]]]


async def test_a_page_costs_the_same_however_few_batches_the_caller_may_see(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_SCAN", 2)
    monkeypatch.setattr(batches, "MOST_SCANNED", 4)
    await fleet(plane, 2)
    own, *others = [(await send(plane, jobs=(job,))).view.batch.key for job in "abbbbb"]
    plane.batches._store = ScopedStore(plane.store, lambda: scope_of("", ("a",)), lambda: "me")
    page = await plane.batches.list(beyond=None, limit=1)
    assert (page.batches, page.next_beyond) == ((), others[1])
    page = await plane.batches.list(beyond=page.next_beyond, limit=1)
    assert ([view.batch.key for view in page.batches], page.next_beyond) == ([own], None)


async def test_a_listing_does_not_count_what_has_ended_again(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_BATCHES_AT_ONCE", 1)
    talks = {name: Talk(session) for name, session in (await fleet(plane)).items()}
    first = (await send(plane, "job")).view.batch.key
    second = (await send(plane, jobs=("a",))).view.batch.key
    for name, revisions in {"a": (1, 2), "b": (1,)}.items():
        for revision in revisions:
            await talks[name].session.outcome(talks[name].next(), settled(revision))

    async def listed() -> tuple[list[int], list[Any]]:
        views = (await plane.batches.list(beyond=None, limit=5)).batches
        assert [view.batch.key for view in views] == [second, first]
        counted = [view.batch.key for view in views if view.batch.ended is not None]
        return counted, [view.progress.states for view in views]

    states = [{UpdateState.APPLIED: 1}, {UpdateState.APPLIED: 2, UpdateState.PENDING: 1}]
    assert await listed() == ([], states)
    await plane.upkeep.count_batches()
    assert await listed() == ([second], states), "one of the first is open"
    await plane.batches.cancel(first, "ops", "")
    await talks["c"].session.outcome(talks["c"].next(), settled(1, Rejected("NO", "no")))
    await plane.upkeep.count_batches()
    states[1] = {UpdateState.APPLIED: 2, UpdateState.REJECTED: 1}
    assert await listed() == ([second, first], states)
    await plane.sessions.close(talks["b"].session)
    await plane.jobs.delete("b", "")
    states[1] = {UpdateState.APPLIED: 1, UpdateState.REJECTED: 1}
    assert await listed() == ([second], states)
    assert (await plane.batches.get(first)).progress.states == states[1]
