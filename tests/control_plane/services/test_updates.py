"""Updates: submitted, answered again, listed, awaited, withdrawn, expired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState, Progress
from control_plane.domain.parameter import MultiplyChange, SetChange
from control_plane.domain.session import Phase, TrainerEvent, Withdrawn
from control_plane.domain.update import (
    Action,
    ActionKind,
    Applied,
    Cancelled,
    Expired,
    ExpiryCause,
    Rejected,
    Transition,
    UpdateSpec,
    UpdateState,
)
from control_plane.services import updates
from control_plane.services.history import HistoryQuery
from control_plane.services.outbox import Withdrawal
from control_plane.services.ports import Transaction
from tests.control_plane.store.helpers import connection_of
from tests.support.domain_values import NOW, SECOND, applied, set_rate, settled
from tests.support.use_cases import (
    Clock,
    Talk,
    UseCases,
    eventually,
    heartbeat,
    only,
    said,
    use_cases,
)

FINISHED = TrainerEvent(Phase.FINISHED, "over", NOW)
EXITED = TrainerEvent(Phase.EXITED, "gone", NOW)


async def test_an_update_is_pending_until_its_trainer_has_it(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    made = await plane.submit(set_rate(reason="loss rises"), request_id="r")
    assert (made.revision, made.state, made.author) == (1, UpdateState.PENDING, "ops")
    assert made.spec.reason == "loss rises"
    assert await plane.update(1) == made
    talk.session.deliveries.send([made])
    assert await talk.receive_all() == [1]
    assert (await plane.update(1)).state is UpdateState.DELIVERED
    await talk.session.outcome(talk.next(), settled(1))
    done = await plane.update(1)
    assert (done.state, done.outcome) == (UpdateState.APPLIED, applied())
    job = await plane.job()
    assert [(e.value, e.revision, e.step) for e in job.effective if e.revision] == [(1e-5, 1, 7)]
    assert [d.revision for d in job.desired] == [1]
    assert (job.revision, job.settled_revision) == (1, 1)


async def test_revisions_have_no_gaps_whatever_is_refused_between(plane: UseCases) -> None:
    await plane.session()
    results = await asyncio.gather(
        *(plane.submit(set_rate(0.5 if i % 3 == 1 else 1e-5)) for i in range(30)),
        return_exceptions=True,
    )
    accepted = [u.revision for u in results if not isinstance(u, BaseException)]
    assert sorted(accepted) == list(range(1, 21))
    assert sum(isinstance(u, Refusal) for u in results) == 10
    assert (await plane.job()).revision == 20


async def test_a_request_is_answered_again_and_applied_once(plane: UseCases) -> None:
    await plane.session()
    spec = UpdateSpec(
        (SetChange("learning_rate", 1e-5), MultiplyChange("learning_rate", 2.0, "1")),
        at_step=100,
        max_step=200,
        deadline=NOW + 60 * SECOND,
        reason="because",
    )
    first = await plane.submit(spec, request_id="r")
    answers = await asyncio.gather(*(plane.submit(spec, request_id="r") for _ in range(5)))
    assert answers == [first] * 5
    assert (await plane.job()).revision == 1
    for other in (set_rate(), set_rate(2e-5)):
        with pytest.raises(Refusal) as refused:
            await plane.submit(other, request_id="r")
        assert refused.value.reason is Reason.REQUEST_ID_REUSED
    assert (await plane.job()).revision == 1


async def test_a_request_is_answered_again_when_it_would_be_refused_by_now(
    plane: UseCases, clock: Clock
) -> None:
    """The answer was lost; meanwhile the deadline passed, the job went on and ended."""
    session = await plane.session()
    spec = set_rate(at_step=10, deadline=NOW + SECOND)
    first = await plane.submit(spec, request_id="r", expected_revision=0)
    clock.advance(60)
    plane.telemetry.progress(session.job_key, Progress(500))
    talk = Talk(session)
    await session.event(talk.next(), FINISHED)
    again = await plane.submit(spec, request_id="r", expected_revision=0)
    assert (again.revision, again.request_id) == (first.revision, "r")
    assert again.state is UpdateState.EXPIRED, "as it stands now"


async def test_without_a_request_id_each_request_is_its_own(plane: UseCases) -> None:
    await plane.session()
    one, two = await plane.submit(set_rate()), await plane.submit(set_rate())
    assert (one.revision, two.revision) == (1, 2)
    assert one.request_id != two.request_id
    assert one.request_id


async def test_compare_and_set_lets_one_of_many_through(plane: UseCases) -> None:
    await plane.session()
    results = await asyncio.gather(
        *(plane.submit(set_rate(), expected_revision=0) for _ in range(8)), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, Refusal)]
    assert len(refused) == 7
    assert {r.reason for r in refused} == {Reason.REVISION_MISMATCH}
    assert {r.metadata["current_revision"] for r in refused} == {"1"}
    assert (await plane.submit(set_rate(), expected_revision=1)).revision == 2


async def test_to_validate_changes_nothing(plane: UseCases) -> None:
    await plane.session()
    before = (await plane.job(), await plane.store.read(lambda tx: tx.event_span()))
    would_be = await plane.submit(set_rate(), validate_only=True, request_id="r")
    assert (would_be.revision, would_be.state) == (1, UpdateState.PENDING)
    with pytest.raises(Refusal):
        await plane.submit(set_rate(0.5), validate_only=True)
    assert (await plane.job(), await plane.store.read(lambda tx: tx.event_span())) == before
    assert (await plane.submit(set_rate(3e-5), request_id="r")).revision == 1, "r is not used up"


def _unknown_job(plane: UseCases) -> Any:
    return plane.submit(set_rate(), job_id="k")


REFUSED: dict[Reason, Callable[[UseCases], Any]] = {
    Reason.JOB_NOT_FOUND: _unknown_job,
    Reason.PARAMETER_UNKNOWN: lambda p: p.submit(UpdateSpec((SetChange("lr", 1.0),))),
    Reason.GUARD_RAIL: lambda p: p.submit(set_rate(0.5)),
    Reason.STEP_IN_PAST: lambda p: p.submit(set_rate(at_step=20)),
    Reason.DEADLINE_IN_PAST: lambda p: p.submit(set_rate(deadline=NOW)),
    Reason.REVISION_MISMATCH: lambda p: p.submit(set_rate(), expected_revision=7),
    Reason.OPERATION_UNSUPPORTED: lambda p: p.submit(UpdateSpec(action=Action(ActionKind.STOP))),
}


@pytest.mark.parametrize("reason", REFUSED)
async def test_a_refused_update_leaves_nothing(plane: UseCases, reason: Reason) -> None:
    await plane.session(progress=Progress(20))
    before = (await plane.job(), await plane.store.read(lambda tx: tx.event_span()))
    with pytest.raises(Refusal) as refused:
        await REFUSED[reason](plane)
    assert refused.value.reason is reason
    assert (await plane.job(), await plane.store.read(lambda tx: tx.event_span())) == before


async def test_a_bad_request_id_is_refused(plane: UseCases) -> None:
    await plane.session()
    with pytest.raises(Refusal) as refused:
        await plane.submit(set_rate(), request_id="a b")
    assert refused.value.violations[0].field == "request_id"


async def test_a_job_that_declared_nothing_takes_no_update(plane: UseCases) -> None:
    await plane.jobs.create("j", {}, "")
    with pytest.raises(Refusal) as refused:
        await plane.submit(set_rate())
    assert refused.value.reason is Reason.JOB_NOT_STARTED


async def test_a_finished_job_takes_no_update_and_its_open_ones_expire(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(2):
        await plane.submit(set_rate())
    talk.session.deliveries.send([await plane.update(1)])
    await talk.receive_all()
    await talk.session.event(talk.next(), FINISHED)
    for revision in (1, 2):
        update = await plane.update(revision)
        assert isinstance(update.outcome, Expired)
        assert update.outcome.cause is ExpiryCause.JOB_ENDED
    job = await plane.job()
    assert (job.state, job.desired, job.settled_revision) == (JobState.FINISHED, (), 2)
    with pytest.raises(Refusal) as refused:
        await plane.submit(set_rate())
    assert refused.value.reason is Reason.JOB_FINISHED


async def test_open_updates_of_a_job_are_bounded(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "c.db", max_open_updates=2) as plane:
        talk = Talk(await plane.session())
        await plane.submit(set_rate(), request_id="a")
        await plane.submit(set_rate())
        with pytest.raises(Refusal) as refused:
            await plane.submit(set_rate())
        assert refused.value.reason is Reason.TOO_MANY_PENDING
        assert refused.value.metadata == {"limit": "2"}
        assert refused.value.retry_delay
        await plane.submit(set_rate(), request_id="a")  # which is answered again, not added
        talk.session.deliveries.send([await plane.update(1)])
        await talk.receive_all()
        await talk.session.outcome(talk.next(), settled(1))
        await plane.submit(set_rate())


async def test_the_guard_rail_looks_at_the_value_in_force_by_now(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate(1e-4))
    talk.session.deliveries.send([await plane.update(1)])
    await talk.receive_all()
    with pytest.raises(Refusal):
        await plane.submit(set_rate(9e-4))
    await talk.session.outcome(talk.next(), settled(1, applied(value=1e-4)))
    await plane.submit(set_rate(9e-4))


async def test_values_confirmed_by_group_outdate_a_metric_from_before(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await talk.session.heartbeat(talk.next(), heartbeat(6, learning_rate=[2e-5]))
    await plane.submit(set_rate(1e-4))
    talk.session.deliveries.send([await plane.update(1)])
    await talk.receive_all()
    by_group = tuple(Transition("learning_rate", group, 2e-5, 1e-4) for group in ("0", "1"))
    await talk.session.outcome(talk.next(), settled(1, Applied(7, by_group, NOW, "instance-1")))
    with pytest.raises(Refusal) as refused:
        await plane.submit(set_rate(2e-3))
    assert refused.value.reason is Reason.GUARD_RAIL
    await plane.submit(set_rate(9e-4))


# Desired after something came to nothing.


async def _desired(plane: UseCases) -> dict[tuple[str, str], int]:
    return {(d.change.parameter, d.change.group): d.revision for d in (await plane.job()).desired}


async def test_what_comes_to_nothing_gives_way_to_what_was_desired_before(
    plane: UseCases,
) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate(1e-5))
    await plane.submit(UpdateSpec((SetChange("learning_rate", 2e-5, "0"),)))
    both = (SetChange("learning_rate", 3e-5), SetChange("gradient_accumulation_steps", 8))
    await plane.submit(UpdateSpec(both))
    await plane.submit(set_rate(4e-5))
    assert await _desired(plane) == {
        ("learning_rate", ""): 4,
        ("gradient_accumulation_steps", ""): 3,
    }
    rejected = Rejected("NO_SCALE", "the value is 0 here")
    await talk.session.outcome(talk.next(), settled(4, rejected))
    assert await _desired(plane) == {
        ("learning_rate", ""): 3,
        ("gradient_accumulation_steps", ""): 3,
    }
    await talk.session.outcome(talk.next(), settled(3, rejected))
    assert await _desired(plane) == {("learning_rate", ""): 1, ("learning_rate", "0"): 2}
    await talk.session.outcome(talk.next(), settled(2, rejected))
    assert await _desired(plane) == {("learning_rate", ""): 1}
    await talk.session.outcome(talk.next(), settled(1, rejected))
    assert await _desired(plane) == {}
    assert await plane.states() == ["rejected"] * 4
    assert (await plane.job()).settled_revision == 4


async def test_what_was_superseded_already_comes_to_nothing_without_a_trace(
    plane: UseCases,
) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate(1e-5))
    await plane.submit(set_rate(2e-5))
    await talk.session.outcome(talk.next(), settled(1, Rejected("X", "x")))
    assert await _desired(plane) == {("learning_rate", ""): 2}


async def test_desired_is_found_again_beyond_many_updates(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "c.db", max_open_updates=1_000) as plane:
        talk = Talk(await plane.session())
        await plane.submit(UpdateSpec((SetChange("gradient_accumulation_steps", 8),)))
        await asyncio.gather(*(plane.submit(set_rate()) for _ in range(230)))
        await plane.submit(UpdateSpec((SetChange("gradient_accumulation_steps", 16),)))
        await talk.session.outcome(talk.next(), settled(232, Rejected("X", "x")))
        assert await _desired(plane) == {
            ("gradient_accumulation_steps", ""): 1,
            ("learning_rate", ""): 231,
        }


# Waiting.


async def test_waiting_ends_with_the_outcome(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    waiting = asyncio.ensure_future(plane.updates.wait("j", 1, 60))
    await eventually(lambda: plane.bus._subscribers.get("updates/j"), "that it waits")
    talk.session.deliveries.send([await plane.update(1)])
    await talk.receive_all()
    assert not waiting.done()
    await talk.session.outcome(talk.next(), settled(1))
    assert (await asyncio.wait_for(waiting, 5)).state is UpdateState.APPLIED
    assert not plane.bus._subscribers.get("updates/j")


async def test_waiting_ends_with_the_time(plane: UseCases) -> None:
    await plane.session()
    await plane.submit(set_rate())
    for seconds in (0.0, 0.01):
        assert (await plane.updates.wait("j", 1, seconds)).state is UpdateState.PENDING
    for missing in (plane.updates.wait("j", 2, 0), plane.updates.wait("k", 1, 0)):
        with pytest.raises(Refusal):
            await missing


async def test_pages_of_updates(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(5):
        await plane.submit(set_rate())
    await talk.session.outcome(talk.next(), settled(2))
    await talk.session.outcome(talk.next(), settled(4))

    async def pages(states: tuple[UpdateState, ...], *, newest_first: bool) -> list[list[int]]:
        found, beyond = [], None
        while True:
            page = await plane.updates.list(
                "j",
                HistoryQuery(states=frozenset(states), newest_first=newest_first),
                beyond=beyond,
                limit=2,
            )
            found.append([u.revision for u in page.updates])
            beyond = page.next_beyond
            if beyond is None:
                return found

    assert await pages((), newest_first=True) == [[5, 4], [3, 2], [1]]
    assert await pages((), newest_first=False) == [[1, 2], [3, 4], [5]]
    assert await pages((UpdateState.APPLIED,), newest_first=True) == [[4, 2]]
    assert await pages((UpdateState.PENDING,), newest_first=False) == [[1, 3], [5]]
    assert await pages((UpdateState.REJECTED,), newest_first=True) == [[]]
    with pytest.raises(Refusal):
        await plane.updates.list("k", HistoryQuery(newest_first=True), beyond=None, limit=1)


# Withdrawing.


async def test_what_no_trainer_can_have_is_withdrawn_at_once(plane: UseCases) -> None:
    await plane.sessions.close(await plane.session())
    plane.clock.advance(1)
    await plane.submit(set_rate())
    cancelled = await plane.updates.cancel("j", 1, "ann", "wrong job", 60)
    assert cancelled.state is UpdateState.CANCELLED
    assert cancelled.outcome == Cancelled("ann", "wrong job")
    assert (await plane.job()).desired == ()
    with pytest.raises(Refusal) as refused:
        await plane.updates.cancel("j", 1, "ann", "", 60)
    assert refused.value.reason is Reason.UPDATE_SETTLED
    again = await plane.session()
    assert only(await said(again), Withdrawal) == []
    assert await plane.states() == ["cancelled"]


@pytest.mark.parametrize("comes_too_late", [False, True])
async def test_what_the_trainer_has_is_withdrawn_by_the_trainer(
    plane: UseCases, comes_too_late: bool
) -> None:
    talk = Talk(await plane.session())
    talk.session.deliveries.begin()
    try:
        await plane.submit(set_rate())
        await eventually(lambda: talk.session.deliveries.sent, "a delivery")
        await talk.receive_all()
        cancelling = asyncio.ensure_future(plane.updates.cancel("j", 1, "ann", "", 60))
        await eventually(lambda: talk.session.deliveries.withdrawn, "a withdrawal")
        assert only(await said(talk.session), Withdrawal) == [Withdrawal(1)]
        between = await plane.update(1)
        assert (between.state, between.cancel_request) == (
            UpdateState.DELIVERED,
            Cancelled("ann", ""),
        )
        result = applied() if comes_too_late else Withdrawn()
        await talk.session.outcome(talk.next(), settled(1, result))
        ended = await asyncio.wait_for(cancelling, 5)
        assert ended.outcome == (applied() if comes_too_late else Cancelled("ann", ""))
    finally:
        talk.session.deliveries.close()


async def test_asking_twice_asks_the_trainer_once(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    talk.session.deliveries.begin()
    try:
        await plane.submit(set_rate())
        await eventually(lambda: talk.session.deliveries.sent, "a delivery")
        for _ in range(2):
            asked = await plane.updates.cancel("j", 1, "ann", "", 0.01)
            assert asked.state is UpdateState.PENDING
            assert asked.cancel_request is not None
        await eventually(lambda: talk.session.deliveries.withdrawn, "a withdrawal")
        assert only(await said(talk.session), Withdrawal) == [Withdrawal(1)]
    finally:
        talk.session.deliveries.close()


async def test_cancelling_what_is_not_there(plane: UseCases) -> None:
    await plane.session()
    with pytest.raises(Refusal) as refused:
        await plane.updates.cancel("j", 1, "ann", "", 0)
    assert refused.value.reason is Reason.UPDATE_NOT_FOUND
    with pytest.raises(Refusal) as refused:
        await plane.updates.cancel("j", 1, "ann", "x" * 1_001, 0)
    assert refused.value.violations[0].field == "reason"


async def test_a_silent_trainer_with_an_open_stream_may_have_an_update(plane: UseCases) -> None:
    """It may only have been stopped, and find the update in its stream when it goes on."""
    talk = Talk(await plane.session())
    plane.clock.advance(3_600)
    await plane.sessions.find_lost(3_600)
    assert (await plane.job()).state is JobState.LOST
    plane.clock.advance(1)
    await plane.submit(set_rate())
    asked = await plane.updates.cancel("j", 1, "ann", "", 0.01)
    assert asked.state is UpdateState.PENDING
    assert asked.cancel_request is not None
    await talk.session.outcome(talk.next(), settled(1))
    assert (await plane.update(1)).state is UpdateState.APPLIED


# Deadlines.


async def test_a_deadline_passes_where_no_trainer_can_have_the_update(
    plane: UseCases, clock: Clock
) -> None:
    await plane.sessions.close(await plane.session())
    clock.advance(1)
    await plane.submit(set_rate(deadline=NOW + 10 * SECOND))
    await plane.submit(set_rate())
    waiting = asyncio.ensure_future(plane.updates.wait("j", 1, 60))
    clock.advance(8)
    await plane.updates.expire_due()
    assert (await plane.update(1)).is_open
    clock.advance(1)
    await plane.updates.expire_due()
    expired = await asyncio.wait_for(waiting, 5)
    assert isinstance(expired.outcome, Expired)
    assert expired.outcome.cause is ExpiryCause.DEADLINE
    assert await plane.states() == ["expired", "pending"]
    assert [d.revision for d in (await plane.job()).desired] == [2]


async def test_a_deadline_is_the_trainers_business_once_it_may_have_the_update(
    plane: UseCases, clock: Clock
) -> None:
    session = await plane.session()
    await plane.submit(set_rate(deadline=NOW + SECOND))
    clock.advance(60)
    await plane.updates.expire_due()
    assert (await plane.update(1)).is_open
    await plane.sessions.close(session)
    await plane.updates.expire_due()
    assert (await plane.update(1)).is_open


async def test_what_a_dead_process_had_expires_too(plane: UseCases, clock: Clock) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate(deadline=NOW + 10 * SECOND))
    talk.session.deliveries.send([await plane.update(1)])
    await talk.receive_all()
    await talk.session.event(talk.next(), EXITED)
    await plane.sessions.close(talk.session)
    clock.advance(60)
    await plane.updates.expire_due()
    assert await plane.states() == ["expired"]


async def test_updates_that_can_not_expire_hold_up_no_others(plane: UseCases, clock: Clock) -> None:
    await plane.session("busy")
    for _ in range(100):
        await plane.submit(set_rate(deadline=NOW + SECOND), "busy")
    await plane.sessions.close(await plane.session("gone"))
    clock.advance(0.5)
    await plane.submit(set_rate(deadline=NOW + 2 * SECOND), "gone")
    clock.advance(60)
    await plane.updates.expire_due()
    assert await plane.states("gone") == ["expired"]
    assert set(await plane.states("busy")) == {"pending"}


async def test_updates_that_trainers_may_have_cost_no_statements_of_their_own(
    plane: UseCases, clock: Clock
) -> None:
    async def statements(jobs: int) -> int:
        for number in range(jobs):
            await plane.session(f"of-{jobs}-{number}")
            await plane.submit(set_rate(deadline=clock.now + SECOND), f"of-{jobs}-{number}")
        clock.advance(60)
        asked: list[str] = []

        def look(tx: Transaction) -> None:
            driver = connection_of(tx).connection.driver_connection
            assert driver is not None
            driver.set_trace_callback(asked.append)
            assert updates._due(tx, clock.now) == []
            driver.set_trace_callback(None)

        await plane.store.read(look)
        return len(asked)

    assert await statements(1) == await statements(9)


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    database = tmp_path / "c.db"
    spec = UpdateSpec(
        (
            SetChange("learning_rate", 1, mode="hold", hold_steps=2**60),
            MultiplyChange("learning_rate", 0.1 + 0.2, "1"),
            SetChange("gradient_accumulation_steps", 8),
        ),
        at_step=5,
        max_step=2**62,
        deadline=NOW + 60 * SECOND,
        reason="ünïcode ☃",
        force=True,
    )
    async with use_cases(database) as first:
        talk = Talk(await first.session())
        await first.submit(spec, request_id="r")
        await first.submit(set_rate(), request_id="s")
        await talk.session.outcome(talk.next(), settled(2))
        before = [await first.update(1), await first.update(2), await first.job()]
    async with use_cases(database) as second:
        assert [await second.update(1), await second.update(2), await second.job()] == before
        assert repr((await second.update(1)).spec) == repr(spec), "1 is not 1.0"
        assert (await second.submit(spec, request_id="r")).revision == 1
