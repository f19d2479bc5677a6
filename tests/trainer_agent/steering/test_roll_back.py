"""Going back to a checkpoint: one process ends, the next goes on, and only that one says so."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from midcourse.agent.v1 import session_pb2
from midcourse.control.v1 import update_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import (
    LinkScript,
    delivery,
    pause,
    resume,
    roll_back,
    set_change,
)
from tests.trainer_agent.steering.test_checkpoints import save
from tests.trainer_agent.steering.test_protection import Diverging, given_revision
from trainer_agent import Protection, attach
from trainer_agent.parameters import Refused
from trainer_agent.steering.roll_back import (
    EXIT_CODE,
    FILE_VARIABLE,
    LAUNCHER_VARIABLE,
    ROLLED_BACK_VARIABLE,
    WHY_NOT_VARIABLE,
    HandOver,
    find_checkpoint,
    why_not,
)

SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the launcher gives its child."""
    monkeypatch.delenv("JOB_ID", raising=False)
    monkeypatch.delenv(ROLLED_BACK_VARIABLE, raising=False)
    path = tmp_path / "roll-back.json"
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(os.getppid()))
    return path


def begin(
    directory: Path,
    script: Any,
    *,
    while_held: Sequence[Any] = (),
    resume: str | None = None,
    model: Any = None,
    protection: Protection | None = None,
) -> LinkScript:
    """Train in what is a process of its own but for the process."""
    links = LinkScript(script, while_held)
    trainer = plain_trainer(
        directory / "run", model=model, learning_rate=0.01, max_grad_norm=0, **SAVING
    )
    attach(trainer, "job", link_factory=links, protection=protection)
    code = None
    try:
        trainer.train(resume_from_checkpoint=resume)
    except SystemExit as exited:
        code = exited.code
    assert code == EXIT_CODE or (code is None and trainer.state.global_step == 10)
    assert not links.link.faults
    return links


def go_on(
    directory: Path, file: Path, monkeypatch: pytest.MonkeyPatch, script: Any = None, **options: Any
) -> LinkScript:
    """Do what the launcher does."""
    left = HandOver.read(str(file))
    monkeypatch.setenv(ROLLED_BACK_VARIABLE, str(file))
    return begin(directory, script or {}, resume=left.checkpoint, **options)


def told(links: LinkScript) -> dict[int, session_pb2.UpdateOutcome]:
    return {each.revision: each for each in links.link.outcomes}


