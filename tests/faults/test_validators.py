"""Each validator notices what it is there for, and only that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults import campaign, check, run
from tests.faults.engagement import Setup
from tests.faults.history import History, recording
from tests.faults.lines import AnyRecord
from tests.faults.made_history import histories, made
from tests.faults.records import (
    Answered,
    Asked,
    Change,
    Failed,
    Move,
    Outcome,
    Quiet,
    StoredBatch,
    StoredEvent,
    StoredJob,
    StoredUpdate,
    TrainerBegan,
    TrainerSettled,
    WatchBegan,
    Watched,
)
from tests.faults.spoilt_history import GOOD, SPOILT, Records
from tests.faults.validators import VALIDATORS, validate

quick = settings(max_examples=50, deadline=None)


def guarantees(records: Iterable[AnyRecord]) -> set[str]:
    return {violation.guarantee for violation in validate(History(records))}


@pytest.mark.parametrize("what", SPOILT)
def test_a_broken_promise_is_noticed_by_its_name(what: str) -> None:
    guarantee, spoil = SPOILT[what]
    assert guarantee in guarantees(spoil())


def test_the_next_process_may_say_what_one_had_no_time_to_say() -> None:
    records = made([("save_checkpoint", "a", 1.5), ("resumed", "a", 1.5)])
    [said] = (r for r in records if isinstance(r, TrainerSettled))
    [began] = (r for r in records if isinstance(r, TrainerBegan) and r.checkpoint)
    without = [r for r in records if r is not said]
    at = without.index(began) + 1
    later = replace(said, instance=began.instance)
    assert not validate(History([*without[:at], later, *without[at:]]))
    assert "truthful" in guarantees(without)


def test_a_process_that_went_back_is_given_later_what_was_asked_before() -> None:
    records = made([("save_checkpoint", "a", 1.5), ("roll_back", "a", 1.5)])
    [began] = (r for r in records if isinstance(r, TrainerBegan) and r.roll_back)
    [back] = (r for r in records if isinstance(r, TrainerSettled) and r.revision == 2)
    outcome = replace(back.outcome, step=back.outcome.step + 1, moves=(), checkpoint="")
    at = records.index(back) + 1
    records.insert(at, replace(back, revision=1, outcome=outcome))
    assert "ordered" not in guarantees(records)
    records[records.index(began)] = replace(began, roll_back=0)
    assert "ordered" in guarantees(records)


def _applies(
    instance: str, step: int, job: str = "a", unverified: tuple[int, ...] = ()
) -> tuple[TrainerBegan, TrainerSettled]:
    """A process begins, and applies an update."""
    outcome = Outcome("applied", instance, step, (Move("rate", old=1.0, new=2.0),))
    return (
        TrainerBegan(job=job, instance=instance, values={"rate": 1.0}, unverified=unverified),
        TrainerSettled(job=job, instance=instance, revision=1, outcome=outcome),
    )


def _is_late(
    *trainers: tuple[TrainerBegan, TrainerSettled], first: Outcome, again: tuple[Outcome, ...] = ()
) -> bool:
    change = (Change("rate", "set", 2.0),)
    records: list[AnyRecord] = [
        Asked(
            caller="c",
            call=1,
            to="",
            method="update",
            jobs=("a",),
            request_id="q",
            changes=change,
            max_step=15,
        ),
        Answered(call=1, revisions={"a": 1}),
        *(record for trainer in trainers for record in trainer),
        StoredUpdate(
            job="a",
            revision=1,
            request_id="q",
            state="applied",
            changes=change,
            outcome=first,
            reapplied=again,
        ),
    ]
    found = [each.what for each in VALIDATORS["truthful"](History(records))]
    return any("at another time" in what for what in found)


def test_what_is_applied_again_is_so_at_whatever_hour() -> None:
    """Also by one that was killed before anybody was told."""
    in_time, untold, told = _applies("A", 12), _applies("B", 30), _applies("C", 40)
    first, second, third = (settled.outcome for _, settled in (in_time, untold, told))
    assert not _is_late(in_time, untold, told, first=first, again=(third,))
    assert _is_late(untold, told, first=second, again=(third,)), "nobody was in time"
    assert _is_late(untold, in_time, first=first), "nobody had applied it before"


def test_what_a_process_applied_is_not_looked_for_in_other_jobs() -> None:
    """Revisions are a job's own."""
    history = History([*_applies("B", 30, job="b"), *_applies("A", 12, unverified=(1,))])
    assert {each.job for each in history.applied_by(history.trainer["A"]).settled} == {"a"}


