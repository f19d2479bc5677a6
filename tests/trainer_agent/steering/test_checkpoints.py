from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer_agent.steering import checkpoints

WHOLE = ("model.safetensors", "optimizer.pt", "trainer_state.json")


def save(directory: Path, step: int, *files: str, state: object = None) -> Path:
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for file in files or WHOLE:
        (path / file).write_text("x")
    if "trainer_state.json" in (files or WHOLE):
        text = json.dumps({"global_step": step}) if state is None else str(state)
        (path / "trainer_state.json").write_text(text)
    return path


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "gone") == checkpoints.Found(None)
    save(tmp_path, 9)
    ten = save(tmp_path, 10)
    half = save(tmp_path, 100, "model.safetensors", "optimizer.pt")
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-1000").write_text("a file")
    found = checkpoints.newest(tmp_path)
    assert found.newest == ten
    assert checkpoints.newest(tmp_path, before=10).newest == tmp_path / "checkpoint-9"
    assert checkpoints.newest(tmp_path, before=9) == checkpoints.Found(None)
    assert found.skipped == (
        f"{half}: it has no trainer_state.json, which is saved last: saving it was cut short",
    )


@pytest.mark.parametrize(
    ("files", "state", "fault"),
    [
        (WHOLE, '{"global_st', "is not whole"),
        (WHOLE, "[]", "is not whole"),
        (WHOLE, '{"global_step": 4}', "is of step 4"),
        (("optimizer.pt", "trainer_state.json"), None, "no weights"),
        (("model.safetensors", "trainer_state.json"), None, "no optimizer state"),
    ],
)
def test_what_is_not_whole_is_not_gone_on_from(
    tmp_path: Path, files: tuple[str, ...], state: str | None, fault: str
) -> None:
    path = save(tmp_path, 5, *files, state=state)
    assert fault in str(checkpoints.fault(path))
    assert checkpoints.newest(tmp_path).newest is None


def test_those_of_an_earlier_run_are_moved_away_and_kept(tmp_path: Path) -> None:
    assert checkpoints.set_aside_all(tmp_path / "gone") == []
    for step in (5, 10):
        save(tmp_path, step)
    assert checkpoints.holds(tmp_path, tmp_path / "checkpoint-5")
    assert checkpoints.holds(tmp_path, tmp_path / "x" / ".." / "checkpoint-5" / "adapter")
    assert not checkpoints.holds(tmp_path, tmp_path)
    moved = checkpoints.set_aside_all(tmp_path)
    aside = tmp_path / "earlier-1"
    assert moved == [aside / "checkpoint-5", aside / "checkpoint-10"]
    assert checkpoints.newest(aside).newest == moved[1]
    assert checkpoints.newest(tmp_path) == checkpoints.Found(None)
    assert checkpoints.set_aside_all(tmp_path) == []
    assert not (tmp_path / "earlier-2").exists()


def test_a_checkpoint_may_have_any_name(tmp_path: Path) -> None:
    kept = save(tmp_path, 5).rename(tmp_path / "best")
    assert checkpoints.fault(kept) is None
    assert checkpoints.set_aside_after(kept) == []


def test_what_came_after_a_roll_back_is_moved_away_and_kept(tmp_path: Path) -> None:
    five = save(tmp_path, 5)
    for step in (10, 15):
        save(tmp_path, step)
    assert [
        path.relative_to(tmp_path).as_posix() for path in checkpoints.set_aside_after(five)
    ] == [
        "rolled-back-1/checkpoint-10",
        "rolled-back-1/checkpoint-15",
    ]
    assert checkpoints.newest(tmp_path).newest == five
    save(tmp_path, 10)
    (again,) = checkpoints.set_aside_after(five)
    assert again == tmp_path / "rolled-back-2" / "checkpoint-10"
    assert checkpoints.fault(again) is None
    assert checkpoints.set_aside_after(five) == []
