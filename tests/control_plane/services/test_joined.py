"""What many sessions store at the same moment is stored together, and each for itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import Job
from control_plane.domain.update import UpdateState
from control_plane.services.agent_session import Received
from control_plane.services.joined import JoinedWrites
from control_plane.services.outbox import Acknowledgement, Delivery
from control_plane.services.ports import Transaction
from tests.support.domain_values import applied, set_rate, settled
from tests.support.use_cases import Clock, Talk, UseCases, eventually, only, said


async def talks(plane: UseCases, count: int, updates: int = 1) -> list[Talk]:
    """Sessions of as many jobs, each with updates that wait."""
    begun = []
    for number in range(count):
        job_id = f"j{number:02}"
        talk = Talk(await plane.session(job_id))
        for _ in range(updates):
            talk.session.deliveries.send([await plane.submit(set_rate(), job_id)])
        begun.append(talk)
    return begun


def refusals(answers: list[BaseException | None]) -> list[str]:
    """Why calls failed that were gathered; empty: one did not."""
    return [each.reason if isinstance(each, Refusal) else "" for each in answers]


def rate(job: Job) -> tuple[object, int]:
    """The learning rate in force, and the revision that it comes from."""
    (found,) = (e for e in job.effective if e.parameter == "learning_rate")
    return found.value, found.revision


async def test_outcomes_that_come_together_share_transactions(plane: UseCases) -> None:
    begun = await talks(plane, 40)
    before = plane.store.writes
    await asyncio.gather(*(t.session.outcome(t.next(), settled(1)) for t in begun))
    assert plane.store.writes - before <= 3
    for talk in begun:
        assert (await plane.update(1, talk.session.job_id)).outcome == applied()
        job = await plane.job(talk.session.job_id)
        assert (job.settled_revision, rate(job)) == (1, (1e-5, 1))
        session = talk.session
        await eventually(lambda s=session: s._acks.done_up_to == 2, "acknowledged")  # type: ignore[misc]
        assert only(await said(session), Acknowledgement) == [Acknowledgement(2)]


async def test_a_crowd_is_stored_first_and_acknowledged_then(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.services.agent_session.ACKNOWLEDGED_WITHIN", 3600.0)
    begun = await talks(plane, 10, updates=2)
    await asyncio.gather(*(t.session.outcome(t.next(), settled(1)) for t in begun))
    for talk in begun:
        assert (await plane.update(1, talk.session.job_id)).outcome == applied()
        assert only(await said(talk.session), Acknowledgement) == []
    # Who comes alone is acknowledged at once, with nobody else's messages among them.
    alone = Talk(await plane.session("alone"))
    alone.session.deliveries.send([await plane.submit(set_rate(), "alone")])
    await alone.session.outcome(alone.next(), settled(1))
    assert only(await said(alone.session), Acknowledgement) == [Acknowledgement(2)]


async def test_an_old_epoch_among_them_is_refused_alone(plane: UseCases) -> None:
    begun = await talks(plane, 5)
    await plane.session("j02")
    answers = await asyncio.gather(
        *(t.session.outcome(t.next(), settled(1)) for t in begun), return_exceptions=True
    )
    assert refusals(answers) == ["", "", Reason.SESSION_FENCED, "", ""]
    states = [(await plane.update(1, t.session.job_id)).state for t in begun]
    assert states.count(UpdateState.APPLIED) == 4
    assert states[2] is UpdateState.PENDING
    assert only(await said(begun[2].session), Acknowledgement) == []


async def test_several_outcomes_of_one_job_take_effect_in_their_order(plane: UseCases) -> None:
    one, other = await talks(plane, 2, updates=3)
    before = plane.store.writes
    await asyncio.gather(
        one.session.outcome(one.next(), settled(2, applied(21, 3e-5))),
        other.session.outcome(other.next(), settled(1)),
        one.session.outcome(one.next(), settled(1)),
        one.session.outcome(one.next(), settled(2, applied(21, 3e-5))),
        one.session.outcome(one.next(), settled(3, applied(22, 4e-5))),
    )
    assert plane.store.writes - before <= 2
    assert await plane.states("j00") == ["applied"] * 3
    assert await plane.states("j01") == ["applied", "pending", "pending"]
    job = await plane.job("j00")
    assert (job.settled_revision, rate(job)) == (3, (4e-5, 3))
    assert (await plane.update(2, "j00")).reapplied == ()


async def test_a_fault_in_one_undoes_nothing_of_the_others(plane: UseCases) -> None:
    begun = await talks(plane, 3)
    told: list[str] = []
    writes = JoinedWrites[str](plane.store, lambda tx, ids: tx.read_ahead_open(ids), told.extend)

    def note(job_id: str, message: str) -> None:
        def work(tx: Transaction) -> Job | None:
            job = tx.job(job_id)
            assert job is not None
            tx.save_job(replace(job, state_message=message))
            assert tx.jobs_named([job_id])[0].state_message == message, "it is in the database"
            if message == "broken":
                raise ZeroDivisionError
            return tx.job(job_id)

        asked.append(writes.ask(job_id, work))

    asked: list[asyncio.Future[Job | None]] = []
    note("j00", "first")
    note("j01", "broken")
    note("j02", "third")
    note("j00", "fourth")
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(each, Job) for each in answers] == [True, False, True, True]
    assert isinstance(answers[1], ZeroDivisionError)
    messages = [(await plane.job(t.session.job_id)).state_message for t in begun]
    assert messages == ["fourth", "", "third"]
    assert sorted(told) == ["j00", "j00", "j02"]


async def test_nothing_is_acknowledged_before_it_is_stored(plane: UseCases) -> None:
    begun = await talks(plane, 3)
    for talk in begun:
        await said(talk.session)
    plane.store.held.clear()
    before = plane.store.writes
    waiting = [asyncio.ensure_future(t.session.outcome(t.next(), settled(1))) for t in begun]
    await eventually(lambda: plane.store.writes > before, "begun to write")
    assert [await said(talk.session) for talk in begun] == [[], [], []]
    # One stream breaks off meanwhile: what it has said is stored all the same, and told.
    subscription = plane.bus.subscribe("updates/j01")
    waiting[1].cancel()
    plane.store.held.set()
    await asyncio.wait(waiting)
    assert await subscription.wait(10)
    subscription.close()
    for number in (0, 2):
        assert only(await said(begun[number].session), Acknowledgement) == [Acknowledgement(2)]
    assert {(await plane.update(1, t.session.job_id)).state for t in begun} == {"applied"}


async def test_what_a_crash_has_lost_is_told_again(plane: UseCases) -> None:
    (talk,) = await talks(plane, 1)
    await said(talk.session)
    plane.store.away = True
    lost = asyncio.ensure_future(talk.session.outcome(talk.next(), settled(1)))
    await eventually(lambda: talk.session.is_deaf, "it waits for the store")
    lost.cancel()
    await asyncio.wait([lost])
    plane.store.away = False
    assert await said(talk.session) == []
    assert await plane.states("j00") == ["pending"]
    again = Talk(await plane.session("j00"))
    await again.session.outcome(again.next(), settled(1))
    assert await plane.states("j00") == ["applied"]


async def receive(talk: Talk) -> None:
    """Says of everything that was sent that it was received."""
    for each in only(await said(talk.session), Delivery):
        await talk.session.reply(talk.next(), each.nonce, each.update.revision, Received())


async def test_what_was_received_is_stored_with_its_outcome(
    plane: UseCases, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.services.receipts.RECEIPT_SECONDS", 3600.0)
    (talk,) = await talks(plane, 1, updates=2)
    received = clock()
    before = plane.store.writes
    events = await plane.store.read(lambda tx: tx.event_span()[1])
    await receive(talk)
    assert plane.store.writes == before
    assert only(await said(talk.session), Acknowledgement) == []
    clock.advance(5)
    await talk.session.outcome(talk.next(), settled(1))
    assert plane.store.writes == before + 1
    update = await plane.update(1, "j00")
    assert (update.deliver_time, update.settle_time) == (received, clock())
    new = await plane.store.read(lambda tx: tx.events(after=events, limit=10))
    assert [event.revision for event in new] == [1]
    assert only(await said(talk.session), Acknowledgement) == [Acknowledgement(2)]
    # What is not settled when the stream ends has been received all the same.
    await plane.sessions.close(talk.session)
    assert (await plane.update(2, "j00")).deliver_time == received


async def test_what_was_received_is_stored_soon(plane: UseCases) -> None:
    begun = await talks(plane, 10)
    before = plane.store.writes
    for talk in begun:
        await receive(talk)
    plane.store.away = True
    await eventually(lambda: plane.store.refused > 0, "it is tried")
    await eventually(lambda: all(t.session.receipts for t in begun), "it is to be tried again")
    plane.store.away = False
    for talk in begun:
        session = talk.session
        await eventually(lambda s=session: s._acks.done_up_to == 2, "stored")  # type: ignore[misc]
        assert await plane.states(session.job_id) == ["delivered"]
    assert plane.store.writes - before <= 5


async def test_a_receipt_of_an_old_epoch_ends_its_stream(plane: UseCases) -> None:
    (talk,) = await talks(plane, 1)
    await receive(talk)
    newer = await plane.session("j00")
    ended = await asyncio.wait_for(talk.session.ended, 10)
    assert ended.reason is Reason.SESSION_FENCED
    assert await plane.states("j00") == ["pending"]
    assert not newer.ended.done()
