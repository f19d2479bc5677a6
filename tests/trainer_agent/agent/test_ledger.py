"""What the agent knows and owes; deliveries; items kept until acknowledged."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2
from midcourse.link.v1 import link_pb2
from tests.support.scripted_agent_service import learning_rate_update
from tests.support.scripted_trainer import applied
from trainer_agent.agent.deliveries import Deliveries
from trainer_agent.agent.ledger import AgentIdentity, Ledger
from trainer_agent.agent.session import Session
from trainer_agent.agent.unacknowledged import Unacknowledged

IDENTITY = AgentIdentity(agent_id="a", version="1", host="h")


def hello(**state: Any) -> link_pb2.TrainerHello:
    spec = parameter_pb2.ParameterSpec(
        name="learning_rate", current_value=parameter_pb2.Value(number=1e-3)
    )
    return link_pb2.TrainerHello(
        job_id="job",
        instance_id="i",
        pid=7,
        start_step=4,
        state=session_pb2.FullState(parameters=[spec], **state),
    )


def step(number: int, *, readings: float | None = None, **metrics: float) -> link_pb2.StepReport:
    report = link_pb2.StepReport(step=number, time_nanos=number * 10**9)
    report.names.extend(metrics)
    report.values.extend(metrics.values())
    if readings is not None:
        reading = update_pb2.ParameterReading(
            parameter="learning_rate", value=parameter_pb2.Value(number=readings)
        )
        report.readings.append(reading)
    return report


# A type checker takes an attribute that was once asserted for the same ever after.
def owes_nothing(ledger: Ledger) -> bool:
    return ledger.owes_nothing


def urgent(ledger: Ledger) -> bool:
    return ledger.urgent


def may_stall(ledger: Ledger) -> bool:
    return ledger.may_stall


def reopened(ledger: Ledger) -> session_pb2.FullState:
    return ledger.begin_stream(IDENTITY).state


def test_the_hello_tells_who_and_where_it_stands() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.step(step(9, loss=1.0), 1.0)
    ledger.outcome(applied(3, 8))
    said = ledger.begin_stream(IDENTITY)
    assert (said.protocol_version, said.job_id, said.instance_id) == (1, "job", "i")
    assert (said.agent_id, said.host, said.trainer_pid, said.start_step) == ("a", "h", 7, 4)
    assert (said.last_epoch, said.last_acknowledged_sequence) == (0, 0)
    assert said.state.progress.step == 9
    assert [(r.first, r.last) for r in said.state.in_force] == [(3, 3)]
    assert [outcome.revision for outcome in said.state.outcomes] == [3]
    assert said.state.parameters[0].current_value.number == 1e-4  # as the outcome read it


def test_a_later_hello_tells_what_was_acknowledged_before() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    ledger.welcome(session_pb2.Welcome(epoch=5))
    ledger.acknowledged(17)
    said = ledger.begin_stream(IDENTITY)
    assert (said.last_epoch, said.last_acknowledged_sequence) == (5, 17)


def test_the_hello_tells_the_highest_revision_that_was_ever_settled() -> None:
    ledger = Ledger(hello(newest_revision=3), 0.0)
    assert ledger.begin_stream(IDENTITY).state.newest_revision == 3
    rejected = session_pb2.UpdateOutcome(revision=5, rejected=update_pb2.Rejected(reason="NO"))
    ledger.outcome(rejected)
    ledger.full_state(sequence=2)
    ledger.acknowledged(2)
    state = ledger.begin_stream(IDENTITY).state
    assert not state.outcomes
    assert not state.in_force
    assert state.newest_revision == 5


def test_an_outcome_goes_out_once_a_stream_until_it_is_acknowledged() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    ledger.outcome(applied(1, 5))
    assert urgent(ledger)
    sent = ledger.next_outcome(2)
    assert sent is not None
    assert sent.revision == 1
    assert ledger.next_outcome(3) is None
    assert ledger.acknowledged(1) == []
    assert not owes_nothing(ledger)
    assert [each.revision for each in reopened(ledger).outcomes] == [1]
    assert ledger.next_outcome(2) is None  # the hello carried it
    assert ledger.acknowledged(1) == [1]
    assert owes_nothing(ledger)
    assert list(reopened(ledger).outcomes) == []


def test_what_the_welcome_calls_settled_is_not_owed() -> None:
    ledger = Ledger(hello(outcomes=[applied(1, 5), applied(2, 6)]), 0.0)
    ledger.begin_stream(IDENTITY)
    settled = [session_pb2.RevisionRange(first=2, last=9)]
    assert ledger.welcome(session_pb2.Welcome(epoch=1, settled=settled)) == [2]
    assert [each.revision for each in reopened(ledger).outcomes] == [1]


def test_an_outcome_that_is_on_disk_is_said_to_be_so_when_the_trainer_repeats_it() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    assert ledger.outcome(applied(1, 5)) == []
    ledger.next_outcome(2)
    assert ledger.outcome(applied(1, 5)) == []  # repeated too early: still on its way
    assert ledger.next_outcome(3) is None
    ledger.acknowledged(2)
    assert ledger.outcome(applied(1, 5)) == [1]
    assert ledger.trainer_returned(hello(outcomes=[applied(1, 5)]), 2.0) == [1]
    assert owes_nothing(ledger)
    # After going back to a checkpoint it was applied anew: that is news.
    assert ledger.outcome(applied(1, 9)) == []
    again = ledger.next_outcome(3)
    assert again is not None
    assert again.applied.step == 9


def test_non_finite_metrics_are_urgent_once() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.step(step(1, loss=1.0), 0.0)
    assert not urgent(ledger)
    ledger.step(step(2, loss=float("nan")), 0.0)
    assert urgent(ledger)
    ledger.heartbeat(2, 0.0)
    ledger.step(step(3, loss=float("inf")), 0.0)
    assert not urgent(ledger)
    ledger.step(step(4, loss=1.0), 0.0)
    ledger.step(step(5, loss=float("-inf")), 0.0)
    assert urgent(ledger)


def test_a_heartbeat_folds_steps_and_is_sent_again_until_acknowledged() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    ledger.welcome(session_pb2.Welcome(max_samples=4))
    for number in range(1, 7):
        ledger.step(step(number, loss=float(number), readings=1.0 / number), float(number))
    first = ledger.heartbeat(2, 6.0)
    assert list(first.metrics[0].steps) == [1, 2, 3, 4]
    assert first.progress.step == 6
    assert first.progress.steps_per_second == pytest.approx(1.0)
    assert [reading.value.number for reading in first.readings] == [1.0 / 6]
    assert list(ledger.heartbeat(3, 6.0).metrics[0].steps) == [5, 6]
    ledger.acknowledged(2)
    ledger.begin_stream(IDENTITY)
    again = ledger.heartbeat(2, 6.0)
    assert list(again.metrics[0].steps) == [5, 6]
    assert not again.readings  # they were acknowledged with the first


def test_a_heartbeat_keeps_to_the_servers_message_size() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    ledger.welcome(session_pb2.Welcome(max_samples=1_000_000, max_message_bytes=64 * 1024))
    for number in range(5000):
        ledger.step(step(number, some_metric_name=float(number)), 0.0)
    assert ledger.heartbeat(2, 0.0).ByteSize() <= 64 * 1024
    assert ledger.has_samples


def test_reports_that_a_newer_state_overtook_bring_metrics_and_nothing_else() -> None:
    ledger = Ledger(hello(progress=job_pb2.Progress(step=100)), 0.0)
    ledger.step(step(40, loss=1.0, readings=0.5), 1.0)
    ledger.begin_stream(IDENTITY)
    beat = ledger.heartbeat(2, 1.0)
    assert beat.progress.step == 100
    assert list(beat.metrics[0].steps) == [40]
    assert not beat.readings


def test_metrics_of_another_step_keep_theirs() -> None:
    ledger = Ledger(hello(), 0.0)
    report = step(10, loss=1.0)
    report.metrics_step = 9
    ledger.step(report, 0.0)
    assert list(ledger.heartbeat(2, 0.0).metrics[0].steps) == [9]


def test_a_stall_and_the_recovery_from_it_are_told() -> None:
    ledger = Ledger(hello(phase=session_pb2.TRAINER_PHASE_TRAINING), 0.0)
    assert may_stall(ledger)
    ledger.stalled(31.5, 10**9)
    assert not may_stall(ledger)
    event = ledger.next_event(2)
    assert event is not None
    assert event.stalled.idle.ToTimedelta().total_seconds() == 31.5
    assert ledger.heartbeat(3, 40.0).phase == session_pb2.TRAINER_PHASE_STALLED
    ledger.step(step(1), 41.0)
    event = ledger.next_event(4)
    assert event is not None
    assert event.recovered.step == 1
    assert ledger.heartbeat(5, 41.0).phase == session_pb2.TRAINER_PHASE_TRAINING


@pytest.mark.parametrize(
    "phase", [session_pb2.TRAINER_PHASE_PAUSED, session_pb2.TRAINER_PHASE_FINISHED]
)
def test_a_trainer_at_rest_does_not_stall(phase: session_pb2.TrainerPhase.ValueType) -> None:
    assert not Ledger(hello(phase=phase), 0.0).may_stall


PAUSED = session_pb2.TRAINER_PHASE_PAUSED
TRAINING = session_pb2.TRAINER_PHASE_TRAINING


def phase_of(ledger: Ledger) -> session_pb2.TrainerPhase.ValueType:
    return ledger.phase


def state(phase: session_pb2.TrainerPhase.ValueType, at_step: int) -> session_pb2.FullState:
    made = session_pb2.FullState(phase=phase)
    made.progress.step = at_step
    return made


def test_a_pause_lasts_until_a_step_or_a_word_ends_it() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.step(step(9), 9.0)
    ledger.state(state(PAUSED, 9), 9.5)
    ledger.step(step(9, eval_loss=1.0), 10.0)
    ledger.step(step(8), 10.0)  # waited on its way
    assert phase_of(ledger) == PAUSED
    assert not may_stall(ledger)
    ledger.step(step(10), 20.0)
    assert phase_of(ledger) == TRAINING
    assert may_stall(ledger)
    ledger.trainer_returned(hello(phase=PAUSED), 30.0)
    assert phase_of(ledger) == PAUSED
    ledger.state(state(TRAINING, 10), 31.0)
    assert phase_of(ledger) == TRAINING


def test_a_pause_puts_an_end_to_a_stall() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.stalled(31.5, 10**9)
    ledger.state(state(PAUSED, 9), 40.0)
    assert ledger.next_event(2) is None
    assert ledger.heartbeat(2, 41.0).phase == PAUSED
    ledger.step(step(10), 50.0)
    assert ledger.next_event(3) is None  # from a pause there is nothing to recover


def test_a_pause_is_no_part_of_the_pace() -> None:
    ledger = Ledger(hello(), 0.0)
    for number in range(1, 5):
        ledger.step(step(number), float(number))
    ledger.state(state(PAUSED, 4), 4.0)
    assert not ledger.heartbeat(2, 5.0).progress.HasField("steps_per_second")
    ledger.state(state(PAUSED, 4), 1_000.0)  # an update applied meanwhile
    ledger.state(state(TRAINING, 4), 5_000.0)
    assert ledger.pace.stalls_at() == 5_030.0
    ledger.step(step(5), 5_001.0)
    assert ledger.heartbeat(3, 5_001.0).progress.steps_per_second == pytest.approx(1.0)


def local(request_id: str) -> session_pb2.LocalUpdate:
    made = session_pb2.LocalUpdate(request_id=request_id)
    made.spec.action.pause.SetInParent()
    return made


def unrevisioned(ledger: Ledger) -> list[str]:
    return [each.request_id for each in reopened(ledger).local_updates]


def with_revision(request_id: str) -> update_pb2.Update:
    return update_pb2.Update(revision=7, request_id=request_id)


def test_a_local_update_is_kept_until_it_has_a_revision() -> None:
    ledger = Ledger(hello(local_updates=[local("a")]), 0.0)
    assert unrevisioned(ledger) == ["a"]
    ledger.local_update(local("b"))
    ledger.local_update(local("b"))
    ledger.state(session_pb2.FullState(local_updates=[local("a"), local("b")]), 1.0)
    sent = ledger.next_local_update(2)
    assert sent is not None
    assert sent.request_id == "b"
    assert ledger.next_local_update(3) is None
    assert not owes_nothing(ledger)
    ledger.acknowledged(2)
    assert owes_nothing(ledger)  # they are on disk there
    assert unrevisioned(ledger) == ["a", "b"]
    ledger.delivered(with_revision("a"))
    ledger.delivered(with_revision("unheard-of"))
    # Said again, as the trainer has not seen the revision yet.
    ledger.trainer_returned(hello(local_updates=[local("a"), local("b")]), 2.0)
    assert unrevisioned(ledger) == ["b"]


def test_a_local_update_that_comes_too_fast_is_sent_again_with_the_next_heartbeat() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    ledger.local_update(local("a"))
    assert ledger.next_local_update(2) is not None
    ledger.refused(2, for_now=True)
    ledger.acknowledged(2)
    assert not owes_nothing(ledger)
    assert ledger.next_local_update(3) is None
    ledger.heartbeat(3, 1.0)
    again = ledger.next_local_update(4)
    assert again is not None
    assert again.request_id == "a"
    ledger.acknowledged(4)
    assert owes_nothing(ledger)


def test_a_local_update_that_is_refused_for_good_is_given_up_and_counted() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    ledger.local_update(local("a"))
    ledger.full_state(2)  # carries it, and whatever is wrong with that is not its fault
    ledger.refused(2, for_now=False)
    assert unrevisioned(ledger) == ["a"]
    ledger.begin_stream(IDENTITY)
    ledger.local_update(local("b"))
    assert ledger.next_local_update(2) is not None
    ledger.refused(2, for_now=False)
    ledger.local_update(local("b"))
    assert unrevisioned(ledger) == ["a"]
    assert ledger.owed()["local_updates"] == 2


def test_local_updates_are_bounded() -> None:
    ledger = Ledger(hello(), 0.0)
    for number in range(10_000):
        ledger.local_update(local(f"{number}"))
    assert len(unrevisioned(ledger)) == 100


def test_a_finished_training_stays_finished_when_its_process_ends() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.finished(session_pb2.TrainingFinished(step=9), 1)
    ledger.exited(job_pb2.TrainerExit(exit_code=0), 2)
    assert ledger.phase == session_pb2.TRAINER_PHASE_FINISHED
    kinds = [event.WhichOneof("kind") for number in (2, 3) if (event := ledger.next_event(number))]
    assert kinds == ["finished", "exited"]
    assert not owes_nothing(ledger)
    ledger.acknowledged(3)
    assert owes_nothing(ledger)


def test_an_unfinished_training_whose_process_ends_has_exited() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.exited(job_pb2.TrainerExit(signal=9), 2)
    assert ledger.phase == session_pb2.TRAINER_PHASE_EXITED
    assert not ledger.heartbeat(2, 0.0).progress.HasField("steps_per_second")


def test_what_can_be_changed_is_told_anew_where_it_is_otherwise_than_before() -> None:
    ledger = Ledger(hello(), 0.0)
    session: Any = Session(
        ledger=ledger, deliveries=Deliveries(), identity=IDENTITY, events=cast("Any", None)
    )
    ledger.begin_stream(IDENTITY)

    def states() -> list[session_pb2.FullState]:
        said = iter(session._next_request, None)
        return [each.state for each in said if each.HasField("state")]

    paused = hello(phase=session_pb2.TRAINER_PHASE_PAUSED).state
    paused.parameters[0].current_value.number = 0.5
    ledger.state(paused, 1.0)
    assert states() == [], "the heartbeat tells of it"
    off = hello().state
    off.parameters[0].unavailable_reason = "steering is switched off"
    ledger.state(off, 2.0)
    (told,) = states()
    assert told.parameters == off.parameters
    ledger.state(off, 3.0)
    assert states() == []
    acting = hello(actions=[update_pb2.ACTION_KIND_STOP])
    ledger.trainer_returned(acting, 4.0)
    assert [each.actions for each in states()] == [acting.state.actions]
    ledger.state(off, 5.0)
    assert reopened(ledger).parameters == off.parameters
    assert states() == [], "the hello has told it"


def test_a_withdrawal_of_a_settled_update_is_answered_with_its_outcome() -> None:
    ledger = Ledger(hello(), 0.0)
    ledger.begin_stream(IDENTITY)
    ledger.outcome(applied(1, 5))
    ledger.next_outcome(2)
    ledger.acknowledged(2)
    assert ledger.answer_again(1)
    assert ledger.next_outcome(3) == applied(1, 5)
    assert not ledger.answer_again(2)


# ------------------------------------------------------------------------------------ deliveries


def delivery(revision: int, nonce: int) -> session_pb2.Delivery:
    return session_pb2.Delivery(nonce=nonce, update=learning_rate_update(revision))


def in_short(
    passed: tuple[list[link_pb2.AgentMessage], list[session_pb2.DeliveryReply]],
) -> tuple[list[int], list[int]]:
    messages, replies = passed
    revisions = [
        m.delivery.update.revision if m.HasField("delivery") else -m.withdrawal.revision
        for m in messages
    ]
    return revisions, [reply.nonce for reply in replies]


def test_each_nonce_is_answered_once_and_the_trainer_gets_each_update_once() -> None:
    deliveries = Deliveries()
    assert deliveries.deliver(delivery(1, 11), 0)
    assert deliveries.deliver(delivery(2, 12), 0)
    assert in_short(deliveries.pass_on()) == ([1, 2], [11, 12])
    assert in_short(deliveries.pass_on()) == ([], [])
    assert deliveries.deliver(delivery(1, 13), 0)
    assert in_short(deliveries.pass_on()) == ([], [13])


def test_a_trainer_that_connects_anew_gets_all_that_is_open_again_in_order() -> None:
    deliveries = Deliveries()
    for revision in (2, 3, 1):
        deliveries.deliver(delivery(revision, 10 + revision), 0)
    deliveries.pass_on()
    assert deliveries.settled(2) == []
    deliveries.withdraw(3)
    deliveries.pass_on()
    deliveries.begin_connection()
    assert in_short(deliveries.pass_on()) == ([1, 3, -3], [])


def test_nonces_die_with_their_stream() -> None:
    deliveries = Deliveries()
    deliveries.deliver(delivery(1, 11), 0)
    deliveries.begin_stream()
    deliveries.deliver(delivery(1, 1), 0)
    assert in_short(deliveries.pass_on()) == ([1], [1])


def test_an_update_that_is_settled_before_it_was_passed_on_leaves_its_nonces() -> None:
    deliveries = Deliveries()
    deliveries.deliver(delivery(1, 11), 0)
    deliveries.deliver(delivery(1, 12), 0)
    assert deliveries.settled(1) == [11, 12]
    assert in_short(deliveries.pass_on()) == ([], [])


def test_time_left_becomes_a_moment_of_the_monotonic_clock() -> None:
    deliveries = Deliveries()
    limited = delivery(1, 1)
    limited.time_left.FromSeconds(3)
    deliveries.deliver(limited, 10**9)
    deliveries.deliver(delivery(2, 2), 10**9)
    messages, _ = deliveries.pass_on()
    assert messages[0].delivery.deadline_monotonic_nanos == 4 * 10**9
    assert not messages[1].delivery.HasField("deadline_monotonic_nanos")


def test_a_delivery_that_names_no_update_is_not_taken() -> None:
    assert not Deliveries().deliver(session_pb2.Delivery(nonce=1), 0)
    assert not Deliveries().deliver(delivery(0, 1), 0)
    without_spec = session_pb2.Delivery(nonce=1, update=update_pb2.Update(revision=1))
    assert not Deliveries().deliver(without_spec, 0)


# -------------------------------------------------------------------------------- unacknowledged


@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["owe", "send", "acknowledge", "reopen"]), st.integers(0, 6)),
        max_size=60,
    )
)
def test_an_item_is_owed_until_a_message_that_carried_it_is_acknowledged(
    actions: list[tuple[str, int]],
) -> None:
    kept: Unacknowledged[int, str] = Unacknowledged()
    owed: dict[int, int] = {}  # key: number of the message that carried it, 0: none
    sequence = 0
    for action, number in actions:
        if action == "owe":
            kept.owe(number, f"item {number}")
            owed.pop(number, None)
            owed[number] = 0
        elif action == "send":
            entry = kept.next_unsent()
            waiting = [key for key, sent in owed.items() if not sent]
            assert (entry[0] if entry else None) == (waiting[0] if waiting else None)
            if entry:
                sequence += 1
                kept.sent(entry[0], sequence)
                owed[entry[0]] = sequence
        elif action == "acknowledge":
            gone = [key for key, sent in owed.items() if 0 < sent <= number]
            assert kept.acknowledged(number) == gone
            for key in gone:
                del owed[key]
        else:
            kept.begin_stream()
            owed = dict.fromkeys(owed, 0)
            sequence = 0
        assert kept.items() == [f"item {key}" for key in owed]
