"""Where ranks stop that are told to at different moments."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from tests.support.plain_trainer import plain_trainer
from tests.support.scripted_link import ScriptedLink, delivery, pause
from trainer_agent import attach
from trainer_agent.steering import checkpoints
from trainer_agent.steering.roll_back import LAUNCHER_VARIABLE
from trainer_agent.training.stop import StopOnSignal


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Rank:
    """The callback in the loop of one rank."""

    def __init__(self, rank: int, note: Path | None, args: TrainingArguments) -> None:
        self.callback = StopOnSignal(rank, note)
        self.args = args
        self.callback.on_train_begin(args, TrainerState(), TrainerControl())

    def ends(self, step: int) -> bool:
        """Ends a step and tells whether it is the last one."""
        control = TrainerControl()
        self.callback.on_step_end(self.args, TrainerState(global_step=step), control)
        assert control.should_save == control.should_training_stop
        return control.should_training_stop


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])


def test_one_that_is_alone_stops_at_once(args: TrainingArguments) -> None:
    rank = Rank(0, None, args)
    rank.callback.install()
    assert not rank.ends(4)
    os.kill(os.getpid(), signal.SIGTERM)
    assert rank.callback.stopped_by is None
    assert rank.ends(5)
    assert rank.callback.stopped_by == signal.SIGTERM


@pytest.mark.parametrize("others_first", [True, False])
@pytest.mark.parametrize("told", [(0,), (0, 1)])
def test_ranks_stop_after_the_step_that_the_first_writes_down(
    args: TrainingArguments, tmp_path: Path, others_first: bool, told: tuple[int, ...]
) -> None:
    ranks = [Rank(rank, tmp_path / "note", args) for rank in range(2)]
    order = ranks[::-1] if others_first else ranks
    assert not any(rank.ends(4) for rank in order)
    for rank in told:
        ranks[rank].callback.install()
        os.kill(os.getpid(), signal.SIGINT)
    # Step 6 takes both: it cannot end anywhere before the first rank has ended step 5.
    assert not any(rank.ends(5) for rank in order)
    assert all(rank.ends(6) for rank in order)
    assert {rank.callback.stopped_by for rank in ranks} == {signal.SIGINT}


def test_others_alone_decide_nothing(args: TrainingArguments, tmp_path: Path) -> None:
    ranks = [Rank(rank, tmp_path / "note", args) for rank in range(2)]
    ranks[1].callback.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert not any(rank.ends(step) for step in range(5) for rank in ranks)


@pytest.mark.parametrize("training", [False, True])
def test_before_training_and_after_a_first_one_a_signal_ends_the_process(
    args: TrainingArguments, training: bool
) -> None:
    callback = Rank(0, None, args).callback if training else StopOnSignal()
    callback.install()
    if training:
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_a_launcher_that_is_there_is_the_one_that_kills(
    args: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stops a service signals this process and the launcher, which hands it on."""
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(os.getppid()))
    rank = Rank(0, None, args)
    rank.callback.install()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert rank.ends(5)
    assert rank.callback.stopped_by == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)


class SignalledLink(ScriptedLink):
    """While the run is held its process gets a signal, and nothing else ever comes."""

    def wait(self, seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_paused_run_saves_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOB_ID", raising=False)
    links: list[SignalledLink] = []

    def link(*, hello: Any, **_: Any) -> SignalledLink:
        links.append(SignalledLink({4: [delivery(1, action=pause())]}, hello))
        return links[-1]

    trainer = plain_trainer(tmp_path)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    stop.steering = attach(trainer, "job", link_factory=link)
    stop.install()
    trainer.train()
    assert trainer.state.global_step == 4
    assert stop.stopped_by == signal.SIGINT
    assert checkpoints.fault(tmp_path / "checkpoint-4") is None
    assert [each.revision for each in links[0].outcomes] == [1]
    assert links[0].closed == [None]
    assert not links[0].faults
