"""Actions: accepted where they are offered, carried out once, followed by the job's state."""

from __future__ import annotations

from pathlib import Path

import pytest

from control_plane.domain.errors import Reason, Refusal
from control_plane.domain.job import JobState
from control_plane.domain.parameter import SetChange
from control_plane.domain.session import Phase, TrainerEvent
from control_plane.domain.update import (
    Action,
    ActionKind,
    Applied,
    Expired,
    UpdateSpec,
    UpdateState,
)
from control_plane.services.history import HistoryQuery
from control_plane.services.outbox import Delivery
from tests.support.domain_values import NOW, applied, hello, set_rate, settled
from tests.support.use_cases import (
    Clock,
    Talk,
    UseCases,
    delivered,
    heartbeat,
    only,
    said,
    use_cases,
)

ALL = tuple(ActionKind)
FINISHED = TrainerEvent(Phase.FINISHED, "over", NOW)


def do(kind: ActionKind, checkpoint: str = "", *changes: SetChange) -> UpdateSpec:
    return UpdateSpec(changes=changes, action=Action(kind, checkpoint))


def done(step: int = 21, instance_id: str = "one", **result: object) -> Applied:
    return Applied(step, (), NOW, instance_id, **result)  # type: ignore[arg-type]  # its fields


async def begin(plane: UseCases, instance_id: str = "one", **options: object) -> Talk:
    options.setdefault("actions", ALL)
    return Talk(await plane.session(instance_id=instance_id, **options))


async def perform(plane: UseCases, talk: Talk, spec: UpdateSpec, result: Applied) -> int:
    """Sends an update and has the trainer apply it."""
    revision = (await plane.submit(spec)).revision
    talk.session.deliveries.send([await plane.update(revision)])
    assert revision in await talk.receive_all()
    await talk.session.outcome(talk.next(), settled(revision, result))
    return revision


@pytest.mark.parametrize("kind", ALL)
async def test_what_an_action_led_to_is_on_record(tmp_path: Path, kind: ActionKind) -> None:
    result = done(checkpoint="/runs/checkpoint-20", metrics={"eval_loss": 1.5, "x": float("inf")})
    async with use_cases(tmp_path / "db") as plane:
        talk = await begin(plane)
        await perform(plane, talk, do(kind), result)
    async with use_cases(tmp_path / "db") as plane:
        update = await plane.update(1)
        assert (update.state, update.outcome) == (UpdateState.APPLIED, result)
        assert update.spec.action == Action(kind)


async def test_what_is_not_offered_is_refused(plane: UseCases) -> None:
    await begin(plane, actions=(ActionKind.PAUSE, ActionKind.STOP))
    with pytest.raises(Refusal, match="got roll_back, actions that this job offers: pause, stop"):
        await plane.submit(do(ActionKind.ROLL_BACK))
    assert (await plane.job()).revision == 0


async def test_a_job_that_offers_nothing_but_actions_takes_them(plane: UseCases) -> None:
    await begin(plane, parameters=())
    assert (await plane.submit(do(ActionKind.PAUSE))).revision == 1
    with pytest.raises(Refusal) as refused:
        await plane.submit(set_rate())
    assert refused.value.reason is Reason.PARAMETER_UNKNOWN


async def test_an_action_waits_for_a_trainer_that_is_away(plane: UseCases) -> None:
    await plane.sessions.close((await begin(plane)).session)
    assert (await plane.submit(do(ActionKind.PAUSE))).state is UpdateState.PENDING
    assert await delivered((await begin(plane)).session) == [1]


async def test_a_job_is_paused_and_goes_on(plane: UseCases, clock: Clock) -> None:
    talk = await begin(plane)
    await perform(plane, talk, do(ActionKind.PAUSE), done())
    await talk.session.heartbeat(talk.next(), heartbeat(20, Phase.PAUSED))
    assert (await plane.job()).state is JobState.PAUSED
    # It is lost when it falls silent, as every other, and paused still when it is heard of again.
    clock.advance(20.0)
    await plane.sessions.find_lost(100.0)
    assert (await plane.job()).state is JobState.LOST
    await talk.session.heartbeat(talk.next(), heartbeat(20, Phase.PAUSED))
    assert (await plane.job()).state is JobState.PAUSED
    # What is sent meanwhile takes effect at the step of the pause.
    await perform(plane, talk, set_rate(), applied(21, instance_id="one"))
    assert (await plane.job()).state is JobState.PAUSED
    await perform(plane, talk, do(ActionKind.RESUME), done())
    await talk.session.heartbeat(talk.next(), heartbeat(21))
    assert (await plane.job()).state is JobState.RUNNING


async def test_a_pause_survives_a_reconnection(plane: UseCases) -> None:
    talk = await begin(plane)
    await perform(plane, talk, do(ActionKind.PAUSE), done())
    await talk.session.heartbeat(talk.next(), heartbeat(20, Phase.PAUSED))
    await plane.sessions.close(talk.session)
    again = await begin(plane, phase=Phase.PAUSED, in_force=((1, 1),))
    assert await delivered(again.session) == []
    assert (await plane.job()).state is JobState.PAUSED