def test_every_validator_has_been_shown_something() -> None:
    assert {guarantee for guarantee, _ in SPOILT.values()} == VALIDATORS.keys()


@quick
@given(histories)
def test_where_all_holds_nothing_is_found(records: Records) -> None:
    assert validate(History(records)) == []


def _is_told(record: AnyRecord) -> bool:
    """One without which somebody must be missing something."""
    match record:
        case Watched():
            return record.event != "bookmark"
        case TrainerSettled() | StoredUpdate() | StoredEvent() | StoredBatch() | StoredJob():
            return True
        case _:
            return False


def _is_counted(record: AnyRecord) -> bool:
    """One that can not be there twice."""
    return _is_told(record) and not isinstance(record, TrainerSettled | StoredEvent | StoredJob)


@quick
@given(histories, st.data())
def test_what_is_left_out_is_noticed(records: Records, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from([i for i, r in enumerate(records) if _is_told(r)]))
    assert validate(History([*records[:at], *records[at + 1 :]])), records[at]


@quick
@given(histories, st.data())
def test_what_is_there_twice_is_noticed(records: Records, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from([i for i, r in enumerate(records) if _is_counted(r)]))
    # As it would be read from a file: another one that says the same.
    again = replace(records[at])
    assert validate(History([*records[:at], again, *records[at:]])), records[at]


@quick
@given(histories, st.data())
def test_what_is_in_another_order_is_noticed(records: Records, data: st.DataObject) -> None:
    def neighbours(record: AnyRecord) -> object:
        match record:
            case Watched(event="modified"):
                return record.watcher
            case TrainerSettled():
                return record.instance
            case _:
                return None

    last: dict[object, int] = {}
    pairs: list[tuple[int, int]] = []
    for i, record in enumerate(records):
        party = neighbours(record)
        if party is not None:
            if party in last:
                pairs.append((last[party], i))
            last[party] = i
    first, second = data.draw(st.sampled_from(pairs))
    swapped = list(records)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    assert validate(History(swapped)), (records[first], records[second])


def checked(records: Iterable[AnyRecord], path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with recording(path) as recorder:
        for record in records:
            recorder.add(record)
    monkeypatch.setattr("sys.argv", ["check", str(path)])
    return check.main()


def test_a_history_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(GOOD, tmp_path / "good", monkeypatch) == 0
    bad: dict[str, Records] = {
        "empty": [],
        "spoilt": SPOILT["an update was applied twice"][1](),
        "without an end": [r for r in GOOD if not isinstance(r, Quiet)],
        "without a store": [r for r in GOOD if not r.kind.startswith("stored_")],
        "without watchers": [
            replace(r, watchers=()) if isinstance(r, Quiet) else r
            for r in GOOD
            if not isinstance(r, Watched | WatchBegan)
        ],
        "with a fault of ours": [*GOOD, Failed(call=0, code="INTERNAL", reason="")],
    }
    for what, records in bad.items():
        assert checked(records, tmp_path / what, monkeypatch) == 1, what


def test_what_was_seen_is_in_the_file_at_once(tmp_path: Path) -> None:
    with recording(tmp_path / "history") as recorder:
        recorder.add(GOOD[0])
        assert History.load(tmp_path / "history").records == recorder.records


def test_what_was_found_is_told_though_a_worker_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Counter[str]()
    result = campaign.Result(
        Setup(seed=77), 1.0, nothing, nothing, 0, nothing, nothing, ("it is broken",), None
    )

    def dying(*_: object, **__: object) -> Iterator[campaign.Result]:
        yield result
        raise BrokenProcessPool("one was killed")

    monkeypatch.setattr(run, "campaign", dying)
    monkeypatch.setattr("sys.argv", ["run", f"--output={tmp_path}"])
    with pytest.raises(BrokenProcessPool):
        run.main()
    assert "seeds 77" in capsys.readouterr().out


def test_a_history_is_the_same_once_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with recording(path) as recorder:
        for record in GOOD:
            recorder.add(record)
    assert History.load(path).records == recorder.records
    assert [replace(r, at=0.0) for r in recorder.records] == GOOD
