"""The book of what a training process has done by itself: bounded, and it says what it lost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from midcourse.control.v1 import update_pb2
from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import LinkScript, delivery, set_change
from trainer_agent import attach
from trainer_agent.steering.local_updates import MAX_LOCAL, LocalUpdates
from trainer_agent.steering.roll_back import ROLLED_BACK_VARIABLE, HandOver


def left_by(process: str, count: int) -> list[dict[str, Any]]:
    book = LocalUpdates(process)
    for _ in range(count):
        book.keep(book.new(update_pb2.UpdateSpec(reason="the loss is nan")))
    return book.state_dict()


def test_what_there_is_room_for_is_taken_over_and_nothing_is_lost() -> None:
    book = LocalUpdates("after")
    book.take_over(left_by("before", MAX_LOCAL - 1))
    assert len(book) == MAX_LOCAL - 1
    assert not book.take_lost()


def test_what_there_is_no_room_for_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    book = LocalUpdates("after")
    book.take_over(left_by("before", MAX_LOCAL - 1))
    with caplog.at_level(logging.WARNING):
        book.take_over(left_by("earlier", 30))
    assert len(book) == MAX_LOCAL - 1
    assert book.has_news
    lost = book.take_lost()
    assert lost.startswith("30 of the updates")
    assert "guard-earlier-1, guard-earlier-2, " in lost
    assert len(lost) < 1_000
    assert [record.getMessage() for record in caplog.records] == [lost]
    assert not book.take_lost()


def test_it_is_told_to_the_control_plane_and_steering_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = plain_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-2")
    left = HandOver(checkpoint, update_pb2.Update(revision=1), local=left_by("before", MAX_LOCAL))
    left.write(str(tmp_path / "left.json"))
    monkeypatch.setenv(ROLLED_BACK_VARIABLE, str(tmp_path / "left.json"))
    links = LinkScript({4: [delivery(2, set_change(0.01))]})
    trainer = plain_trainer(tmp_path)
    attach(trainer, "job", link_factory=links)
    trainer.train(resume_from_checkpoint=checkpoint)
    (fault,) = links.link.faults
    assert fault.component == "local_updates"
    assert "1 of the updates" in fault.message
    assert "guard-before-100" in fault.message
    applied = [each.revision for each in links.link.outcomes if each.HasField("applied")]
    assert 2 in applied