def test_the_next_process_goes_on_and_says_so(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {
        5: [delivery(1, set_change(0.5))],
        7: [delivery(2, set_change(0.05), action=roll_back("checkpoint-4"))],
    }
    first = begin(tmp_path, script)
    assert set(told(first)) == {1}, "nothing is said before it is true"
    assert first.link.closed == [None]
    assert not any(each.HasField("finished") for each in first.link.sent)
    left = HandOver.read(str(file))
    assert left.checkpoint == str(tmp_path / "run" / "checkpoint-4")
    assert left.update.revision == 2

    second = go_on(tmp_path, file, monkeypatch, {6: [delivery(2, action=roll_back())]})
    outcomes = told(second)
    applied = outcomes[2].applied
    assert (applied.step, applied.action_result.checkpoint) == (5, left.checkpoint)
    assert applied.transitions[0].old_value.number == pytest.approx(0.01 * (6 / 10))
    assert applied.transitions[0].new_value.number == 0.05
    assert outcomes[1].applied == told(first)[1].applied
    assert outcomes[1].rolled_back, "it was applied after the checkpoint, and is superseded"
    assert second.link.metric("learning_rate")[5] == 0.05
    assert [each.revision for each in second.link.outcomes] == [1, 2, 2]
    state = second.link.hello().state
    assert [(each.first, each.last) for each in state.in_force] == [(2, 2)]
    hello = second.link.first_hello
    assert hello is not None
    assert hello.start_step == 4
    assert ROLLED_BACK_VARIABLE not in __import__("os").environ, "taken over once"


def test_what_no_step_has_used_is_not_left_open(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be sent to the next process, which would apply it."""
    script = {5: [delivery(1, set_change(0.5)), delivery(2, action=roll_back())]}
    first = begin(tmp_path, script)
    assert told(first)[1].rejected.reason == "ROLLED_BACK"
    second = go_on(tmp_path, file, monkeypatch)
    assert told(second)[1] == told(first)[1]
    assert [each.revision for each in second.link.outcomes] == [1, 2]
    assert 0.5 not in second.link.metric("learning_rate").values()


def test_what_the_checkpoint_contains_is_not_applied_again(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, {3: [delivery(1, set_change(0.5))], 7: [delivery(2, action=roll_back())]})
    second = go_on(tmp_path, file, monkeypatch)
    outcomes = told(second)
    assert outcomes[2].applied.action_result.checkpoint.endswith("checkpoint-6")
    assert outcomes[2].applied.step == 7
    assert not outcomes[2].applied.transitions
    assert 1 not in outcomes


def test_without_a_launcher_or_a_checkpoint_it_is_refused(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = begin(
        tmp_path,
        {1: [delivery(1, action=roll_back())], 3: [delivery(2, action=roll_back("nowhere"))]},
    )
    assert {each.rejected.reason for each in told(links).values()} == {"NO_CHECKPOINT"}
    assert "checkpoint-2" in told(links)[2].rejected.message
    monkeypatch.delenv(FILE_VARIABLE)
    links = begin(tmp_path, {3: [delivery(1, action=roll_back(), at_step=99)]})
    rejected = told(links)[1].rejected
    assert rejected.reason == "ACTION_UNAVAILABLE"
    assert "midcourse train" in rejected.message
    assert not file.exists()


def test_a_process_that_has_lost_its_launcher_goes_back_nowhere(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would start it again; also where the run itself wants to go back."""
    parents = iter([os.getppid()])  # as it begins, and later
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    links = LinkScript({3: [delivery(1, action=roll_back())]}, [[delivery(2, action=resume())]])
    trainer = plain_trainer(tmp_path / "run", model=Diverging({6: math.nan}), **SAVING)
    attach(trainer, "job", link_factory=links, protection=Protection("roll_back"))
    trainer.train()
    assert not links.link.faults
    rejected = told(links)[1].rejected
    assert rejected.reason == "ACTION_UNAVAILABLE"
    assert "its launcher is gone" in rejected.message
    (held,) = links.link.local_updates
    assert held.spec.action.WhichOneof("kind") == "pause"
    assert "can not be taken back" in held.spec.reason
    assert not file.exists()


def test_the_launcher_may_say_why_not() -> None:
    why = {FILE_VARIABLE: "there", WHY_NOT_VARIABLE: "it was so often already"}
    assert why_not(why) == "it was so often already"


def test_changes_that_could_not_be_made_keep_the_run_where_it_is(
    tmp_path: Path, file: Path
) -> None:
    links = begin(tmp_path, {5: [delivery(1, set_change(-1.0), action=roll_back())]})
    assert told(links)[1].rejected.parameter == "learning_rate"
    assert not file.exists()


def test_a_record_that_can_not_be_written_is_told_and_training_goes_on(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "no" / "such" / "folder"))
    links = begin(tmp_path, {5: [delivery(1, action=roll_back()), delivery(2, set_change(0.05))]})
    assert told(links)[1].rejected.reason == "ROLL_BACK_FAILED"
    assert told(links)[2].HasField("applied")


def test_a_run_that_can_not_go_back_by_itself_is_held_and_both_are_told(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "no" / "such" / "folder"))
    links = LinkScript({}, [[], [delivery(9, action=resume())]])
    trainer = plain_trainer(tmp_path / "run", model=Diverging({6: math.nan}), **SAVING)
    attach(trainer, "job", link_factory=links, protection=Protection("roll_back"))
    trainer.train()
    assert not links.link.faults
    back, held = links.link.local_updates
    assert back.spec.action.WhichOneof("kind") == "roll_back"
    assert held.spec.action.WhichOneof("kind") == "pause"
    assert "can not be taken back" in held.spec.reason
    outcomes = told(links)
    assert outcomes[9].applied.step == 7, "it was held"
    assert len(links.link.hello().state.local_updates) == 2, "until they have their revisions"


