"""A steered run as a file: what is in it, and that readers of YAML and JSON read it alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from control_plane import actions, changes
from control_plane.cli.exits import ExitCode
from control_plane.cli.export import Entry, Recipe, recipe, to_json, to_yaml
from midcourse.control.v1 import control_pb2, job_pb2, update_pb2
from tests.support.fake_control_plane import FakeControlPlane
from tests.support.midcourse_command import Midcourse

JOB = job_pb2.Job(name="jobs/my-run", method="dpo")
LR = "learning_rate"


def span(instance: str, first: int, last: int | None = None) -> control_pb2.LineageSpan:
    return control_pb2.LineageSpan(instance_id=instance, first_step=first, last_step=last)


def applied(step: int, instance: str = "one") -> update_pb2.Applied:
    made = update_pb2.Applied(step=step, instance_id=instance)
    moved = made.transitions.add(parameter=LR)
    moved.old_value.number, moved.new_value.number = 2e-5, 1e-5
    return made


def update(
    revision: int, step: int, *asked: update_pb2.Change, instance: str = "one", **fields: Any
) -> update_pb2.Update:
    made = update_pb2.Update(
        revision=revision,
        state=update_pb2.UPDATE_STATE_APPLIED,
        author="ops",
        applied=applied(step, instance),
    )
    made.spec.changes.extend(asked)
    for name, value in fields.items():
        field = getattr(made if name == "reapplied" else made.spec, name)
        field.extend(value) if name == "reapplied" else field.CopyFrom(value)
    return made


def exported(
    *updates: update_pb2.Update, lineage: list[control_pb2.LineageSpan] | None = None
) -> list[dict[str, Any]]:
    made = recipe(JOB, updates, [span("one", 0)] if lineage is None else lineage)
    read = yaml.safe_load(to_yaml(made))
    as_json = to_json(made)
    assert read == json.loads(as_json) == yaml.safe_load(as_json) == made.content()
    assert (read["version"], read["job"], read["method"]) == (1, "my-run", "dpo")
    found: list[dict[str, Any]] = read["updates"]
    return found


def test_every_change_in_the_words_of_the_format() -> None:
    asked = [
        changes.set_value(LR, 2e-4),
        changes.set_value(LR, 1e-5, mode="peak"),
        changes.hold(LR, 0.1 + 0.2, steps=7, group="0"),
        changes.multiply(LR, 0.5),
        changes.ramp(LR, 1e-22, steps=9),
        changes.schedule(LR, "cosine", peak=3e-5, warmup_steps=2, floor=1e-6, steps=40),
        changes.schedule(LR, "constant"),
        changes.release("beta"),
        changes.set_value("global_batch_size", 64, coupling="linear"),
        changes.set_value("shuffle", False),
        changes.set_value("note", "no: # 'quoted' \"both\"\n\u2028 1e-5 😀"),
    ]
    (entry,) = exported(update(3, 120, *asked, action=actions.evaluate()))
    assert entry == {
        "step": 120,
        "revision": 3,
        "author": "ops",
        "changes": [
            {"parameter": LR, "set": 2e-4},
            {"parameter": LR, "set": 1e-5, "mode": "peak"},
            {"parameter": LR, "set": 0.1 + 0.2, "mode": "hold", "hold_steps": 7, "group": "0"},
            {"parameter": LR, "multiply": 0.5},
            {"parameter": LR, "ramp": {"value": 1e-22, "steps": 9}},
            {
                "parameter": LR,
                "schedule": {
                    "shape": "cosine",
                    "peak": 3e-5,
                    "warmup_steps": 2,
                    "floor": 1e-6,
                    "steps": 40,
                },
            },
            {
                "parameter": LR,
                "schedule": {"shape": "constant", "warmup_steps": 0, "floor": 0.0},
            },
            {"parameter": "beta", "release": True},
            {"parameter": "global_batch_size", "set": 64, "coupling": "linear"},
            {"parameter": "shuffle", "set": False},
            {"parameter": "note", "set": "no: # 'quoted' \"both\"\n\u2028 1e-5 😀"},
        ],
        "action": "evaluate",
    }
    assert isinstance(entry["changes"][0]["set"], float)
    assert isinstance(entry["changes"][8]["set"], int)


def test_it_reads_well() -> None:
    asked = update(3, 120, changes.set_value(LR, 1e-5))
    asked.spec.reason = "loss is flat"
    stopped = update(4, 200, action=actions.stop())
    del stopped.applied.transitions[:]
    stopped.applied.action_result.checkpoint = "/runs/checkpoint-199"
    assert to_yaml(recipe(JOB, [stopped, asked], [span("one", 0)])) == (
        "# What was changed in a run, and at which optimizer step it was first used.\n"
        "version: 1\n"
        'job: "my-run"\n'
        'method: "dpo"\n'
        "updates:\n"
        "  # learning_rate 2.0e-05 → 1.0e-05\n"
        "  - step: 120\n"
        "    revision: 3\n"
        '    author: "ops"\n'
        '    reason: "loss is flat"\n'
        "    changes:\n"
        '      - parameter: "learning_rate"\n'
        "        set: 1.0e-05\n"
        "  # /runs/checkpoint-199\n"
        "  - step: 200\n"
        "    revision: 4\n"
        '    author: "ops"\n'
        '    action: "stop"\n'
    )


def test_in_the_order_in_which_they_were_applied() -> None:
    cut = changes.multiply(LR, 0.5)
    found = exported(update(1, 50, cut), update(3, 20, cut), update(2, 20, cut))
    assert [(each["step"], each["revision"]) for each in found] == [(20, 2), (20, 3), (50, 1)]


def test_only_what_the_weights_went_through() -> None:
    """Process two went back to the checkpoint of step 40, three to that of step 60."""
    lineage = [span("one", 0, 40), span("two", 41, 60), span("three", 61)]
    cut = changes.multiply(LR, 0.5)
    found = exported(
        update(1, 30, cut),
        update(2, 41, cut),  # at the boundary of the checkpoint: it has it
        update(3, 50, cut),  # left behind, and not applied again by now
        update(4, 45, cut, reapplied=[applied(42, "two")]),
        update(5, 44, cut, reapplied=[applied(43, "two"), applied(61, "three")]),
        update(6, 55, action=actions.evaluate()),  # left behind
        update(7, 70, cut, instance="two"),  # left behind
        update(8, 61, cut, action=actions.stop(), instance="one", reapplied=[applied(62, "three")]),
        lineage=lineage,
    )
    assert [(each["revision"], each["step"]) for each in found] == [
        (1, 30),
        (2, 41),
        (4, 42),
        (5, 61),
        (8, 62),
    ]
    assert "action" not in found[-1]  # it was not repeated
    # A control plane of before does not tell the lineage.
    assert len(exported(update(1, 30, cut), lineage=[])) == 1


def test_what_was_rolled_back_is_a_note() -> None:
    cut = changes.multiply(LR, 0.5)
    lost = update(2, 41, cut)
    lost.rolled_back_by = 4
    unknown = update(3, 0, cut)
    unknown.rolled_back_by = 4
    made = recipe(JOB, [update(1, 41, cut), lost, unknown], [span("one", 0, 40), span("two", 41)])
    assert [each["revision"] for each in made.content()["updates"]] == [1]
    said = "learning_rate 2e-05 → 1e-05: left out, as revision 4 went back to before it"
    text = to_yaml(made)
    assert f"# revision 2, {said}\n" in text
    assert f"# revision 3, {said}\n" in text


def test_what_a_replay_does_without_is_a_note() -> None:
    cut = changes.multiply(LR, 0.5)
    unknown = update(6, 0, cut)
    pending = update_pb2.Update(revision=7, state=update_pb2.UPDATE_STATE_PENDING)
    made = recipe(
        JOB,
        [
            update(1, 10, action=actions.pause()),
            update(2, 10, action=actions.resume()),
            update(3, 11, cut, action=actions.roll_back("/runs/1\n- step: 9")),
            unknown,
            pending,
        ],
        [span("one", 0)],
    )
    text = to_yaml(made)
    assert [(each["revision"], "action" in each) for each in made.content()["updates"]] == [
        (3, False)
    ]
    for note in (
        "# revision 1 at step 10: pause is left out, as a replay does without",
        "# revision 3 at step 11: roll back to /runs/1 - step: 9 is left out",
        "# revision 6, ",
        "left out, its step is not known",
    ):
        assert note in text
    assert "revision 7" not in text
    assert yaml.safe_load(text) == made.content()
    assert exported(update(1, 10, action=actions.pause())) == []


scalars = st.one_of(
    st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
)
change = st.dictionaries(
    st.sampled_from(["parameter", "set", "multiply", "group"]),
    scalars | st.dictionaries(st.sampled_from(["value", "steps", "shape"]), scalars, min_size=1),
    min_size=1,
)


@given(st.lists(st.tuples(scalars, st.lists(change, min_size=1, max_size=3), st.text())))
def test_every_value_is_read_as_it_was(entries: list[tuple[Any, list[Any], str]]) -> None:
    made = Recipe(
        "job",
        "sft",
        tuple(
            Entry({"reason": reason, "changes": asked}, (note,)) for reason, asked, note in entries
        ),
    )
    as_yaml, as_json = to_yaml(made), to_json(made)
    for read in (yaml.safe_load(as_yaml), yaml.safe_load(as_json), json.loads(as_json)):
        assert read == made.content()
        assert repr(read) == repr(made.content())  # 1 is not True, and 0.0 not -0.0


def test_the_verb(midcourse: Midcourse, server: FakeControlPlane, tmp_path: Path) -> None:
    midcourse("set", "my-run", "learning_rate=5e-5", "--reason", "flat")
    midcourse("pause", "my-run")
    file = tmp_path / "run.yaml"
    said = midcourse("history", "my-run", "--export", str(file)).stdout
    assert said == f"1 update written to {file}\n"
    assert yaml.safe_load(file.read_text("utf-8"))["updates"] == [
        {
            "step": 121,
            "revision": 1,
            "author": "ops",
            "reason": "flat",
            "changes": [{"parameter": LR, "set": 5e-5}],
        }
    ]
    assert midcourse("history", "my-run", "--export", "-").stdout == file.read_text("utf-8")
    assert midcourse.json("history", "my-run", "--export", "-")["updates"][0]["step"] == 121
    midcourse("history", "my-run", "--export", str(file), "-o", "json")
    assert json.loads(file.read_text("utf-8"))["job"] == "my-run"
    server.lineage = [span("another", 0)]
    assert midcourse.json("history", "my-run", "--export", "-")["updates"] == []


@pytest.mark.parametrize("options", [["--last", "1", "--export", "x"], ["--export", "."]])
def test_what_can_not_be_exported_so(midcourse: Midcourse, options: list[str]) -> None:
    midcourse("history", "my-run", *options, code=ExitCode.USAGE)


def test_a_file_that_can_not_be_written(midcourse: Midcourse, tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "run.yaml")
    error = midcourse("history", "my-run", "--export", missing, code=ExitCode.FAILURE)
    assert "can not be written: No such file or directory" in error.stderr
