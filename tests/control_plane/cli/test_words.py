"""What is shown: numbers, times and messages in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from control_plane import changes
from control_plane.cli import board, courses, describe, tables
from control_plane.cli import format as fmt
from control_plane.cli.fitting import FittingTable
from control_plane.cli.jobs import StateName
from midcourse.control.v1 import control_pb2, job_pb2, parameter_pb2, update_pb2
from tests.support.fake_control_plane import make_job, make_series


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (5e-5, "5e-05"),
        (2e-4, "0.0002"),
        (0.0, "0"),
        (120, "120"),
        (12345678, "12345678"),
        (1.23456789, "1.23457"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert fmt.number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_short_and_close(value: float) -> None:
    text = fmt.number(value)
    assert len(text) <= 13
    assert float(text) == pytest.approx(value, rel=1e-5)


def test_updates_of_the_guard_and_those_that_wait_in_the_watch() -> None:
    job = make_job("my-run")
    update = update_pb2.Update(revision=4, author="guard", state=update_pb2.UPDATE_STATE_DELIVERED)
    update.spec.changes.extend([changes.set_value("temperature", 0.7)])
    update.spec.action.roll_back.checkpoint = "/runs/1"
    job.parameters.add(name="temperature", boundary=parameter_pb2.BOUNDARY_GENERATION)
    event = control_pb2.WatchJobsResponse(
        type=control_pb2.JOB_EVENT_TYPE_MODIFIED, job=job, update=update
    )
    assert board.line(event, 0.0).endswith(
        "my-run update 4 by guard DELIVERED: temperature → 0.7, roll back to /runs/1"
        " (waits for the next generation boundary)"
    )
    event.update.state = update_pb2.UPDATE_STATE_APPLIED
    event.update.applied.SetInParent()
    assert "update 4 by guard APPLIED at an unknown step, " in board.line(event, 0.0)


def test_what_was_rolled_back_is_told_everywhere() -> None:
    update = update_pb2.Update(revision=4, state=update_pb2.UPDATE_STATE_APPLIED, rolled_back_by=6)
    update.spec.changes.extend([changes.set_value("temperature", 0.7)])
    update.applied.step = 9
    event = control_pb2.WatchJobsResponse(
        type=control_pb2.JOB_EVENT_TYPE_MODIFIED, job=make_job("my-run"), update=update
    )
    assert board.line(event, 0.0).endswith("after the call; rolled back by revision 6")
    console = Console(width=120)
    with console.capture() as captured:
        console.print(tables.history([update], 0.0))
    row = captured.get().splitlines()[-1].split()
    assert row[:2] == ["4", "APPLIED"]
    assert row[-5:] == ["rolled", "back", "by", "revision", "6"]


def test_an_update_waits_for_the_last_of_its_boundaries() -> None:
    specs = [
        parameter_pb2.ParameterSpec(name=name, boundary=boundary)
        for name, boundary in (
            ("lr", parameter_pb2.BOUNDARY_STEP),
            ("batch", parameter_pb2.BOUNDARY_ACCUMULATION),
            ("loader", parameter_pb2.BOUNDARY_EPOCH),
        )
    ]

    def waits(*names: str, at_step: int | None = None) -> str:
        update = update_pb2.Update(state=update_pb2.UPDATE_STATE_DELIVERED)
        update.spec.changes.extend(changes.release(name) for name in names)
        if at_step is not None:
            update.spec.apply_at.step = at_step
        return describe.waiting(update, specs)

    assert waits("lr") == waits("unheard_of") == ""
    assert waits("lr", "batch") == "waits for the next accumulation boundary"
    assert waits("loader", "batch") == "waits for the next epoch boundary"
    assert waits("lr", at_step=9) == "waits for step 9"
    assert waits("batch", at_step=9) == "waits for step 9 and the next accumulation boundary"
    assert describe.waiting(update_pb2.Update(), specs) == ""


def test_many_metrics_of_an_evaluation() -> None:
    result = update_pb2.ActionResult(metrics={f"eval_{n}": n / 8 for n in range(7)})
    assert describe.result(result) == "eval_0 0, eval_1 0.125, eval_2 0.25, eval_3 0.375, +3 more"
    assert describe.result(update_pb2.ActionResult()) == ""


@given(st.floats(0, 1e9))
def test_ages_never_run_ahead(seconds: float) -> None:
    text = fmt.age(seconds)
    assert text == "now" or text.endswith(" ago")
    assert fmt.age(-seconds) == "now" or fmt.age(-seconds).startswith("in ")
    if seconds >= 60:
        number, unit, _ = text.split()
        size = {"min": 60, "h": 3600, "d": 86400}[unit]
        assert int(number) * size <= seconds < (int(number) + 1) * size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0042, "4.2 ms"),
        (0.812, "812 ms"),
        (0.99999, "1.0 s"),
        (3.14, "3.1 s"),
        (59.7, "1 min"),
        (7200, "2 h"),
    ],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert fmt.span(seconds) == text


def test_what_is_unknown_is_a_dash() -> None:
    job = job_pb2.Job(name="jobs/new", state=job_pb2.JOB_STATE_PENDING)
    assert describe.step(job) == "–"
    assert describe.speed(job) == "–"
    assert describe.metric(job, "loss") == "–"
    assert describe.learning_rate(job) == "–"
    job.progress.step = 0
    assert describe.step(job) == "0/–"
    lost = make_job("lost", state=job_pb2.JOB_STATE_LOST)
    assert lost.progress.HasField("steps_per_second")  # of when it was last heard of
    assert describe.speed(lost) == "–"
    assert describe.value(parameter_pb2.Value()) == "–"
    assert describe.latency(update_pb2.Update()) == "–"


def test_the_newest_learning_rate_is_shown() -> None:
    job = make_job("a")
    assert describe.learning_rate(job) == "2e-05"
    job.effective.parameters[0].value.number = 5e-5
    job.effective.parameters[0].step = 121  # after the last log, at step 120
    assert describe.learning_rate(job) == "5e-05"
    job.metrics[1].step = 130
    assert describe.learning_rate(job) == "2e-05"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (changes.set_value("lr", 5e-5), "lr → 5e-05"),
        (changes.set_value("lr", 5e-5, mode="peak"), "lr peak → 5e-05"),
        (changes.hold("lr", 5e-5, group="1"), "lr[1] → 5e-05, held"),
        (changes.hold("lr", 5e-5, steps=9), "lr → 5e-05, held for 9 steps"),
        (changes.multiply("lr", 0.5), "lr × 0.5"),
        (changes.ramp("lr", 1e-6, steps=4), "lr → 1e-06 over 4 steps"),
        (changes.schedule("lr", "cosine"), "lr cosine to 0"),
        (
            changes.schedule("lr", "linear", peak=1e-4, steps=8),
            "lr linear from 0.0001 to 0 over 8 steps",
        ),
        (changes.release("lr"), "lr released"),
        (changes.set_value("frozen", True), "frozen → true"),
    ],
)
def test_changes(change: update_pb2.Change, text: str) -> None:
    assert describe.change(change) == text


def test_groups_are_folded() -> None:
    made = [
        update_pb2.ParameterTransition(
            parameter="lr",
            group=str(n),
            old_value=changes.to_value(1.5),
            new_value=changes.to_value(3.5),
        )
        for n in range(3)
    ]
    assert describe.transitions(made) == ["lr 1.5 → 3.5 (+2 groups)"]
    assert describe.transitions(made[1:2]) == ["lr[1] 1.5 → 3.5"]


def applied_update(*, applied: float | None, settled: float | None) -> update_pb2.Update:
    update = update_pb2.Update()
    update.create_time.FromMilliseconds(1_000_000)
    update.applied.step = 3
    if applied is not None:
        update.applied.apply_time.FromMilliseconds(1_000_000 + round(applied))
    if settled is not None:
        update.settle_time.FromMilliseconds(1_000_000 + round(settled))
    return update


@pytest.mark.parametrize(
    ("applied", "settled", "text"),
    [
        (4, 20, "4.0 ms"),
        (None, 20, "≤ 20 ms"),
        (-300, 20, "≤ 20 ms"),  # the trainer's clock is behind
        (900, 20, "≤ 20 ms"),  # or ahead
        (4, None, "4.0 ms"),
        (-4, None, "–"),
    ],
)
def test_a_wrong_clock_shows_no_wrong_latency(
    applied: float | None, settled: float | None, text: str
) -> None:
    assert describe.latency(applied_update(applied=applied, settled=settled)) == text


def test_bounds() -> None:
    def shown(**limits: Any) -> str:
        return describe.bounds(parameter_pb2.ParameterSpec(bounds=parameter_pb2.Bounds(**limits)))

    assert shown() == "–"
    assert shown(minimum=0.0, minimum_exclusive=True) == "(0, ∞)"
    assert shown(maximum=1.0) == "(-∞, 1]"
    assert shown(minimum=0.0, maximum=1.0, maximum_exclusive=True) == "[0, 1)"
    assert shown(allowed_texts=["a", "b"]) == "a | b"


def test_every_state_has_a_name_on_the_command_line() -> None:
    names = {name.removeprefix("JOB_STATE_") for name, _ in job_pb2.JobState.items()}
    assert {state.name for state in StateName} == names - {"UNSPECIFIED"}


def test_updates_are_noted_at_the_first_sample_they_could_touch() -> None:
    updates = []
    for revision, step in ((1, 2), (2, 3), (3, 1), (4, 99)):
        update = update_pb2.Update(revision=revision)
        update.applied.step = step
        update.applied.transitions.add(parameter="lr", new_value=changes.to_value(0.5))
        updates.append(update)
    marks = courses._marks([2, 4, 6], updates)
    assert marks == {2: "#1 lr – → 0.5", 4: "#2 lr – → 0.5 from step 3"}


def test_columns_of_different_steps_are_joined() -> None:
    table = courses.samples(
        [make_series("loss", [3.0, 2.0]), make_series("lr", [0.5], first_step=2)], []
    )
    assert table.headers == ("STEP", "loss", "lr", "UPDATE")
    assert table.rows == [("1", "3", "–", ""), ("2", "2", "0.5", "")]


@given(data=st.data(), columns=st.integers(20, 120))
def test_whatever_is_shown_is_shown_whole(data: st.DataObject, columns: int) -> None:
    headers = data.draw(st.lists(st.sampled_from("ABCDEFG"), min_size=1, unique=True))
    lengths = [data.draw(st.integers(1, 90)) for _ in headers]
    wrap = {each: data.draw(st.integers(1, 30)) for each in headers if data.draw(st.booleans())}
    leave_out = data.draw(st.lists(st.sampled_from([*headers[1:], "elsewhere"]), unique=True))
    table = FittingTable(*headers, wrap=wrap, leave_out=leave_out, say_so=True)
    table.add_row(*(h.lower() * n for h, n in zip(headers, lengths, strict=True)))
    console = Console(width=columns, color_system=None)
    with console.capture() as capture:
        console.print(table)
    shown, _, missing = capture.get().partition("too narrow for")
    assert max(map(len, shown.splitlines())) <= columns
    assert headers[0] not in missing
    for header, length in zip(headers, lengths, strict=True):
        assert shown.count(header.lower()) == (0 if header in missing else length)


@given(
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    columns=st.integers(20, 120),
)
def test_a_table_leaves_out_no_more_than_it_must(widths: list[int], columns: int) -> None:
    headers = [f"{n}" for n in range(len(widths))]
    table = FittingTable(*headers, leave_out=headers[:0:-1], say_so=True)
    table.add_row(*("x" * width for width in widths))
    console = Console(width=columns, color_system=None)
    with console.capture() as capture:
        console.print(table)
    head, row, *_ = capture.get().splitlines()
    shown = len(head.split())
    assert row.split() == ["x" * width for width in widths[:shown]] or shown == 1
    if shown < len(widths):
        assert sum(widths[: shown + 1]) + 2 * shown > columns


def test_loss_is_the_last_metric_to_be_left_out() -> None:
    table = courses.samples([make_series(name, [1.0]) for name in ("epoch", "grad", "loss")], [])
    console = Console(width=24, color_system=None)
    with console.capture() as capture:
        console.print(table)
    assert capture.get().splitlines()[0].split() == ["STEP", "loss", "UPDATE"]


def test_a_narrow_table_says_what_is_missing() -> None:
    table = courses.samples([make_series(f"metric_{n}", [1.0]) for n in range(9)], [])
    console = Console(width=60, color_system=None)
    with console.capture() as capture:
        console.print(table)
    assert "metric_0" in capture.get().splitlines()[0]
    assert "too narrow for" in capture.get()


def test_lines_of_a_watch() -> None:
    job = make_job("a")
    event = control_pb2.WatchJobsResponse(type=control_pb2.JOB_EVENT_TYPE_MODIFIED, job=job)
    line = board.line(event, 0.0)
    assert line.endswith("a  RUNNING  step 120/1000  loss 1.235  lr 2e-05  3.25 steps/s")
    event.update.revision = 3
    event.update.state = update_pb2.UPDATE_STATE_REJECTED
    event.update.rejected.message = "no"
    event.update.spec.changes.append(changes.multiply("lr", 2))
    assert board.line(event, 0.0).endswith("a update 3 REJECTED: lr × 2 (no)")
    deleted = control_pb2.WatchJobsResponse(type=control_pb2.JOB_EVENT_TYPE_DELETED, job=job)
    assert board.line(deleted, 0.0).endswith("a DELETED")
    assert not board.line(control_pb2.WatchJobsResponse(), 0.0)