async def test_what_was_done_is_not_done_again_from_an_older_checkpoint(plane: UseCases) -> None:
    talk = await begin(plane)
    for kind in (ActionKind.PAUSE, ActionKind.SAVE_CHECKPOINT, ActionKind.EVALUATE):
        await perform(plane, talk, do(kind), done())
    both = do(ActionKind.PAUSE, "", SetChange("learning_rate", 1e-5))
    await perform(plane, talk, both, applied(22, instance_id="one"))
    await plane.submit(do(ActionKind.EVALUATE))
    await plane.sessions.close(talk.session)
    # Killed, and resumed from a checkpoint of before all that: what changed something is sent, in
    # the state that it has, by which its action is known to be done; and what is open.
    resumed = await begin(plane, "two", start_step=10)
    sent = [each.update for each in only(await said(resumed.session), Delivery)]
    assert [(u.revision, u.state) for u in sent] == [
        (4, UpdateState.APPLIED),
        (5, UpdateState.PENDING),
    ]
    assert sent[0].outcome == applied(22, instance_id="one")
    again = applied(11, instance_id="two")
    await resumed.session.outcome(resumed.next(), settled(4, again))
    assert (await plane.update(4)).reapplied == (again,)
    # And state that is asked for leads to no other answer.
    await resumed.session.full_state(resumed.next(), hello(actions=ALL, in_force=((4, 4),)).state)
    assert await delivered(resumed.session) == [5]


async def test_a_stopped_run_that_is_started_again_goes_on(plane: UseCases) -> None:
    talk = await begin(plane)
    await perform(plane, talk, set_rate(), applied(9, instance_id="one"))
    await plane.submit(set_rate(at_step=500))
    await perform(plane, talk, do(ActionKind.STOP), done(checkpoint="/runs/checkpoint-20"))
    await talk.session.event(talk.next(), FINISHED)
    await plane.sessions.close(talk.session)
    assert (await plane.job()).state is JobState.FINISHED
    expired = (await plane.update(2)).outcome
    assert isinstance(expired, Expired)
    # From the checkpoint that the stop saved, which has the change, or from an older one.
    saved = await begin(plane, "two", start_step=20, in_force=((1, 1),))
    assert await delivered(saved.session) == []
    assert (await plane.job()).state is JobState.RUNNING
    await plane.sessions.close(saved.session)
    assert await delivered((await begin(plane, "three", start_step=5)).session) == [1]


async def test_a_roll_back_is_settled_by_the_process_that_went_back(plane: UseCases) -> None:
    talk = await begin(plane)
    await perform(plane, talk, set_rate(1e-4), applied(15, 1e-4, instance_id="one"))
    rollback = do(ActionKind.ROLL_BACK, "/runs/checkpoint-10", SetChange("learning_rate", 1e-5))
    talk.session.deliveries.send([await plane.submit(rollback)])
    assert await talk.receive_all() == [2]
    exited = TrainerEvent(Phase.EXITED, "exit code 75", NOW)
    await talk.session.event(talk.next(), exited)
    await plane.sessions.close(talk.session)
    assert (await plane.update(2)).state is UpdateState.DELIVERED
    # The new process has it in its lineage; until its step is done, its outcome is to come.
    back = await begin(plane, "two", start_step=10, in_force=((2, 2),), held=frozenset({2}))
    assert await delivered(back.session) == []
    assert (await plane.update(2)).is_open
    outcome = applied(11, instance_id="two")
    await back.session.outcome(back.next(), settled(2, outcome))
    assert (await plane.update(2)).outcome == outcome
    # Killed and resumed from before it once more: its changes are wanted, the rest is done; what it
    # took away is not.
    await plane.sessions.close(back.session)
    once_more = await begin(plane, "three", start_step=5)
    sent = [each.update for each in only(await said(once_more.session), Delivery)]
    assert [(u.revision, u.state) for u in sent] == [(2, UpdateState.APPLIED)]


async def test_a_roll_back_may_come_with_its_outcome(plane: UseCases) -> None:
    talk = await begin(plane)
    talk.session.deliveries.send([await plane.submit(do(ActionKind.ROLL_BACK))])
    await talk.receive_all()
    await plane.sessions.close(talk.session)
    outcome = done(11, "two", checkpoint="/runs/checkpoint-10")
    back = await begin(
        plane, "two", start_step=10, in_force=((1, 1),), outcomes=(settled(1, outcome),)
    )
    assert await delivered(back.session) == []
    update = await plane.update(1)
    assert (update.outcome, update.reapplied) == (outcome, ())


async def test_the_lineage_of_a_history(plane: UseCases) -> None:
    await plane.sessions.close((await begin(plane, "one")).session)
    await plane.sessions.close((await begin(plane, "two", start_step=40)).session)
    await begin(plane, "three", start_step=40)
    page = await plane.updates.list("j", HistoryQuery(newest_first=True), beyond=None, limit=1)
    assert [(s.instance_id, s.first_step, s.last_step) for s in page.lineage] == [
        ("one", 0, 40),
        ("three", 41, None),
    ]
