"""Sessions with agents: who is served, what is sent, and how a job follows its trainer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState, Progress, TrainerExit
from control_plane.domain.session import FullState, Phase, TrainerEvent, TrainerFault
from control_plane.domain.update import Cancelled, Rejected
from control_plane.services.agent_session import AgentSession, Received, Refused
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
    refusal,
    said,
    welcome,
)


def state(**fields: Any) -> FullState:
    return FullState(**{"parameters": SPECS, "phase": Phase.TRAINING, **fields})


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


async def test_a_restart_that_dies_before_it_is_heard_of_is_heard_once_its_forerunner_is_lost(
    plane: UseCases, clock: Clock
) -> None:
    """The forerunner's agent went with its host, so that nobody has said that it ended."""
    one = await plane.session(instance_id="one")
    await plane.submit(set_rate())

    async def say() -> AgentSession:
        return await plane.session(
            instance_id="two", phase=Phase.EXITED, outcomes=(settled(1, Rejected("X", "x")),)
        )

    assert (await refusal(say())).reason is Reason.INSTANCE_SUPERSEDED
    await plane.sessions.close(one)
    before = await plane.job()
    refused = await refusal(say())
    assert refused.reason is Reason.INSTANCE_UNDECIDED
    assert refused.retry_delay is not None
    assert refused.retry_delay < plane.limits.lost_after / 2
    assert await plane.job() == before
    # The forerunner comes back after all: then it is the one that trains.
    one = await plane.session(instance_id="one")
    assert (await refusal(say())).reason is Reason.INSTANCE_SUPERSEDED
    # Or it does not. What the other one's agent says meanwhile is no sign of its life.
    await plane.sessions.close(one)
    clock.advance(plane.limits.lost_after)
    assert (await refusal(say())).reason is Reason.INSTANCE_UNDECIDED
    clock.advance(1)
    await plane.sessions.find_lost(plane.limits.lost_after + 1)
    await say()
    assert await plane.states() == ["rejected"]
    assert (await plane.job()).state is JobState.FAILED


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
    talk.session.deliveries.begin()
    await plane.submit(set_rate())
    await eventually(lambda: 1 in talk.session.deliveries.sent, "that it serves")
    job = await plane.job()
    await plane.store.write(lambda tx: tx.delete_job(job))  # as another replica might
    plane.bus.notify("session/j")
    ended = await asyncio.wait_for(asyncio.shield(talk.session.ended), 5)
    assert ended.reason is Reason.JOB_DELETED
    assert (await refusal(talk.session.outcome(talk.next(), settled(1)))).reason is (
        Reason.JOB_DELETED
    )
    await plane.sessions.close(talk.session)


# What is sent.


async def test_new_updates_are_pushed_in_order_and_once(plane: UseCases) -> None:
    session = await plane.session()
    await welcome(session)
    session.deliveries.begin()
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
        session.deliveries.close()


async def test_what_is_accepted_while_the_store_is_away_is_sent_once_it_is_back(
    plane: UseCases,
) -> None:
    session = await plane.session()
    await welcome(session)
    await plane.submit(set_rate())
    plane.store.away = True
    session.deliveries.begin()
    await eventually(lambda: session.is_deaf, "it waits for the store")
    plane.bus.notify("session/j")
    plane.store.away = False
    await eventually(lambda: len(session.outbox), "a delivery")
    assert not session.is_deaf
    # Woken once more, it sends what is new alone.
    await plane.submit(set_rate())
    await eventually(lambda: len(session.outbox) == 2, "another")
    assert await delivered(session) == [1, 2]
    await plane.sessions.close(session)


async def test_nothing_is_sent_by_a_stream_that_has_ended(plane: UseCases) -> None:
    session = await plane.session()
    await welcome(session)
    session.deliveries.begin()
    await plane.sessions.close(session)
    await plane.submit(set_rate())
    assert await delivered(await plane.session()) == [1], "by the next one"
    assert await delivered(session) == []


async def test_an_update_that_is_withdrawn_before_it_was_sent_is_settled_here(
    plane: UseCases,
) -> None:
    session = await plane.session()
    await welcome(session)
    await plane.submit(set_rate())
    asked = await plane.updates.cancel("j", 1, "ann", "", 0.0)
    assert asked.is_open, "nobody knows yet whether it is on its way"
    session.deliveries.begin()
    try:
        done = await plane.updates.wait("j", 1, 5)
        assert done.outcome == Cancelled("ann", "")
        assert await said(session) == []
    finally:
        session.deliveries.close()


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