def test_outcomes_that_nobody_has_confirmed_are_told_by_the_next_process(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent may have died with them; they must not be applied, or refused, a second time."""
    later = delivery(7, set_change(0.3, parameter="weight_decay"))
    script = {
        2: [delivery(1, set_change(0.03)), delivery(2, set_change(-1.0))],
        5: [delivery(3, set_change(0.05)), delivery(4, set_change(-1.0)), later],
        7: [delivery(5, set_change(0.07)), delivery(6, action=roll_back("checkpoint-4"))],
    }
    first = told(begin(tmp_path, script))
    unheard = [later, *(delivery(each, set_change(0.09)) for each in (3, 4, 5))]
    second = go_on(tmp_path, file, monkeypatch, {6: unheard})
    again = told(second)
    assert set(again) == {3, 4, 5, 6, 7}, "the checkpoint has the others"
    assert (first[7].applied.step, again[7].applied.step) == (6, 7), "sent after the roll back"
    assert again[3].applied == first[3].applied
    assert again[3].rolled_back
    assert not again[4].rolled_back
    assert again[4].rejected == first[4].rejected
    assert again[5].rejected.reason == "ROLLED_BACK"
    assert 0.09 not in second.link.metric("learning_rate").values()
    state = second.link.hello().state
    assert [(each.first, each.last) for each in state.in_force] == [(1, 1), (6, 7)]


def test_a_process_that_does_not_resume_says_so(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, {5: [delivery(1, set_change(0.5), action=roll_back())]})
    monkeypatch.setenv(ROLLED_BACK_VARIABLE, str(file))
    links = begin(tmp_path, {})
    rejected = told(links)[1].rejected
    assert rejected.reason == "ROLL_BACK_FAILED"
    assert "goes on from step 0" in rejected.message
    assert 0.5 not in links.link.metric("learning_rate").values()


def test_it_ends_a_pause(tmp_path: Path, file: Path) -> None:
    links = begin(
        tmp_path, {5: [delivery(1, action=pause())]}, while_held=[[delivery(2, action=roll_back())]]
    )
    assert HandOver.read(str(file)).update.revision == 2
    assert links.link.closed == [None]


def test_a_loss_that_is_not_finite_takes_the_run_back_until_it_is_held(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is cut once more each time, also with nobody to give it a revision."""
    protection = Protection("roll_back", max_roll_backs=2)
    begin(tmp_path, {}, model=Diverging({6: math.nan}), protection=protection)
    left = HandOver.read(str(file))
    assert left.checkpoint.endswith("checkpoint-4"), "from before the loss"
    assert left.update.revision == 0

    def again() -> LinkScript:
        # The sixth step of a run that begins anew after the fourth is its second.
        return go_on(
            tmp_path,
            file,
            monkeypatch,
            model=Diverging({2: math.nan}),
            protection=protection,
            while_held=[[delivery(9, action=roll_back("checkpoint-2"))]],
        )

    once, links = again(), again()
    rates = [each.link.metric("learning_rate")[5] for each in (once, links)]
    assert rates[0] == pytest.approx(0.01 * (6 / 10) * 0.5)
    assert rates[1] == pytest.approx(0.01 * (6 / 10) * 0.25)
    assert HandOver.read(str(file)).update.revision == 9, "held by then, and taken back by hand"
    assert left.in_a_row == 1
    specs = [each.spec for each in links.link.local_updates]
    assert specs[1].changes[0].multiply.factor == 0.25
    assert "cut 2 times, to 0.25 times" in specs[1].reason
    assert [each.action.WhichOneof("kind") for each in specs] == ["roll_back", "roll_back", "pause"]
    assert "again after 2 roll backs" in specs[-1].reason


def test_superseded_doings_of_the_guard_are_answered_and_in_force_no_more(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They got no revision in time; whichever they get now must not be applied."""
    protection = Protection("pause")
    first = begin(
        tmp_path,
        {8: [delivery(2, action=roll_back("checkpoint-4"))]},
        model=Diverging({6: math.nan}),
        protection=protection,
        while_held=[[delivery(1, action=resume())]],
    )
    (local,) = first.link.local_updates
    second = go_on(tmp_path, file, monkeypatch, {6: [given_revision(3, local)]})
    applied = told(second)[3].applied
    assert applied.step == 7, "as it was, in the process that has ended"
    state = second.link.hello().state
    assert [(each.first, each.last) for each in state.in_force] == [(2, 2)]
    rates = second.link.metric("learning_rate")
    assert rates[10] == pytest.approx(0.01 * (1 / 10)), "not cut"


def test_the_newest_checkpoint_is_found_by_its_step(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save(tmp_path, step)
    (tmp_path / "checkpoint-11" / "trainer_state.json").unlink()  # saving it was not finished
    assert find_checkpoint(str(tmp_path), "") == str(tmp_path / "checkpoint-10")
    assert find_checkpoint(str(tmp_path), "", 10) == str(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9" / "optimizer.pt").unlink()
    with pytest.raises(Refused, match="no optimizer state"):
        find_checkpoint(str(tmp_path), "", 10)
    with pytest.raises(Refused, match=r"no optimizer state.*newest.*checkpoint-10"):
        find_checkpoint(str(tmp_path), "checkpoint-9")


def test_a_damaged_record_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "file"
    ended = session_pb2.UpdateOutcome(revision=1, applied=update_pb2.Applied(step=2))
    whole = HandOver("there", update_pb2.Update(revision=1), 3, ({"update": "Eg"},), (ended,))
    whole.write(str(path))
    assert HandOver.read(str(path)) == whole
    for damaged in (
        "",
        "[]",
        "{}",
        path.read_text().replace("there", "there").replace('"Eg', '"!'),
    ):
        path.write_text(damaged.removesuffix("}"))
        with pytest.raises(ValueError, match="no record of a roll back"):
            HandOver.read(str(path))
