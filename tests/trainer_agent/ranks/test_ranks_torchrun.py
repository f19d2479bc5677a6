"""Real trainers on two real ranks, over gloo: both do what a script would do by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Process
from tests.support.torchrun import ranks_alone, torchrun

SCRIPT = "tests/support/rank_scenarios.py"
RANKS = 2
STEPS = 10

Records = list[Mapping[str, Mapping[str, Any]]]

pytestmark = pytest.mark.timeout(300)  # several starts of PyTorch, on processors that others use


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """What happened on each rank, by scenario. The last but one lets collectives time out soon."""
    directory = tmp_path_factory.mktemp("ranks")
    scenarios = ("agreed", "fragile", "broken", "sharded", "paused", "apart")
    torchrun("torchrun", RANKS, directory, SCRIPT, str(directory), *scenarios, seconds=280)
    return [read(directory, rank) for rank in range(RANKS)]


def read(directory: Path, rank: int) -> Mapping[str, Mapping[str, Any]]:
    records: Mapping[str, Mapping[str, Any]] = json.loads(
        (directory / f"rank-{rank}.json").read_text()
    )
    return records


def alike(records: Records, *names: str) -> Mapping[str, Any]:
    """Return a run on the first rank, having seen that these runs were the same on both."""
    first = records[0][names[0]]
    assert len(first["weights"]) == STEPS
    for rank in records:
        for name in names:
            assert not rank[name]["error"]
            for what in ("weights", "rates"):
                assert rank[name][what] == first[what], f"{name}: {what}"
    return first


@pytest.mark.parametrize("sharded", ["", "sharded "], ids=["ddp", "fsdp2"])
def test_updates_apply_at_the_same_step_on_every_rank_as_by_hand(
    records: Records, sharded: str
) -> None:
    steered = alike(records, f"{sharded}steered", f"{sharded}by hand")

    assert steered["outcomes"] == ["1 applied from 5", "2 applied from 7"]
    untouched = alike(records, f"{sharded}untouched")
    assert steered["weights"][:4] == untouched["weights"][:4]
    assert steered["weights"][4] != untouched["weights"][4]
    # The second update did something as well, beside what the first one did.
    assert steered["rates"][3] == 0.03


@pytest.mark.parametrize("sharded", ["", "sharded "], ids=["ddp", "fsdp2"])
def test_without_updates_every_rank_is_as_without_the_callback(
    records: Records, sharded: str
) -> None:
    assert alike(records, f"{sharded}no updates", f"{sharded}untouched")["outcomes"] == []


def test_what_fails_on_one_rank_alone_is_undone_on_all(records: Records) -> None:
    first = alike(records, "fragile", "fragile by hand")

    assert [rank["fragile"]["fragile"] for rank in records] == [1.0, 1.0]
    failed = (
        "rejected APPLY_FAILED fragile: on rank 1: changing fragile failed and was taken back: "
        "ValueError: 2.0 does not suit this rank"
    )
    applied = "2 applied from 4"
    assert records[0]["fragile"]["outcomes"] == [f"1 {failed}", applied, f"3 {failed}"]
    assert first["rates"][2] == 0.03


def test_a_rank_that_can_not_take_back_keeps_nobody_waiting(records: Records) -> None:
    alike(records, "broken")

    first, second = records[0]["broken"]["outcomes"]
    assert first.startswith("1 rejected UNDO_FAILED")
    assert second.startswith("2 rejected")
    assert records[0]["broken"]["fragile"] == 1.0
    assert max(rank["broken"]["seconds"] for rank in records) < 60


def test_a_pause_outlasts_the_timeout_of_collectives(records: Records) -> None:
    """And an update that comes during it is in force from the next step on."""
    paused = alike(records, "paused", "paused by hand")

    assert paused["outcomes"] == ["1 applied from 5", "3 applied from 5", "2 applied from 5"]
    assert all(rank["paused"]["seconds"] > 4.5 for rank in records)  # collectives: 3 s


def test_with_the_callback_on_one_rank_alone_training_goes_on_and_is_not_steered(
    records: Records,
) -> None:
    apart = alike(records, "apart", "untouched")

    assert [
        each.split(":")[0] for each in apart["outcomes"] or records[0]["apart"]["outcomes"]
    ] == [
        "1 rejected SEVERAL_RANKS ",
        "2 rejected SEVERAL_RANKS ",
    ]


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_other_as_it_would_without_us(tmp_path: Path) -> None:
    processes = ranks_alone("killed", RANKS, tmp_path, SCRIPT, str(tmp_path), "killed")
    try:
        survivor, killed = processes
        assert killed.wait(120) == -9
        assert survivor.wait(60) == 0  # the script keeps what training ended with
    finally:
        for process in processes:
            process.end()

    record = read(tmp_path, 0)["killed"]
    assert "by peer" in record["error"]  # of the collective of the training itself
    assert "RanksLost" not in record["error"]
    assert len(record["weights"]) == 5


LEAVES_WORK_BEHIND = """
from concurrent.futures import ThreadPoolExecutor
from torch._C._distributed_c10d import HashStore
from trainer_agent.ranks import group as ranks_group

store = HashStore()
with ThreadPoolExecutor(2) as pool:
    meet = lambda rank: ranks_group.meet(store, 1, rank, 2)
    stays, silent = pool.map(meet, range(2))
stays.exchange(())
stays.close()
print("closed", flush=True)
"""


def test_what_another_rank_never_answered_does_not_hold_up_the_end(tmp_path: Path) -> None:
    process = Process("leaves", ["-c", LEAVES_WORK_BEHIND], tmp_path)
    try:
        assert process.wait(90) == 0, process.tail()  # and not after ten minutes
    finally:
        process.end()
    assert "closed" in process.tail()
