"""What a Hello settles and what it lacks: outcomes that were told late, and what is sent again."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.domain.errors import Reason
from control_plane.domain.job import JobState
from control_plane.domain.session import Phase, TrainerEvent, Withdrawn
from control_plane.domain.update import Applied, Cancelled, Expired, ExpiryCause, Rejected
from control_plane.services.outbox import (
    Delivery,
    Withdrawal,
)
from tests.support.domain_values import NOW, SECOND, applied, set_rate, settled
from tests.support.use_cases import (
    Clock,
    Talk,
    UseCases,
    delivered,
    only,
    refusal,
    said,
    welcome,
)


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
