"""After a roll back nothing of what it took away comes again, and all who ask are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control_plane.domain.parameter import SetChange
from control_plane.domain.session import FullState, TrainerOutcome
from control_plane.domain.update import (
    Action,
    ActionKind,
    Applied,
    LocalUpdate,
    Rejected,
    Transition,
    UpdateSpec,
    UpdateState,
)
from control_plane.services.history import HistoryQuery
from control_plane.services.outbox import Delivery
from tests.support.domain_values import BATCH_SIZE, LEARNING_RATE, NOW, applied, set_rate, settled
from tests.support.use_cases import Talk, UseCases, delivered, only, said, use_cases

CUT = SetChange("learning_rate", 1e-6)
RATE, BATCH = LEARNING_RATE.name, BATCH_SIZE.name


def back(*changes: SetChange) -> UpdateSpec:
    return UpdateSpec(changes=changes, action=Action(ActionKind.ROLL_BACK, "/c/checkpoint-40"))


def done(step: int, instance_id: str, parameter: str = RATE) -> Applied:
    return Applied(step, (Transition(parameter, "", None, None),), NOW, instance_id)


async def begin(plane: UseCases, instance_id: str, step: int = 0, **state: Any) -> Talk:
    """A process begins; an earlier one is gone."""
    state.setdefault("actions", tuple(ActionKind))
    return Talk(await plane.session(instance_id=instance_id, start_step=step, **state))


async def apply(plane: UseCases, talk: Talk, step: int, *changes: SetChange) -> int:
    """Sends an update and has the trainer apply it."""
    spec = UpdateSpec(changes=changes) if changes else set_rate(1e-4)
    revision = (await plane.submit(spec)).revision
    talk.session.deliveries.send([await plane.update(revision)])
    assert revision in await talk.receive_all()
    outcome = done(step, talk.session.instance_id, spec.changes[0].parameter)
    await talk.session.outcome(talk.next(), settled(revision, outcome))
    return revision


async def leave(plane: UseCases, talk: Talk, *changes: SetChange) -> int:
    """Asks for a roll back; the process ends."""
    revision = (await plane.submit(back(*changes))).revision
    talk.session.deliveries.send([await plane.update(revision)])
    assert revision in await talk.receive_all()
    await plane.sessions.close(talk.session)
    return revision


async def taken_away(plane: UseCases) -> dict[int, int]:
    """What was rolled back, and by which revision, as a history tells it."""
    page = await plane.updates.list("j", HistoryQuery(newest_first=False), beyond=None, limit=1_000)
    assert all(u.state is UpdateState.APPLIED for u in page.updates if u.rolled_back_by)
    return {u.revision: u.rolled_back_by for u in page.updates if u.rolled_back_by}


async def desired(plane: UseCases) -> dict[str, int]:
    return {d.change.parameter: d.revision for d in (await plane.job()).desired}


async def effective(plane: UseCases) -> dict[str, tuple[int, int]]:
    return {e.parameter: (e.revision, e.step) for e in (await plane.job()).effective}


async def test_what_made_the_loss_spike_is_not_applied_again(tmp_path: Path) -> None:
    async with use_cases(tmp_path / "db") as plane:
        talk = await begin(plane, "one")
        await apply(plane, talk, 11)
        await apply(plane, talk, 41, SetChange(BATCH, 8))  # at the boundary of the checkpoint
        await apply(plane, talk, 50)
        await apply(plane, talk, 51, SetChange(BATCH, 16))
        assert await leave(plane, talk) == 5
        assert await taken_away(plane) == {}
        talk = await begin(plane, "two", 40, in_force=((1, 2), (5, 5)))
        assert await delivered(talk.session) == []
        assert await taken_away(plane) == {3: 5, 4: 5}
        assert await desired(plane) == {RATE: 1, BATCH: 2}
        assert await effective(plane) == {RATE: (1, 11), BATCH: (2, 41)}
        await talk.session.outcome(talk.next(), settled(5, done(41, "two")))
        assert await plane.states() == ["applied"] * 5
        # It crashes at once. The checkpoint does not know of the roll back.
        await plane.sessions.close(talk.session)
        talk = await begin(plane, "three", 40, in_force=((1, 2),))
        assert await delivered(talk.session) == []
        await plane.sessions.close(talk.session)
    # Nor in a control plane that is started anew; what crashed from before it comes again.
    async with use_cases(tmp_path / "db") as plane:
        talk = await begin(plane, "four", 5)
        assert await delivered(talk.session) == [1, 2]
        assert await taken_away(plane) == {3: 5, 4: 5}


async def test_what_comes_with_a_roll_back_and_after_it_stays(plane: UseCases) -> None:
    talk = await begin(plane, "one")
    await apply(plane, talk, 50)
    later = (await plane.submit(set_rate(3e-5, at_step=500))).revision
    roll_back = await leave(plane, talk, CUT)
    # Its changes wait for a boundary of their own.
    talk = await begin(plane, "two", 40, held=frozenset({roll_back}))
    assert await delivered(talk.session) == [later]
    assert await taken_away(plane) == {1: roll_back}
    assert await desired(plane) == {RATE: roll_back}
    assert await effective(plane) == {RATE: (0, 0), BATCH: (0, 0)}
    await talk.session.outcome(talk.next(), settled(roll_back, applied(41, instance_id="two")))
    assert await effective(plane) == {RATE: (roll_back, 41), BATCH: (0, 0)}
    # The operator wants it all the same.
    again = await apply(plane, talk, 60)
    await talk.session.outcome(talk.next(), settled(later, done(500, "two")))
    await plane.sessions.close(talk.session)
    # A crash, and a checkpoint from before all that: the roll back itself was done once.
    talk = await begin(plane, "three", 30)
    sent = [each.update for each in only(await said(talk.session), Delivery)]
    assert [(u.revision, u.state) for u in sent] == [
        (each, UpdateState.APPLIED) for each in (later, roll_back, again)
    ]
    assert await taken_away(plane) == {1: roll_back}


async def test_state_that_is_asked_for_changes_nothing_of_it(plane: UseCases) -> None:
    talk = await begin(plane, "one")
    await apply(plane, talk, 50)
    roll_back = await leave(plane, talk, CUT)
    talk = await begin(plane, "two", 40, in_force=((2, 2),), held=frozenset({roll_back}))
    scheduled = await apply(plane, talk, 45, SetChange(BATCH, 2))
    # The same process, before the roll back is confirmed, over a new stream and within one.
    state: dict[str, Any] = {"in_force": ((2, 3),), "held": frozenset({roll_back})}
    await plane.sessions.close(talk.session)
    talk = await begin(plane, "two", 40, **state)
    assert await delivered(talk.session) == []
    told = FullState(parameters=(await plane.job()).parameters, **state)
    await talk.session.full_state(talk.next(), told)
    assert await delivered(talk.session) == []
    assert await taken_away(plane) == {1: roll_back}
    assert (await plane.update(scheduled)).is_wanted


async def test_a_roll_back_that_was_only_delivered_takes_nothing_away(plane: UseCases) -> None:
    """The process crashes before it can go back: as after every crash."""
    talk = await begin(plane, "one")
    await apply(plane, talk, 50)
    roll_back = await leave(plane, talk)
    talk = await begin(plane, "two", 40)
    assert await delivered(talk.session) == [1, roll_back]
    # It holds it now, since it was sent to it; and over a new stream this says no more.
    await plane.sessions.close(talk.session)
    talk = await begin(plane, "two", 40, held=frozenset({1, roll_back}))
    assert await taken_away(plane) == {}
    rejected = Rejected("NO_CHECKPOINT", "there is none", step=41)
    await talk.session.outcome(talk.next(), settled(roll_back, rejected))
    assert await taken_away(plane) == {}


async def test_back_where_its_changes_can_not_be_made(plane: UseCases) -> None:
    talk = await begin(plane, "one")
    await apply(plane, talk, 50)
    roll_back = await leave(plane, talk, CUT)
    rejected = Rejected("NO_SCALE", "the value is 0 here; the run has gone back", step=40)
    talk = await begin(plane, "two", 40, outcomes=(settled(roll_back, rejected),))
    assert await delivered(talk.session) == []
    assert await taken_away(plane) == {1: roll_back}
    assert await desired(plane) == {}


async def test_the_guard_rolls_back(plane: UseCases) -> None:
    talk = await begin(plane, "one")
    await apply(plane, talk, 50)
    await plane.sessions.close(talk.session)
    # What has no revision yet is in force as well: the checkpoint has it.
    cut = LocalUpdate("guard-1", UpdateSpec(changes=(CUT,)))
    talk = await begin(plane, "one", local_updates=(cut,), in_force=((1, 1),))
    assert await delivered(talk.session) == [2]
    await talk.session.outcome(talk.next(), settled(2, done(30, "one")))
    await plane.sessions.close(talk.session)
    talk = await begin(plane, "two", 40, local_updates=(cut, LocalUpdate("guard-2", back())))
    assert await delivered(talk.session) == [2, 3]
    assert await taken_away(plane) == {1: 3}
    assert await desired(plane) == {RATE: 2}
    # Told again, for the answer got lost; what was applied since is no concern of it.
    await talk.session.outcome(talk.next(), settled(3, done(41, "two")))
    await apply(plane, talk, 45)
    await plane.sessions.close(talk.session)
    talk = await begin(plane, "three", 42, local_updates=(cut, LocalUpdate("guard-2", back())))
    assert await delivered(talk.session) == [2, 3, 4]
    assert await taken_away(plane) == {1: 3}


async def test_the_guard_rolls_back_twice_while_nobody_listens(plane: UseCases) -> None:
    """What the process in between has done, the last one tells, as it has been gone back from."""
    await plane.sessions.close((await begin(plane, "one")).session)
    both = tuple(LocalUpdate(f"guard-{n}", back(CUT)) for n in (1, 2))
    talk = await begin(plane, "three", 40, local_updates=both)
    assert await talk.receive_all() == [1, 2]
    left_behind = TrainerOutcome(1, applied(41, 2e-6, instance_id="two"), rolled_back=True)
    await talk.session.outcome(talk.next(), left_behind)
    assert await taken_away(plane) == {1: 2}
    assert await desired(plane) == {RATE: 2}
    assert await effective(plane) == {RATE: (0, 0), BATCH: (0, 0)}
    await talk.session.outcome(talk.next(), settled(2, applied(41, 1e-6, instance_id="three")))
    await talk.session.outcome(talk.next(), left_behind)  # the answer got lost
    assert await effective(plane) == {RATE: (2, 41), BATCH: (0, 0)}
    await plane.sessions.close(talk.session)
    assert await delivered((await begin(plane, "four", 40)).session) == [2]


async def test_roll_backs_one_after_another(plane: UseCases) -> None:
    talk = await begin(plane, "one")
    await apply(plane, talk, 15, SetChange(BATCH, 8))
    await apply(plane, talk, 50)
    assert await leave(plane, talk, CUT) == 3
    talk = await begin(plane, "two", 40, in_force=((1, 1), (3, 3)), held=frozenset({3}))
    await talk.session.outcome(talk.next(), settled(3, done(41, "two")))
    await apply(plane, talk, 45)
    assert await desired(plane) == {RATE: 4, BATCH: 1}
    # To before the first one, which is taken away as well.
    assert await leave(plane, talk) == 5
    talk = await begin(plane, "three", 10, in_force=((5, 5),))
    assert await delivered(talk.session) == []
    assert await taken_away(plane) == {1: 5, 2: 3, 3: 5, 4: 5}
    assert await desired(plane) == {}
    await talk.session.outcome(talk.next(), settled(5, done(11, "three")))
    # To a checkpoint that the first one had left behind: it has what that took away.
    assert await leave(plane, talk) == 6
    talk = await begin(plane, "four", 55, in_force=((1, 2), (6, 6)))
    assert await delivered(talk.session) == []
    assert await taken_away(plane) == {3: 5, 4: 5, 5: 6}
    assert await desired(plane) == {RATE: 2, BATCH: 1}
    assert await effective(plane) == {RATE: (2, 50), BATCH: (1, 15)}


async def test_an_application_that_is_told_too_late(plane: UseCases) -> None:
    """The process that made it could not say so; the next one, which went back, does."""
    talk = await begin(plane, "one")
    unsaid = (await plane.submit(set_rate(1e-4))).revision
    roll_back = await leave(plane, talk)
    outcome = settled(unsaid, done(50, "one"))
    talk = await begin(plane, "two", 40, in_force=((roll_back, roll_back),), outcomes=(outcome,))
    assert await delivered(talk.session) == []
    assert (await plane.update(unsaid)).outcome is not None
    assert await taken_away(plane) == {unsaid: roll_back}
    assert await desired(plane) == {}


async def test_a_process_that_applies_it_all_the_same_is_believed(plane: UseCases) -> None:
    talk = await begin(plane, "one")
    await apply(plane, talk, 50)
    roll_back = await leave(plane, talk)
    talk = await begin(plane, "two", 40, in_force=((2, 2),))
    assert await taken_away(plane) == {1: roll_back}
    await talk.session.outcome(talk.next(), settled(1, done(41, "two")))
    assert await taken_away(plane) == {}
    assert await effective(plane) == {RATE: (1, 41), BATCH: (0, 0)}


async def test_after_a_crash_a_value_has_the_update_that_it_comes_from(plane: UseCases) -> None:
    talk = await begin(plane, "one")
    await apply(plane, talk, 11)
    await apply(plane, talk, 50)
    await plane.sessions.close(talk.session)
    talk = await begin(plane, "two", 40, in_force=((1, 1),))
    assert await delivered(talk.session) == [2]
    assert await effective(plane) == {RATE: (1, 11), BATCH: (0, 0)}
    assert await desired(plane) == {RATE: 2}


@pytest.mark.parametrize("limit", [1, 1_000])
async def test_who_watches_and_who_pages_is_told(plane: UseCases, limit: int) -> None:
    talk = await begin(plane, "one")
    for step in (50, 51):
        await apply(plane, talk, step)
    roll_back = await leave(plane, talk)
    span = await plane.store.read(lambda tx: tx.event_span())
    version = (await plane.job()).version
    await begin(plane, "two", 40, in_force=((3, 3),))
    events = await plane.store.read(lambda tx: tx.events(after=span[1], limit=99))
    assert {1, 2} <= {each.revision for each in events}
    assert (await plane.job()).version > version
    page = await plane.updates.list("j", HistoryQuery(newest_first=True), beyond=3, limit=limit)
    assert {u.rolled_back_by for u in page.updates} == {roll_back}
    assert (await plane.updates.wait("j", 1, 1.0)).state is UpdateState.APPLIED
