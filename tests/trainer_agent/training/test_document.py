"""Files keep their places, and mean what people think that they mean."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_agent.training.document import ConfigurationError, override, read

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
    # YAML has no characters that do not print, other than by escapes.
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), json_values, max_size=5))
def test_json_means_what_json_means(value: dict[str, Any]) -> None:
    assert read(json.dumps(value), "run.json").plain() == value
    assert read(json.dumps(value, indent="\t"), "run.json").plain() == value


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 1e-4),
        ("3", 3),
        ("-0.5", -0.5),
        (".inf", math.inf),
        ("0x10", 16),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'7'", "7"),
        ("1_000", "1_000"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_plain_scalars_follow_yaml_1_2(written: str, meant: object) -> None:
    assert read(f"key: {written}", "run.yaml").plain() == {"key": meant}


def test_every_value_knows_its_place() -> None:
    root = read("model:\n  path: here\ndata: [1,\n  2]\n", "run.yaml")
    assert isinstance(root.value, dict)
    model = root.value["model"]
    assert isinstance(model.value, dict)
    assert model.key_place == "run.yaml:1:1"
    assert model.value["path"].key_place == "run.yaml:2:3"
    assert model.value["path"].place == "run.yaml:2:9"
    data = root.value["data"].value
    assert isinstance(data, list)
    assert [entry.place for entry in data] == ["run.yaml:3:8", "run.yaml:4:3"]


def test_what_is_merged_in_gives_way() -> None:
    text = "base: &base {a: 1, b: 2}\nhere:\n  <<: *base\n  b: 3\n"
    assert read(text, "run.yaml").plain()["here"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "run.yaml:2:1: the key 'a' is written twice"),
        ("a: [1\nb: 2\n", "run.yaml:2:2: this is no YAML"),
        ("- a\n", "run.yaml:1:1: the file must hold sections"),
        ("just text", "run.yaml:1:1: the file must hold sections"),
        ("a: &a [*a]\n", "run.yaml:1:4: an alias stands within what it stands for"),
        ("a: !!python/object:os.system x\n", "run.yaml:1:4: the tag"),
        ("? [1]\n: 2\n", "run.yaml:1:3: a key must be text"),
        ("a: \x00", "run.yaml: this is no YAML"),
        ("<<: 3\n", "run.yaml:1:1: expected a mapping"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        read(text, "run.yaml")
    assert str(error.value).startswith(said)


def test_an_empty_file_holds_nothing() -> None:
    assert read("# nothing\n", "run.yaml").plain() == {}


def test_assignments_lie_over_the_file() -> None:
    root = read("training: {seed: 1}\nmodel:\n", "run.yaml")
    override(
        root,
        ["training.seed=2", "training.learning_rate=1e-4", "model.path=x", "new.deep=[a, {b: c}]"],
    )
    assert root.plain() == {
        "training": {"seed": 2, "learning_rate": 1e-4},
        "model": {"path": "x"},
        "new": {"deep": ["a", {"b": "c"}]},
    }
    assert isinstance(root.value, dict)
    training = root.value["training"].value
    assert isinstance(training, dict)
    assert training["seed"].place == "--set training.seed=2"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("training.seed", "--set training.seed: this must be KEY=VALUE"),
        ("=3", "--set =3: this must be KEY=VALUE"),
        ("a..b=3", "--set a..b=3: this must be KEY=VALUE"),
        ("a.b=[1", "--set a.b=[1: a.b: the value '[1' is no YAML"),
        ("seed.x.y=1", "--set seed.x.y=1: seed.x.y: seed is no section here but 3"),
    ],
)
def test_a_wrong_assignment_names_its_flag(assignment: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        override(read("seed: 3", "run.yaml"), [assignment])
    assert str(error.value).startswith(said)
