"""Reading the file that tells how a run was steered."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.cli import export
from midcourse.control.v1 import job_pb2, parameter_pb2, update_pb2
from trainer_agent.replay import recipe
from trainer_agent.training.document import ConfigurationError

WHOLE = """\
version: 1
job: my-run
method: sft
updates:
  - step: 9
    revision: 7
    changes:
      - {parameter: beta, release: true}
  - step: 3
    revision: 2
    author: ops
    reason: loss is flat
    changes:
      - {parameter: learning_rate, set: 2e-4, mode: hold, hold_steps: 5, group: "0"}
      - {parameter: global_batch_size, multiply: 2, coupling: sqrt}
      - parameter: weight_decay
        ramp: {value: 0.1, steps: 4}
    action: evaluate
  - step: 3
    revision: 1
    changes:
      - parameter: learning_rate
        schedule: {shape: cosine, peak: 1e-3, warmup_steps: 2, floor: 1e-5, steps: 20}
"""


def test_a_whole_file() -> None:
    read = recipe.parse(WHOLE, "run.yaml")
    assert (read.job, read.method) == ("my-run", "sft")
    assert [each.revision for each in read.updates] == [1, 2, 7]
    schedule, several, release = (each.update() for each in read.updates)
    assert schedule.spec.changes[0] == update_pb2.Change(
        parameter="learning_rate",
        schedule=update_pb2.ScheduleChange(
            shape=update_pb2.SCHEDULE_SHAPE_COSINE, peak=1e-3, warmup_steps=2, floor=1e-5, steps=20
        ),
    )
    held, doubled, ramp = several.spec.changes
    assert held == update_pb2.Change(
        parameter="learning_rate",
        group="0",
        set=update_pb2.SetChange(
            value=parameter_pb2.Value(number=2e-4), mode=update_pb2.SET_MODE_HOLD, hold_steps=5
        ),
    )
    assert (doubled.multiply.factor, doubled.coupling) == (2.0, update_pb2.COUPLING_SQRT)
    assert (ramp.ramp.value.number, ramp.ramp.steps) == (0.1, 4)
    assert several.spec.action.WhichOneof("kind") == "evaluate"
    assert (several.author, several.spec.reason) == ("ops", "loss is flat")
    assert (several.spec.apply_at.step, several.spec.apply_at.max_step) == (3, 3)
    assert release.spec.changes[0].WhichOneof("operation") == "release"


def test_without_revisions_updates_are_numbered_by_their_steps() -> None:
    text = "version: 1\nupdates: [{step: 8, action: stop}, {step: 2, action: evaluate}]"
    read = recipe.parse(text, "run.yaml")
    assert [(each.revision, each.step) for each in read.updates] == [(1, 2), (2, 8)]


TWO = "version: 1\nupdates:\n- {{step: 4, revision: 1, action: stop}}\n- {{{}, action: stop}}"
CHANGE = "version: 1\nupdates:\n  - step: 3\n    changes:\n      - "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("updates: []", "run.yaml:1:1: version: this key is missing"),
        ("version: 2", "run.yaml:1:10: version: expected 1, got 2"),
        ("version: 1\nupdate: []", "run.yaml:2:1: update: there is no such key; did you mean upd"),
        (
            "version: 1\nupdates:\n- step: 1\n  action: stop",
            "run.yaml:3:3: updates[0]: step must be at least 2, got 1: the first step uses what",
        ),
        (
            "version: 1\nupdates:\n- stepp: 4\n  action: stop",
            "run.yaml:3:3: updates[0].stepp: there is no such key; did you mean step?",
        ),
        ("version: 1\nupdates:\n- step: 4", "run.yaml:3:3: updates[0]: an update needs changes"),
        (
            "version: 1\nupdates:\n- {step: 4, action: pause}",
            "run.yaml:3:21: updates[0].action: expected one of evaluate, save_checkpoint, stop",
        ),
        (
            TWO.format("step: 5"),
            "run.yaml:4:3: updates[1]: it has no revision and other updates have",
        ),
        (
            TWO.format("step: 5, revision: 1"),
            "run.yaml:4:13: updates[1]: its revision 1 is that of updates[0] too; give each its",
        ),
        (
            CHANGE + "{parameter: learning_rate}",
            "run.yaml:5:9: updates[0].changes[0]: a change has exactly one of set, multiply, ramp,",
        ),
        (
            CHANGE + "{parameter: learning_rate, set: 0.1, multiply: 2.0}",
            "got set and multiply",
        ),
        (CHANGE + "{parameter: x, set: false, release: true}", "got set and release"),
        (
            CHANGE + "{parameter: learning_rate, multiply: fast}",
            "run.yaml:5:46: updates[0].changes[0].multiply: expected a number, got 'fast'",
        ),
        (CHANGE + "{parameter: x, multiply: 2, mode: hold}", "mode goes with set"),
        (CHANGE + "{parameter: x, set: 2, hold_steps: 4}", "hold_steps goes with mode: hold"),
        (CHANGE + "{parameter: x, set: 2, mode: hold, hold_steps: 0}", "at least 1, got 0"),
        (CHANGE + "{parameter: x, release: true, coupling: sqrt}", "coupling goes with set or mul"),
        (CHANGE + "{parameter: x, ramp: {value: 1, steps: 0}}", "steps must be at least 1, got 0"),
        (CHANGE + "{parameter: x, schedule: {shape: square}}", "expected one of linear, cosine"),
        (CHANGE + "{parameter: x, group: 0, set: 1}", "got 0; put it in quotes"),
        ("version: [", "this is no YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_key(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        recipe.parse(text, "run.yaml")
    assert said in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    text = "version: 1\njob: 5\nupdates:\n- {step: x, action: stop}\n- {step: 2, reason: 1}"
    with pytest.raises(ConfigurationError) as caught:
        recipe.parse(text, "run.yaml")
    assert [each.key for each in caught.value.problems] == [
        "job",
        "updates[0].step",
        "updates[1].reason",
    ]


def test_text_is_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8"):
        recipe.load(path)


finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.one_of(
    finite.map(lambda value: parameter_pb2.Value(number=value)),
    st.integers(-(2**63), 2**63 - 1).map(lambda value: parameter_pb2.Value(integer=value)),
    st.booleans().map(lambda value: parameter_pb2.Value(boolean=value)),
    st.text(min_size=0, max_size=20).map(lambda value: parameter_pb2.Value(text=value)),
)
steps = st.integers(1, 10**9)


@st.composite
def changes(draw: st.DrawFn) -> update_pb2.Change:
    change = update_pb2.Change(parameter=draw(st.sampled_from(["learning_rate", "beta", "x"])))
    change.group = draw(st.sampled_from(["", "0", "decay"]))
    match draw(st.integers(0, 5)):
        case 0:
            change.set.value.CopyFrom(draw(values))
        case 1:
            change.set.value.number = draw(finite)
            change.set.mode = draw(
                st.sampled_from([update_pb2.SET_MODE_PEAK, update_pb2.SET_MODE_HOLD])
            )
            if change.set.mode == update_pb2.SET_MODE_HOLD and draw(st.booleans()):
                change.set.hold_steps = draw(steps)
        case 2:
            change.multiply.factor = draw(finite)
            change.coupling = draw(
                st.sampled_from(
                    [
                        update_pb2.COUPLING_UNSPECIFIED,
                        update_pb2.COUPLING_LINEAR,
                        update_pb2.COUPLING_SQRT,
                    ]
                )
            )
        case 3:
            change.ramp.value.number = draw(finite)
            change.ramp.steps = draw(steps)
        case 4:
            change.schedule.shape = draw(
                st.sampled_from(
                    [
                        update_pb2.SCHEDULE_SHAPE_LINEAR,
                        update_pb2.SCHEDULE_SHAPE_COSINE,
                        update_pb2.SCHEDULE_SHAPE_CONSTANT,
                    ]
                )
            )
            change.schedule.floor = draw(finite)
            change.schedule.warmup_steps = draw(steps)
            if draw(st.booleans()):
                change.schedule.peak = draw(finite)
                change.schedule.steps = draw(steps)
        case _:
            change.release.SetInParent()
    return change


@given(
    made=st.lists(changes(), min_size=1, max_size=3), step=st.integers(2, 10**9), json=st.booleans()
)
def test_what_is_exported_is_read_back(
    made: list[update_pb2.Change], step: int, json: bool
) -> None:
    update = update_pb2.Update(
        revision=3, author='o\u00f6 "x"\n', spec=update_pb2.UpdateSpec(changes=made)
    )
    update.applied.step = step
    written = export.recipe(job_pb2.Job(name="jobs/a"), [update], [])
    text = export.to_json(written) if json else export.to_yaml(written)
    (read,) = recipe.parse(text, "run.json" if json else "run.yaml").updates
    back = read.update()
    assert (back.author, read.step, list(back.spec.changes)) == (update.author, step, made)
