from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics_service.catalogue.toml_lines import KeyPath, key_lines


def paths(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """All paths of a parsed document, the standard parser's word for what is there."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*path, index))


DOCUMENT = '''\
# a comment with [brackets] and = signs
title = "one"  # trailing
"quoted key" . inner = 'literal # no comment'

[[models]]
id = "a"
text = """
[not a table]
x = 1 \\"""
"""
list = [ # open
  1, "two, ]",
  { deep = [ "#", 2 ] },
]

[models.prices]
input = 0.15

[[models]]
id = "b"
prices = { input = "1", output = 2026-01-01 }
raw = \'\'\'
[[models]]
id = "fake"\'\'\'\'
quotes = """"two quotes"" inside"""""
empty = ""
at = 2026-01-01 10:00:00Z

[other."with.dot"]
x = {}
'''


def test_lines_of_a_document_with_everything_in_it() -> None:
    lines = key_lines(DOCUMENT)
    assert set(lines) == set(paths(tomllib.loads(DOCUMENT)))
    written = DOCUMENT.split("\n")
    expected = {
        ("title",): "title =",
        ("quoted key", "inner"): '"quoted key"',
        ("models", 0, "list"): "list =",
        ("models", 0, "list", 0): "  1,",
        ("models", 0, "list", 2, "deep"): "  { deep",
        ("models", 0, "prices"): "[models.prices]",
        ("models", 0, "prices", "input"): "input = 0.15",
        ("models", 1, "id"): 'id = "b"',
        ("models", 1, "prices", "output"): "prices = {",
        ("models", 1, "quotes"): "quotes =",
        ("models", 1, "empty"): "empty =",
        ("models", 1, "at"): "at =",
        ("other", "with.dot", "x"): "x = {}",
    }
    for path, start in expected.items():
        assert written[lines[path] - 1].startswith(start), path
    assert lines["models", 0] < lines["models", 1]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_count_alike_with_either_line_end(newline: str) -> None:
    text = newline.join(["", "a = 1", "[b]", "c = 2", ""])
    assert key_lines(text) == {("a",): 2, ("b",): 3, ("b", "c"): 4}


KEYS = st.one_of(
    st.text("ab-_1", min_size=1, max_size=3),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=4),
)
STRINGS = st.text(st.sampled_from("a\"'#[]{}=,.\\ é"), max_size=8)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def inline(value: object) -> str:
    match value:
        case str():
            return quoted(value)
        case bool():
            return str(value).lower()
        case list():
            return "[" + ", \n ".join(map(inline, value)) + " ]"
        case dict():
            return "{" + ",".join(f" {quoted(k)} = {inline(v)}" for k, v in value.items()) + " }"
        case _:
            return str(value)


VALUES = st.recursive(
    st.one_of(STRINGS, st.booleans(), st.integers(-9, 9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(KEYS, st.integers(0, 9), max_size=2)
    ),
    max_leaves=6,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=3)


@given(st.lists(TABLES, max_size=4), TABLES, st.sampled_from(["\n", "\n\n# [x]\n", "   \n"]))
def test_every_key_that_the_parser_sees_has_the_line_it_is_written_on(
    tables: list[dict[str, object]], top: dict[str, object], gap: str
) -> None:
    top.pop("models", None)
    text = "".join(f"{quoted(key)} = {inline(value)}{gap}" for key, value in top.items())
    for table in tables:
        text += f"[[ models ]]{gap}"
        text += "".join(f"{quoted(key)} = {inline(value)}{gap}" for key, value in table.items())
    lines = key_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    written = text.split("\n")
    for path, line in lines.items():
        if isinstance(path[-1], str) and path != ("models",):
            assert quoted(path[-1]) in written[line - 1]
