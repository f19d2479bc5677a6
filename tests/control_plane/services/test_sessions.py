"""Sessions with agents: who is served, what is sent, what a Hello settles."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState, Progress, TrainerExit
from control_plane.domain.session import FullState, Phase, TrainerEvent, TrainerFault, Withdrawn
from control_plane.domain.update import Applied, Cancelled, Expired, ExpiryCause, Rejected
from control_plane.services.agent_session import Received, Refused
from control_plane.services.outbox import (
    Acknowledgement,
    Delivery,
    GoAway,
    ItemError,
    StateRequest,
    Withdrawal,
)
from control_plane.services.ports import Transaction
from tests.support.domain_values import NOW, SECOND, SPECS, applied, hello, set_rate, settled
from tests.support.use_cases import (
    Clock,
    Talk,
    UseCases,
    delivered,
    eventually,
    heartbeat,
    only,
    said,
    use_cases,
    welcome,
)


def state(**fields: Any) -> FullState:
    return FullState(**{"parameters": SPECS, "phase": Phase.TRAINING, **fields})


async def refusal(awaitable: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await awaitable
    return refused.value


# Who is served.


async def test_a_hello_makes_its_job_known_and_is_welcomed(plane: UseCases) -> None:
    session = await plane.session(labels={"team": "nlp"}, progress=Progress(3, 100))
    greeting = await welcome(session)
    assert greeting.epoch == session.epoch == 1
    assert greeting.heartbeat_interval == plane.limits.heartbeat_interval
    assert greeting.max_samples == plane.limits.max_samples
    assert greeting.server_time == NOW
    view = await plane.jobs.get("j")
    assert (view.job.state, view.job.method, view.job.labels) == (
        JobState.RUNNING,
        "sft",
        {"team": "nlp"},
    )
    assert view.job.parameters == SPECS
    assert view.progress == Progress(3, 100)
    assert view.job.session is not None
    assert (view.job.session.host, view.job.session.trainer_pid) == ("gpu-01", 4242)
    assert [(e.parameter, e.value, e.revision) for e in view.job.effective] == [
        ("learning_rate", 2e-5, 0),
        ("gradient_accumulation_steps", 4, 0),
    ]


async def test_another_protocol_leaves_no_trace(plane: UseCases) -> None:
    refused = await refusal(plane.session(protocol_version=2))
    assert refused.reason is Reason.PROTOCOL_VERSION_UNSUPPORTED
    assert (await refusal(plane.jobs.get("j"))).reason is Reason.JOB_NOT_FOUND


async def test_a_newer_process_takes_the_job_over_for_good(plane: UseCases) -> None:
    first = Talk(await plane.session(instance_id="one"))
    second = await plane.session(instance_id="two")
    assert second.epoch == first.session.epoch + 1
    ended = await asyncio.wait_for(asyncio.shield(first.session.ended), 5)
    assert ended.reason is Reason.INSTANCE_SUPERSEDED
    assert "instance two" in ended.message
    # Whatever the old stream still says is refused and changes nothing.
    await plane.submit(set_rate())
    before = await plane.job()
    for said_late in (
        first.session.outcome(first.next(), settled(1)),
        first.session.full_state(first.next(), state(in_force=((1, 1),))),
        first.session.event(first.next(), TrainerEvent(Phase.FINISHED, "", NOW)),
        first.session.heartbeat(first.next(), heartbeat(5, Phase.PAUSED)),
    ):
        assert (await refusal(said_late)).reason is Reason.INSTANCE_SUPERSEDED
    await plane.sessions.close(first.session)
    assert await plane.job() == before
    assert plane.sessions.connected(await plane.job())
    # And it is refused when it comes back, however often.
    for _ in range(2):
        assert (await refusal(plane.session(instance_id="one"))).reason is (
            Reason.INSTANCE_SUPERSEDED
        )
    assert await plane.job() == before
    assert not second.ended.done()


async def test_the_same_process_reconnects(plane: UseCases) -> None:
    first = await plane.session()
    second = await plane.session()
    assert second.epoch == 2
    ended = await asyncio.wait_for(asyncio.shield(first.ended), 5)
    assert ended.reason is Reason.SESSION_FENCED
    assert ended.metadata == {"epoch": "1", "current_epoch": "2"}
    await plane.sessions.close(first)
    assert plane.sessions.connected(await plane.job())
    job = await plane.job()
    assert job.session is not None
    assert job.session.connected
    runs = await plane.store.read(lambda tx: tx.runs(job))
    assert [(run.number, run.superseded) for run in runs] == [(1, False)]


async def test_closing_tells_everybody(plane: UseCases) -> None:
    session = await plane.session()
    before = await plane.job()
    _, position = await plane.store.read(lambda tx: tx.event_span())
    plane.clock.advance(9)
    await plane.sessions.close(session)
    job = await plane.job()
    assert job.session is not None
    assert not job.session.connected
    assert job.session.last_seen_time == NOW + 9 * SECOND
    assert job.etag != before.etag
    events = await plane.store.read(lambda tx: tx.events(after=position, limit=9))
    assert [event.kind.value for event in events] == ["modified"]
    assert (await plane.jobs.get("j")).job.session == job.session


async def test_a_deleted_job_ends_its_session(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    serving = asyncio.ensure_future(talk.session.deliver_new())
    await eventually(lambda: plane.bus._subscribers.get("session/j"), "that it serves")
    job = await plane.job()
    await plane.store.write(lambda tx: tx.delete_job(job))  # as another replica might
    plane.bus.notify("session/j")
    ended = await asyncio.wait_for(asyncio.shield(talk.session.ended), 5)
    assert ended.reason is Reason.JOB_DELETED
    assert (await refusal(talk.session.outcome(talk.next(), settled(1)))).reason is (
        Reason.JOB_DELETED
    )
    await plane.sessions.close(talk.session)
    serving.cancel()


# What is sent.


async def test_new_updates_are_pushed_in_order_and_once(plane: UseCases) -> None:
    session = await plane.session()
    await welcome(session)
    serving = asyncio.ensure_future(session.deliver_new())
    try:
        await asyncio.gather(*(plane.submit(set_rate()) for _ in range(20)))
        got: list[Delivery] = []
        while len(got) < 20:
            message = await asyncio.wait_for(session.outbox.get(), 5)
            assert isinstance(message, Delivery)
            got.append(message)
        assert [d.update.revision for d in got] == list(range(1, 21))
        assert len({d.nonce for d in got}) == 20
    finally:
        serving.cancel()


async def test_an_update_that_is_withdrawn_before_it_was_sent_is_settled_here(
    plane: UseCases,
) -> None:
    session = await plane.session()
    await welcome(session)
    await plane.submit(set_rate())
    asked = await plane.updates.cancel("j", 1, "ann", "", 0.0)
    assert asked.is_open, "nobody knows yet whether it is on its way"
    serving = asyncio.ensure_future(session.deliver_new())
    try:
        done = await plane.updates.wait("j", 1, 5)
        assert done.outcome == Cancelled("ann", "")
        assert await said(session) == []
    finally:
        serving.cancel()


async def test_time_left_is_told_as_a_duration(plane: UseCases, clock: Clock) -> None:
    await plane.sessions.close(await plane.session())
    await plane.submit(set_rate(deadline=NOW + 10 * SECOND))
    await plane.submit(set_rate())
    clock.advance(4)
    deliveries = only(await said(await plane.session()), Delivery)
    assert [d.time_left for d in deliveries] == [6.0, None]


async def test_each_delivery_takes_one_reply(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    talk.session.deliveries.send([await plane.update(1)])
    (delivery,) = only(await said(talk.session), Delivery)
    await talk.session.reply(talk.next(), delivery.nonce + 1, 1, Received())
    await talk.session.reply(talk.next(), delivery.nonce, 2, Received())
    errors = only(await said(talk.session), ItemError)
    assert [(e.sequence, e.reason) for e in errors] == [
        (2, "PROTOCOL_VIOLATION"),
        (3, "PROTOCOL_VIOLATION"),
    ]
    assert await plane.states() == ["pending"]
    await talk.session.reply(talk.next(), delivery.nonce, 1, Received())
    await talk.session.reply(talk.next(), delivery.nonce, 1, Received())
    assert len(only(await said(talk.session), ItemError)) == 1
    await plane.sessions.close(talk.session)
    assert await plane.states() == ["delivered"], "a wrong reply does not use up the right one"


async def test_replies_may_settle_and_refuse(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(2):
        await plane.submit(set_rate())
    talk.session.deliveries.send([await plane.update(1), await plane.update(2)])
    one, two = only(await said(talk.session), Delivery)
    await talk.session.reply(talk.next(), one.nonce, 1, settled(1))
    await talk.session.reply(talk.next(), two.nonce, 2, Refused("TOO_MUCH", "no room"))
    assert (await plane.update(1)).outcome == applied()
    assert (await plane.update(2)).outcome == Rejected("TOO_MUCH", "no room")
    # A rejected update is parked: it is never sent again.
    assert await delivered(await plane.session(in_force=((1, 1),))) == []


# What a Hello settles and what it lacks.


async def test_what_is_missing_is_sent_again_oldest_first(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(6):
        await plane.submit(set_rate())
    talk.session.deliveries.send([await plane.update(r) for r in range(1, 6)])
    await talk.receive_all()
    await talk.session.outcome(talk.next(), settled(1))
    await talk.session.outcome(talk.next(), settled(2, Rejected("X", "x")))
    await plane.sessions.close(talk.session)
    # The trainer holds 3; an outcome of 4 comes with the Hello; 5 and 6 never arrived.
    again = await plane.session(
        in_force=((1, 1), (4, 4)), held=frozenset({3}), outcomes=(settled(4, applied(9)),)
    )
    greeting = await welcome(again)
    assert greeting.settled == ((4, 4),)
    assert await delivered(again) == [5, 6]
    assert await plane.states() == [
        *("applied", "rejected", "delivered", "applied", "delivered", "pending")
    ]


async def test_what_the_checkpoint_lacks_is_applied_again_and_what_it_has_is_not(
    plane: UseCases,
) -> None:
    talk = Talk(await plane.session(instance_id="one"))
    for _ in range(4):
        await plane.submit(set_rate())
    for revision in (1, 2, 3):
        await talk.session.outcome(
            talk.next(), settled(revision, applied(10 * revision, instance_id="one"))
        )
    await plane.sessions.close(talk.session)
    # Killed; resumed from a checkpoint of step 15, which has revision 1 alone.
    resumed = Talk(await plane.session(instance_id="two", start_step=15, in_force=((1, 1),)))
    assert await delivered(resumed.session) == [2, 3, 4]
    await resumed.session.outcome(resumed.next(), settled(2, applied(16, instance_id="two")))
    second = await plane.update(2)
    assert second.outcome == applied(20, instance_id="one")
    assert second.reapplied == (applied(16, instance_id="two"),)
    job = await plane.job()
    assert [(e.revision, e.step) for e in job.effective if e.revision] == [(2, 16)]
    # The wire is at least once.
    await resumed.session.outcome(resumed.next(), settled(2, applied(16, instance_id="two")))
    assert await plane.update(2) == second


async def test_what_is_in_force_without_a_record_counts_as_applied_at_an_unknown_step(
    plane: UseCases,
) -> None:
    """The process died after it saved a checkpoint with the update and before it told."""
    await plane.sessions.close(await plane.session(instance_id="one"))
    await plane.submit(set_rate())
    await plane.session(instance_id="two", start_step=9, in_force=((1, 1),))
    update = await plane.update(1)
    assert update.outcome == Applied(step=0)
    assert (await plane.job()).settled_revision == 1


async def test_what_is_held_is_not_settled_even_where_it_is_called_in_force(
    plane: UseCases,
) -> None:
    """Written, but not verified yet: the outcome is still to come."""
    await plane.sessions.close(await plane.session())
    await plane.submit(set_rate())
    talk = Talk(await plane.session(in_force=((1, 1),), held=frozenset({1})))
    assert await delivered(talk.session) == []
    assert (await plane.update(1)).is_open
    await talk.session.outcome(talk.next(), settled(1, Rejected("VERIFICATION_FAILED", "x")))
    assert await plane.states() == ["rejected"]


async def test_a_new_run_of_a_finished_job_is_not_given_the_old_ones_updates(
    plane: UseCases,
) -> None:
    talk = Talk(await plane.session(instance_id="one"))
    await plane.submit(set_rate())
    await talk.session.outcome(talk.next(), settled(1))
    await talk.session.event(talk.next(), TrainerEvent(Phase.FINISHED, "", NOW))
    await plane.sessions.close(talk.session)
    again = await plane.session(instance_id="two")
    assert await delivered(again) == []
    job = await plane.job()
    assert (job.replay_floor, job.desired, job.state) == (1, (), JobState.RUNNING)
    assert [e.value for e in job.effective if e.parameter == "learning_rate"] == [2e-5]
    assert [e.revision for e in job.effective] == [0, 0]
    # The new run has a history of its own, which is replayed if it is resumed.
    new = Talk(again)
    assert (await plane.submit(set_rate())).revision == 2
    await new.session.outcome(new.next(), settled(2, applied(3, instance_id="two")))
    await plane.sessions.close(again)
    resumed = await plane.session(instance_id="three", start_step=1)
    assert await delivered(resumed) == [2]


async def test_a_run_that_died_is_continued_from_the_start(plane: UseCases) -> None:
    talk = Talk(await plane.session(instance_id="one"))
    await plane.submit(set_rate())
    await talk.session.outcome(talk.next(), settled(1))
    await talk.session.event(talk.next(), TrainerEvent(Phase.EXITED, "", NOW))
    await plane.sessions.close(talk.session)
    assert await delivered(await plane.session(instance_id="two")) == [1]


async def test_a_withdrawal_reaches_a_trainer_that_was_away(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(2):
        await plane.submit(set_rate())
    talk.session.deliveries.send([await plane.update(1), await plane.update(2)])
    await talk.receive_all()
    for revision in (1, 2):
        await plane.updates.cancel("j", revision, "ann", "", 0)
    await plane.sessions.close(talk.session)
    again = Talk(await plane.session(held=frozenset({1})))  # 2 never got there
    messages = await said(again.session)
    assert only(messages, Withdrawal) == [Withdrawal(1)]
    assert only(messages, Delivery) == []
    assert await plane.states() == ["delivered", "cancelled"]
    await again.session.outcome(again.next(), settled(1, Withdrawn()))
    assert (await plane.update(1)).outcome == Cancelled("ann", "")


async def test_a_deadline_that_passed_on_the_way_is_noticed(plane: UseCases, clock: Clock) -> None:
    talk = Talk(await plane.session())
    for _ in range(2):
        await plane.submit(set_rate(deadline=NOW + SECOND))
    await plane.sessions.close(talk.session)
    clock.advance(60)
    again = await plane.session(held=frozenset({2}))
    assert await delivered(again) == []
    assert await plane.states() == ["expired", "delivered"], "2 is the trainer's business"


async def test_a_trainer_that_finished_while_away_leaves_nothing_open(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    await plane.sessions.close(talk.session)
    await plane.submit(set_rate())
    again = await plane.session(phase=Phase.FINISHED, in_force=((1, 1),), outcomes=(settled(1),))
    assert await delivered(again) == []
    assert await plane.states() == ["applied", "expired"]
    outcome = (await plane.update(2)).outcome
    assert isinstance(outcome, Expired)
    assert outcome.cause is ExpiryCause.JOB_ENDED
    job = await plane.job()
    assert (job.state, job.settled_revision) == (JobState.FINISHED, 2)


async def test_outcomes_of_revisions_that_never_were_are_passed_by(plane: UseCases) -> None:
    talk = Talk(await plane.session(outcomes=(settled(9),)))
    assert (await welcome(talk.session)).settled == ((9, 9),), "it need not be sent again"
    await talk.session.outcome(talk.next(), settled(7))
    assert await plane.states() == []


@pytest.mark.parametrize(
    "known",
    [
        {"outcomes": (settled(9),)},
        {"in_force": ((1, 4), (7, 9))},
        {"held": frozenset({9})},
        {"newest_revision": 9},
    ],
    ids=lambda known: next(iter(known)),
)
async def test_new_updates_are_numbered_after_all_that_the_trainer_knows(
    plane: UseCases, known: dict[str, Any]
) -> None:
    await plane.session(**known)
    job = await plane.job()
    assert (job.revision, job.settled_revision) == (9, 9)
    assert (await plane.submit(set_rate())).revision == 10
    await plane.session(**known)
    assert (await plane.job()).revision == 10
    assert [update.state for update in [await plane.update(10)]] == ["pending"]


async def test_a_trainer_can_not_use_the_numbers_up(plane: UseCases) -> None:
    refused = await refusal(plane.session(newest_revision=2**63))
    assert refused.reason is Reason.PROTOCOL_VIOLATION
    assert str(2**63) in refused.message


# What the numbers of messages say.


async def test_a_gap_asks_for_state_and_the_state_mends_it(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(2):
        await plane.submit(set_rate())
    talk.session.deliveries.send([await plane.update(1), await plane.update(2)])
    await talk.receive_all()
    talk.number += 1  # the message with the outcome of 1 is lost
    await talk.session.event(talk.next(), TrainerEvent(Phase.TRAINING, "", NOW))
    assert len(only(await said(talk.session), StateRequest)) == 1
    await talk.session.full_state(
        talk.next(),
        state(
            in_force=((1, 1),),
            held=frozenset({2}),
            outcomes=(settled(1),),
            progress=Progress(33),
        ),
    )
    assert await plane.states() == ["applied", "delivered"]
    assert (await plane.jobs.get("j")).progress == Progress(33)
    assert await delivered(talk.session) == []


async def test_full_state_settles_nothing_that_is_on_its_way(plane: UseCases, clock: Clock) -> None:
    """The agent told its state before it read what this very stream carries to it."""
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    await plane.submit(set_rate(deadline=NOW + SECOND))
    talk.session.deliveries.send([await plane.update(1), await plane.update(2)])
    await plane.updates.cancel("j", 1, "ann", "", 0)
    talk.session.deliveries.send([await plane.update(1)])  # by now with its withdrawal
    clock.advance(60)
    await said(talk.session)
    await talk.session.full_state(talk.next(), state())
    assert await plane.states() == ["pending", "pending"]
    messages = await said(talk.session)
    assert 1 not in [d.update.revision for d in only(messages, Delivery)]
    await talk.session.outcome(talk.next(), settled(1))
    await talk.session.outcome(talk.next(), settled(2))
    assert await plane.states() == ["applied", "applied"]


async def test_a_number_that_was_there_before_is_refused(plane: UseCases) -> None:
    talk = Talk(await plane.session(), number=1)
    talk.next()
    for number in (1, 2):
        with pytest.raises(Refusal) as refused:
            talk.session.begin(number)
        assert refused.value.reason is Reason.SEQUENCE_REGRESSED


async def test_messages_are_acknowledged_in_order_and_together(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await welcome(talk.session)
    two, three, four = talk.next(), talk.next(), talk.next()
    await talk.session.event(three, TrainerEvent(Phase.UNKNOWN, "", NOW))
    assert await said(talk.session) == []
    await talk.session.event(two, TrainerEvent(Phase.UNKNOWN, "", NOW))
    talk.session.bad_message(four, Reason.INVALID_ARGUMENT, "bad")
    messages = await said(talk.session)
    assert only(messages, Acknowledgement) == [Acknowledgement(4)]
    assert only(messages, ItemError) == [ItemError(4, "INVALID_ARGUMENT", "bad")]


# The job's state.


async def test_a_job_follows_its_trainers_words(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    session = talk.session

    async def event(phase: Phase, message: str = "", **more: Any) -> tuple[JobState, str]:
        await session.event(talk.next(), TrainerEvent(phase, message, NOW, **more))
        job = await plane.job()
        return job.state, job.state_message

    assert await event(Phase.STALLED, "no step") == (JobState.STALLED, "no step")
    await session.heartbeat(talk.next(), heartbeat(4, Phase.STALLED))
    assert (await plane.job()).state_message == "no step"
    assert await event(Phase.TRAINING) == (JobState.RUNNING, "")
    await session.heartbeat(talk.next(), heartbeat(5, Phase.PAUSED))
    assert (await plane.job()).state is JobState.PAUSED
    fault = TrainerFault("learning_rate", "KeyError")
    assert await event(Phase.UNKNOWN, "steering failed", fault=fault) == (
        JobState.PAUSED,
        "steering failed",
    )
    ended = TrainerExit(1, None, "killed", NOW)
    assert await event(Phase.EXITED, "gone", exit=ended) == (JobState.FAILED, "gone")
    assert (await plane.job()).exit == ended
    await plane.session(instance_id="two")
    job = await plane.job()
    assert (job.state, job.exit, job.state_message) == (JobState.RUNNING, None, "")


async def test_a_finished_job_stays_finished_when_its_process_ends(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await talk.session.event(talk.next(), TrainerEvent(Phase.FINISHED, "", NOW))
    ended = TrainerExit(0, None, "", NOW)
    await talk.session.event(talk.next(), TrainerEvent(Phase.EXITED, "", NOW, exit=ended))
    await talk.session.heartbeat(talk.next(), heartbeat(9, Phase.EXITED))
    job = await plane.job()
    assert (job.state, job.exit) == (JobState.FINISHED, ended)


async def test_silence_is_noticed_and_forgiven(plane: UseCases, clock: Clock) -> None:
    talk = Talk(await plane.session())
    limit = plane.limits.heartbeat_interval * plane.limits.lost_after_intervals
    clock.advance(limit)
    await plane.sessions.find_lost(limit)
    assert (await plane.job()).state is JobState.RUNNING
    clock.advance(1)
    await plane.sessions.find_lost(limit + 1)
    lost = await plane.job()
    assert lost.state is JobState.LOST
    assert "16 s" in lost.state_message
    await plane.sessions.find_lost(limit + 2)
    assert (await plane.job()).version == lost.version, "it is told once"
    await talk.session.heartbeat(talk.next(), heartbeat(5, Phase.UNKNOWN))
    assert (await plane.job()).state is JobState.RUNNING


async def test_a_trainer_whose_stream_is_gone_is_lost_in_time(
    plane: UseCases, clock: Clock
) -> None:
    session = await plane.session()
    clock.advance(2)
    await plane.sessions.close(session)
    clock.advance(15)
    await plane.sessions.find_lost(17)
    assert (await plane.job()).state is JobState.RUNNING
    clock.advance(1)
    await plane.sessions.find_lost(18)
    job = await plane.job()
    assert job.state is JobState.LOST
    assert job.session is not None
    assert job.session.last_seen_time == NOW + 2 * SECOND


async def test_a_look_for_the_lost_passes_over_sessions_that_are_over_elsewhere(
    plane: UseCases, clock: Clock
) -> None:
    """This server has heard of none of that yet: the chore that looks must not end of it."""
    for name in ("fenced", "superseded", "deleted"):
        await plane.session(name)

    def elsewhere(tx: Transaction) -> None:
        for name, change in (("fenced", {"epoch": 9}), ("superseded", {"instance_id": "other"})):
            job = tx.job(name)
            assert job is not None
            assert job.session is not None
            tx.save_job(replace(job, session=replace(job.session, **change)))
        deleted = tx.job("deleted")
        assert deleted is not None
        tx.delete_job(deleted)

    await plane.store.write(elsewhere)
    clock.advance(3_600)
    await plane.sessions.find_lost(0)
    assert (await plane.job("superseded")).state is JobState.RUNNING


async def test_a_server_that_was_away_blames_nobody_for_its_own_silence(tmp_path: Path) -> None:
    clock = Clock()
    async with use_cases(tmp_path / "c.db", clock) as first:
        await first.session()
    clock.advance(3_600)
    async with use_cases(tmp_path / "c.db", clock) as second:
        clock.advance(10)
        await second.sessions.find_lost(10)
        assert (await second.job()).state is JobState.RUNNING
        await second.submit(set_rate())
        clock.advance(10)
        await second.sessions.find_lost(20)
        assert (await second.job()).state is JobState.LOST
        # Accepted after the trainer could last have been reached: nobody has it.
        cancelled = await second.updates.cancel("j", 1, "ann", "", 0)
        assert cancelled.outcome == Cancelled("ann", "")


async def test_a_clock_that_is_set_back_does_not_hide_what_a_dead_server_had_sent(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with use_cases(tmp_path / "c.db", clock) as first:
        session = await first.session()
        clock.advance(7_200)
        await first.submit(set_rate())
        session.deliveries.send([await first.update(1)])
        assert await delivered(session) == [1]
    clock.advance(-7_200)
    async with use_cases(tmp_path / "c.db", clock) as second:
        clock.advance(20)
        await second.sessions.find_lost(20)
        assert (await second.job()).state is JobState.LOST
        # Only the trainer can tell what became of it.
        assert (await second.updates.cancel("j", 1, "ann", "", 0)).is_open


# The end of the server.


async def test_a_drain_asks_everybody_to_go_and_lets_nobody_in(plane: UseCases) -> None:
    sessions = [await plane.session(name) for name in ("a", "b")]
    for session in sessions:
        await said(session)
    await plane.drain()
    for session in sessions:
        (away,) = await said(session)
        assert isinstance(away, GoAway)
        assert 0 < away.delay <= 1
    refused = await refusal(plane.session("c"))
    assert refused.reason is Reason.SHUTTING_DOWN
    assert refused.retry_delay


async def test_a_session_that_opens_while_the_drain_begins_is_told_too(plane: UseCases) -> None:
    plane.store.held.clear()
    opening = asyncio.ensure_future(plane.session())
    await eventually(lambda: plane.store.writes, "that it is being admitted")
    await plane.drain()
    plane.store.held.set()
    session = await asyncio.wait_for(opening, 5)
    assert len(only(await said(session), GoAway)) == 1


async def test_of_two_that_open_at_once_one_is_served(plane: UseCases) -> None:
    opened = await asyncio.gather(
        *(plane.session(instance_id=f"i{n}") for n in range(4)), return_exceptions=True
    )
    sessions = [s for s in opened if not isinstance(s, BaseException)]
    newest = max(sessions, key=lambda s: s.epoch)
    assert newest.epoch == 4
    assert [s for s in sessions if not s.ended.done()] == [newest]
    job = await plane.job()
    assert job.session is not None
    assert job.session.instance_id == newest.instance_id


async def test_a_stream_waits_for_a_store_that_is_away(plane: UseCases, clock: Clock) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    plane.store.away = True
    telling = asyncio.create_task(talk.session.outcome(talk.next(), settled(1)))
    await eventually(lambda: talk.session.is_deaf, "waiting")
    assert only(await said(talk.session), Acknowledgement) == []
    # Meanwhile it can not hear its agent, so its silence means nothing.
    clock.advance(3_600)
    plane.store.away = False
    await asyncio.wait_for(telling, 10)
    assert only(await said(talk.session), Acknowledgement) == [Acknowledgement(2)]
    assert (await plane.update(1)).outcome == applied()
    await plane.sessions.find_lost(3_600)
    assert (await plane.job()).state is JobState.RUNNING


async def test_what_could_not_be_stored_is_told_again(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    plane.store.away = True
    telling = asyncio.create_task(talk.session.outcome(talk.next(), settled(1)))
    await eventually(lambda: talk.session.is_deaf, "waiting")
    telling.cancel()
    await asyncio.wait([telling])
    # The end of the stream is recorded once that is possible.
    await plane.sessions.close(talk.session)
    plane.store.away = False
    job = await plane.job()
    assert job.session is not None
    assert job.session.connected
    await plane.sessions.find_lost(1)
    job = await plane.job()
    assert job.session is not None
    assert not job.session.connected
    again = await plane.session(in_force=((1, 1),), outcomes=(settled(1),))
    assert (await welcome(again)).settled == ((1, 1),)
    assert (await plane.update(1)).outcome == applied()


async def test_a_new_process_that_has_not_begun_is_where_its_checkpoint_is(
    plane: UseCases,
) -> None:
    """Where an earlier process got to says nothing about this one."""
    await plane.session(instance_id="one", progress=Progress(500))
    await plane.session(instance_id="two", start_step=100)
    assert (await plane.submit(set_rate(at_step=300))).revision == 1
    refused = await refusal(plane.submit(set_rate(at_step=100)))
    assert refused.reason is Reason.STEP_IN_PAST


async def test_hello_and_rerun_keep_what_a_replace_would(plane: UseCases) -> None:
    """Labels add up, the newest method counts, an empty one counts for nothing."""
    await plane.session(labels={"a": "1", "b": "1"})
    unnamed = replace(hello(labels={"b": "2"}), method="")
    await plane.sessions.open(1, unnamed)
    job = await plane.job()
    assert (job.labels, job.method) == ({"a": "1", "b": "2"}, "sft")
