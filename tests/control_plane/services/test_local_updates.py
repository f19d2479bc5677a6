"""What a training process changes by itself: it gets a revision, whatever the rules say."""

from __future__ import annotations

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.parameter import MultiplyChange, SetChange
from control_plane.domain.session import Phase, TrainerEvent
from control_plane.domain.update import (
    GUARD,
    MAX_REASON,
    Action,
    ActionKind,
    Applied,
    Expired,
    LocalUpdate,
    UpdateSpec,
    UpdateState,
)
from control_plane.services.agent_session import LOCAL_UPDATES_AT_ONCE
from control_plane.services.outbox import Acknowledgement, Delivery, ItemError
from control_plane.services.updates import Submission
from tests.support.domain_values import NOW, SECOND, applied, hello, set_rate, settled
from tests.support.use_cases import Clock, Talk, UseCases, delivered, only, said

CUT = UpdateSpec(
    changes=(MultiplyChange("learning_rate", 1e-3),),
    action=Action(ActionKind.PAUSE),
    reason="loss is not finite at step 20",
)


def cut(request_id: str = "guard-1", spec: UpdateSpec = CUT) -> LocalUpdate:
    return LocalUpdate(request_id, spec)


async def test_it_gets_a_revision_is_delivered_and_settled(plane: UseCases) -> None:
    """Though it offers no action and the factor is beyond the guard rail."""
    talk = Talk(await plane.session())
    await plane.submit(set_rate())
    await talk.session.local_update(talk.next(), cut())
    (sent,) = only(await said(talk.session), Delivery)
    assert (sent.update.revision, sent.update.author, sent.update.request_id) == (
        2,
        GUARD,
        "guard-1",
    )
    assert sent.update.spec == CUT
    assert sent.update == await plane.update(2)
    outcome = applied(21, 2e-8)
    await talk.session.outcome(talk.next(), settled(2, outcome))
    assert (await plane.update(2)).outcome == outcome
    job = await plane.job()
    assert [d.revision for d in job.desired] == [2]
    assert [(e.value, e.revision) for e in job.effective if e.revision] == [(2e-8, 2)]


async def test_said_again_it_is_the_same(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    for _ in range(3):
        await talk.session.local_update(talk.next(), cut())
    assert await delivered(talk.session) == [1]
    await plane.sessions.close(talk.session)
    # The delivery was lost: the next hello tells of it again, and is answered.
    again = Talk(await plane.session(local_updates=(cut(), cut("guard-2"))))
    assert await again.receive_all() == [1, 2]
    await again.session.full_state(again.next(), hello(local_updates=(cut(),)).state)
    await plane.sessions.close(again.session)
    assert await plane.states() == ["delivered", "delivered"]
    # Also where it has been settled meanwhile: the agent keeps it until it has its revision.
    settled_now = Talk(
        await plane.session(local_updates=(cut(),), outcomes=(settled(1),), held=frozenset({2}))
    )
    assert await delivered(settled_now.session) == [1]
    assert await plane.states() == ["applied", "delivered"]


async def test_nothing_that_could_refuse_it_does(plane: UseCases) -> None:
    """Neither limits of time nor unknown names nor a long reason: it has happened."""
    talk = Talk(await plane.session())
    spec = UpdateSpec(
        changes=(SetChange("unheard_of", 1.0), SetChange("learning_rate", 5.0)),
        at_step=3,
        max_step=2,
        deadline=NOW - SECOND,
        reason="x" * 5_000,
    )
    await talk.session.local_update(talk.next(), cut(spec=spec))
    update = await plane.update(1)
    assert update.spec.changes == spec.changes
    assert (update.spec.deadline, update.spec.max_step) == (None, None)
    assert update.spec.reason == "x" * MAX_REASON


@pytest.mark.parametrize(
    "local", [cut(""), cut("has blanks"), cut("x" * 129), cut(spec=UpdateSpec())]
)
async def test_what_can_not_be_told_is_refused_alone(plane: UseCases, local: LocalUpdate) -> None:
    talk = Talk(await plane.session())
    with pytest.raises(Refusal) as refused:
        await talk.session.local_update(talk.next(), local)
    assert refused.value.reason is Reason.INVALID_ARGUMENT
    await plane.sessions.close(talk.session)
    # In a hello it is passed by, as its job must be served all the same.
    again = await plane.session(local_updates=(local, cut("guard-2")))
    assert await delivered(again) == [1]
    assert (await plane.update(1)).request_id == "guard-2"


async def test_the_id_of_a_callers_request_is_not_taken_over(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await plane.submit(set_rate(), request_id="r")
    with pytest.raises(Refusal) as refused:
        await talk.session.local_update(talk.next(), cut("r"))
    assert refused.value.reason is Reason.REQUEST_ID_REUSED
    assert (await plane.update(1)).author == "ops"


async def test_no_caller_goes_by_the_name_of_the_guard(plane: UseCases) -> None:
    await plane.session()
    with pytest.raises(Refusal) as refused:
        await plane.updates.submit(Submission("j", set_rate(), GUARD))
    assert refused.value.reason is Reason.NOT_ALLOWED
    assert (await plane.job()).revision == 0


async def test_what_has_happened_can_not_be_cancelled(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await talk.session.local_update(talk.next(), cut())
    with pytest.raises(Refusal) as refused:
        await plane.updates.cancel("j", 1, "ops", "", 0.0)
    assert refused.value.reason is Reason.NOT_ALLOWED
    assert (await plane.update(1)).is_open


async def test_a_guard_gone_wild_is_slowed_down(plane: UseCases, clock: Clock) -> None:
    talk = Talk(await plane.session())
    for number in range(LOCAL_UPDATES_AT_ONCE + 5):
        await talk.session.local_update(talk.next(), cut(f"guard-{number}"))
    messages = await said(talk.session)
    assert len(only(messages, Delivery)) == LOCAL_UPDATES_AT_ONCE
    errors = only(messages, ItemError)
    assert [each.reason for each in errors] == [Reason.TOO_MANY_PENDING] * 5
    assert only(messages, Acknowledgement)[-1].sequence == talk.number
    clock.advance(2.0)
    for number in range(LOCAL_UPDATES_AT_ONCE, LOCAL_UPDATES_AT_ONCE + 5):
        await talk.session.local_update(talk.next(), cut(f"guard-{number}"))
    assert len(only(await said(talk.session), Delivery)) == 2


async def test_the_end_of_training_does_not_deny_that_it_happened(plane: UseCases) -> None:
    talk = Talk(await plane.session())
    await talk.session.local_update(talk.next(), cut())
    await talk.session.event(talk.next(), TrainerEvent(Phase.FINISHED, "over", NOW))
    outcome = (await plane.update(1)).outcome
    assert isinstance(outcome, Expired)
    assert "made this change by itself" in outcome.message


async def test_a_restart_before_the_outcome_sends_it_as_any_other(plane: UseCases) -> None:
    talk = Talk(await plane.session(instance_id="one"))
    await talk.session.local_update(talk.next(), cut())
    await plane.sessions.close(talk.session)
    resumed = Talk(await plane.session(instance_id="two", start_step=10))
    (sent,) = only(await said(resumed.session), Delivery)
    assert (sent.update.revision, sent.update.state) == (1, UpdateState.PENDING)
    await resumed.session.outcome(resumed.next(), settled(1, Applied(11, (), NOW, "two")))
    assert (await plane.update(1)).state is UpdateState.APPLIED