async def test_an_agent_that_dies_while_its_hello_is_stored_leaves_no_stream_open(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, may_go_on = asyncio.Event(), asyncio.Event()
    write = plane.store.write

    async def slowly(work: Callable[[Transaction], Any]) -> Any:
        result = await write(work)
        stored.set()
        await may_go_on.wait()
        return result

    monkeypatch.setattr(plane.store, "write", slowly)
    opening = asyncio.create_task(plane.session())
    await asyncio.wait_for(stored.wait(), 30)
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    monkeypatch.setattr(plane.store, "write", write)
    await plane.sessions.find_lost(0)
    assert plane.sessions.count == 0
    may_go_on.set()
    async with asyncio.timeout(30):
        while (session := (await plane.job()).session) is None or session.connected:
            await plane.sessions.find_lost(0)
    assert plane.sessions.count == 0
    # One that comes back is served, whatever has become of the other.
    await plane.session()
    await plane.sessions.find_lost(0)
    assert plane.sessions.connected(await plane.job())


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_hello_whose_agent_has_gone_meanwhile_does_not_fence_the_one_that_came_back(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch, has_begun: bool
) -> None:
    """It waited for a thread, or for its turn after a collision, and its stream has ended."""
    begun, may_go_on = asyncio.Event(), asyncio.Event()
    write = plane.store.write

    async def late(work: Callable[[Transaction], Any]) -> Any:
        monkeypatch.setattr(plane.store, "write", write)
        if has_begun:
            with pytest.raises(ZeroDivisionError):
                await write(lambda tx: (work(tx), 1 / 0))  # it has collided: nothing is stored
        begun.set()
        await may_go_on.wait()
        try:
            return await write(work)
        finally:
            over.set()

    over = asyncio.Event()
    monkeypatch.setattr(plane.store, "write", late)
    opening = asyncio.create_task(plane.session())
    await asyncio.wait_for(begun.wait(), 30)
    opening.cancel()
    await asyncio.wait([opening])
    served = await plane.session()
    may_go_on.set()
    await asyncio.wait_for(over.wait(), 30)
    await plane.sessions.find_lost(0)
    assert not served.ended.done()
    session = (await plane.job()).session
    assert session is not None
    assert (session.epoch, session.connected) == (served.epoch, True)
    assert plane.sessions.count == 1
    assert plane.sessions._opening == 0


async def test_every_end_of_a_stream_is_recorded_in_the_end(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that ends without the store while that of another one is recorded."""
    first, second = await plane.session("first"), await plane.session("second")
    plane.store.away = True
    await plane.sessions.close(first)
    plane.store.away = False
    close = AgentSession.close

    async def while_the_other_ends(session: AgentSession) -> None:
        monkeypatch.setattr(AgentSession, "close", close)
        plane.store.away = True
        await plane.sessions.close(second)
        plane.store.away = False
        await close(session)

    monkeypatch.setattr(AgentSession, "close", while_the_other_ends)
    await plane.sessions.find_lost(0)
    await plane.sessions.find_lost(0)
    for name in ("first", "second"):
        job = await plane.job(name)
        assert job.session is not None
        assert not job.session.connected, name


async def test_a_server_that_ends_leaves_no_stream_unrecorded(plane: UseCases) -> None:
    session = await plane.session()
    plane.store.away = True
    await plane.sessions.close(session)
    assert (await refusal(plane.sessions.leave())).reason is Reason.STORE_UNAVAILABLE
    plane.store.away = False
    await plane.sessions.leave()
    job = await plane.job()
    assert job.session is not None
    assert not job.session.connected


async def test_full_state_settles_nothing_that_is_sent_while_it_is_stored(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(await plane.session())
    for _ in range(2):
        await plane.submit(set_rate())
    write = plane.store.write

    async def once_it_was_sent(work: Callable[[Transaction], Any]) -> Any:
        monkeypatch.setattr(plane.store, "write", write)
        talk.session.deliveries.send([await plane.update(1)])
        for revision in (1, 2):
            await plane.updates.cancel("j", revision, "ann", "", 0)
        return await write(work)

    monkeypatch.setattr(plane.store, "write", once_it_was_sent)
    await talk.session.full_state(talk.next(), state())
    assert await plane.states() == ["pending", "pending"]
    assert only(await said(talk.session), Withdrawal) == [Withdrawal(1)], "2 was never sent"
    await talk.session.outcome(talk.next(), settled(1))
    # What the trainer can not have is settled by whoever would have sent it.
    talk.session.deliveries.begin()
    try:
        assert (await plane.updates.wait("j", 2, 30)).outcome == Cancelled("ann", "")
    finally:
        talk.session.deliveries.close()
    assert (await plane.update(1)).outcome == applied()


async def test_a_stream_that_has_ended_does_not_take_its_job_back(
    plane: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its last look failed just as it ended, or found the job without a stream."""
    session = await plane.session()
    looking: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asked = session._parts.deliveries
    monkeypatch.setattr(asked, "ask", lambda *_: looking)
    session.deliveries.begin()
    monkeypatch.undo()
    looking.set_exception(Refusal(Reason.STORE_UNAVAILABLE, "away"))
    await plane.sessions.close(session)
    assert session.deliveries._busy is looking, "it looks no more"
    before = await plane.job()
    assert before.session is not None
    assert not before.session.connected
    await session.deliveries._take_back()
    assert await plane.job() == before


async def test_what_a_session_held_is_free_once_it_has_ended(plane: UseCases) -> None:
    """Garbage is collected seldom where there are thousands of streams."""
    gc.collect()
    gc.disable()
    try:
        before = _sessions()
        talk = Talk(await plane.session())
        await plane.submit(set_rate())
        await talk.session.outcome(talk.next(), settled(1))
        await plane.sessions.close(talk.session)
        del talk
        await plane.submit(set_rate())  # a thread holds what it has done until there is more
        assert _sessions() == before
    finally:
        gc.enable()


def _sessions() -> int:
    return sum(isinstance(each, AgentSession) for each in gc.get_objects())
