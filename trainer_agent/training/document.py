"""Reads a YAML or JSON file so that every value still knows where it was written.

YAML is read by the core schema of YAML 1.2: ``1e-4`` is a number, ``no`` and ``on`` are text, a key
that is written twice is an error. JSON is read as the YAML that it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Scalar: TypeAlias = "str | int | float | bool | None"
Content: TypeAlias = "Scalar | list[Entry] | dict[str, Entry]"


@dataclass(slots=True)
class Entry:
    """A value and where it was written."""

    value: Content
    """The value; lists and mappings hold entries."""
    place: str
    """Where the value was written: ``run.yaml:12:3`` or ``--set training.seed=1``."""
    key_place: str
    """Where its key was written; without a key, as ``place``."""

    def plain(self) -> Any:
        """Return the value without the places."""
        match self.value:
            case dict():
                return {key: entry.plain() for key, entry in self.value.items()}
            case list():
                return [entry.plain() for entry in self.value]
            case _:
                return self.value


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a configuration."""

    place: str
    """Where it was written."""
    key: str
    """Which key, such as ``training.learning_rate``; empty: the file as such."""
    message: str
    """What is wrong, what was got, what is allowed."""

    def __str__(self) -> str:
        return (
            f"{self.place}: {self.key}: {self.message}"
            if self.key
            else f"{self.place}: {self.message}"
        )


class ConfigurationError(Exception):
    """A configuration that cannot be trained with.

    Attributes:
        problems: Everything that was found, in the order of the file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def read(text: str, source: str) -> Entry:
    """Return the content of a configuration file.

    Args:
        text: The file's text.
        source: The file's name, for places.

    Raises:
        ConfigurationError: It is no YAML, or no mapping at its top.
    """
    if Path(source).suffix == ".json":
        # YAML wants blanks where JSON allows tabs; within JSON's strings there are none.
        text = text.replace("\t", " ")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _place(source, mark) if mark is not None else source
        problem = error.problem or error.context or "it cannot be read"
        raise ConfigurationError([Problem(place, "", f"this is no YAML: {problem}")]) from error
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise ConfigurationError([Problem(source, "", f"this is no YAML: {error}")]) from error
    if node is None:
        return Entry({}, f"{source}:1:1", f"{source}:1:1")
    entry = _Reader(source).entry(node)
    if not isinstance(entry.value, dict):
        message = (
            f"the file must hold sections such as 'model:' and 'data:', got {show(entry.value)}"
        )
        raise ConfigurationError([Problem(entry.place, "", message)])
    return entry


def override(root: Entry, assignments: Sequence[str]) -> None:
    """Lay assignments of the command line over what the file holds.

    Args:
        root: The file's content; changed.
        assignments: Such as ``training.learning_rate=1e-4``. The value is read as YAML is.

    Raises:
        ConfigurationError: One is not of this form, or leads through what is no section.
    """
    for assignment in assignments:
        place = f"--set {assignment}"
        path, equals, written = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            message = "this must be KEY=VALUE, such as training.learning_rate=1e-4"
            raise ConfigurationError([Problem(place, "", message)])
        try:
            node = yaml.compose(written, Loader=_Loader)
        except yaml.YAMLError as error:
            message = f"the value {written!r} is no YAML; quote it as 'a: b' is quoted"
            raise ConfigurationError([Problem(place, path, message)]) from error
        at = root
        for depth, key in enumerate(keys[:-1], 1):
            assert isinstance(at.value, dict)
            below = at.value.get(key)
            if below is None or below.value is None:
                below = at.value[key] = Entry({}, place, place)
            if not isinstance(below.value, dict):
                above = ".".join(keys[:depth])
                message = f"{above} is no section here but {show(below.value)}"
                raise ConfigurationError([Problem(place, path, message)])
            at = below
        assert isinstance(at.value, dict)
        value: Content = None if node is None else _Reader(place, fixed=True).entry(node).value
        at.value[keys[-1]] = Entry(value, place, place)


def show(value: Content) -> str:
    """Return what a value is, for a message."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str() if len(value) > 60:
            return f"{value[:60]!r}…"
        case _:
            return repr(value)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Resolves plain scalars by the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as PyYAML declares it


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first
    )


class _Reader:
    """Turns YAML nodes into entries."""

    def __init__(self, source: str, *, fixed: bool = False) -> None:
        self._source = source
        self._fixed = fixed  # the source is the place
        self._within: set[int] = set()

    def entry(self, node: Any, key: Any = None) -> Entry:
        place = self._at(node)
        if id(node) in self._within:
            raise ConfigurationError(
                [Problem(place, "", "an alias stands within what it stands for")]
            )
        self._within.add(id(node))
        try:
            value = self._content(node)
        finally:
            self._within.discard(id(node))
        return Entry(value, place, place if key is None else self._at(key))

    def _content(self, node: Any) -> Content:
        if isinstance(node, yaml.SequenceNode):
            return [self.entry(child) for child in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node)
        return self._scalar(node)

    def _mapping(self, node: Any) -> dict[str, Entry]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigurationError([Problem(self._at(key), "", "a key must be text")])
            key.value = _joined(key.value)
            if key.value in seen and not key.tag.endswith(":merge"):
                message = f"the key {key.value!r} is written twice"
                raise ConfigurationError([Problem(self._at(key), "", message)])
            seen.add(key.value)
        try:
            yaml.constructor.SafeConstructor().flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            raise ConfigurationError([Problem(self._at(node), "", str(error.problem))]) from error
        # What was merged in comes first, and gives way.
        return {key.value: self.entry(value, key) for key, value in node.value}

    def _scalar(self, node: Any) -> Scalar:
        text: str = node.value
        match node.tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
            case "float":
                return float(text.replace(".inf", "inf").replace(".nan", "nan"))
            case "str":
                return _joined(text)
            case _:
                message = f"the tag {node.tag} has no meaning here"
                raise ConfigurationError([Problem(self._at(node), "", message)])

    def _at(self, node: Any) -> str:
        return self._source if self._fixed else _place(self._source, node.start_mark)


def _joined(text: str) -> str:
    """Join the halves that JSON escapes a character beyond U+FFFF by, which YAML leaves apart."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _place(source: str, mark: Any) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}"
