"""Reads catalogue files: the built-in one and, merged over it, the user's own."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.checks import (
    Entry,
    model_problems,
    name_problems,
    provider_model_of,
    provider_problems,
)
from analytics_service.catalogue.fields import (
    MODEL_FIELDS,
    PRICE_FIELDS,
    PROVIDER_FIELDS,
    Check,
    NotAllowed,
    unknown_key,
)
from analytics_service.catalogue.model import CatalogueModel, ProviderSpec, Stage, Tier
from analytics_service.catalogue.problems import CatalogueError, Place, Problem
from analytics_service.catalogue.toml_lines import KeyPath, key_lines
from analytics_service.usage.prices import CATALOGUE_FILE
from analytics_service.usage.records import Rates

_BUILT_IN = "models.toml"
_MAX_BYTES = 1 << 20
_KINDS = ("providers", "models")


@dataclass(frozen=True, slots=True)
class LoadedCatalogue:
    """What the files say.

    Attributes:
        catalogue: Providers and models.
        prices: Prices of the files' own, by the id of the model.
    """

    catalogue: Catalogue
    prices: Mapping[str, Rates]


def load_catalogue(path: Path | None = None) -> LoadedCatalogue:
    """Reads the built-in catalogue and a file of the user's own over it.

    Args:
        path: The user's file; None: there is none.

    Raises:
        CatalogueError: The file can not be read, or is wrong; tells all problems at once.
    """
    if path is None:
        return parse_catalogue(None)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CatalogueError(
                [Problem(str(path), 0, "", f"larger than the {_MAX_BYTES} bytes that are allowed")]
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(
            [Problem(str(path), 0, "", f"the file can not be read: {error}")]
        ) from error
    return parse_catalogue(text, str(path))


def parse_catalogue(text: str | None, name: str = _BUILT_IN) -> LoadedCatalogue:
    """Reads the built-in catalogue and a text over it.

    Args:
        text: The user's file; None: there is none.
        name: Name of the file, for messages.

    Raises:
        CatalogueError: It is wrong; tells all problems at once.
    """
    reader = _Reader()
    reader.read(_built_in_text(), _BUILT_IN, built_in=True)
    if text is not None:
        reader.read(text, name, built_in=False)
    return reader.finish()


@cache
def _built_in_text() -> str:
    return (files(__package__) / _BUILT_IN).read_text(encoding="utf-8")


class _Reader:
    """Collects entries and problems of one file after the other."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in _KINDS}

    def read(self, text: str, file: str, *, built_in: bool) -> None:
        """Reads a file; its entries change those of the same id."""
        try:
            document = tomllib.loads(text, parse_float=Decimal)
            lines = key_lines(text)
        except tomllib.TOMLDecodeError as error:
            self._problems.append(_syntax_problem(file, error))
            return
        except RecursionError:
            self._problems.append(Problem(file, 0, "", "tables or lists are nested too deeply"))
            return
        for key in document.keys() - set(_KINDS):
            self._problems.append(Problem(file, lines[key,], key, unknown_key(key, _KINDS)))
        for kind in _KINDS:
            tables = document.get(kind, [])
            if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
                self._problems.append(
                    Problem(file, lines[kind,], kind, f"allowed: tables, each under [[{kind}]]")
                )
                continue
            seen: dict[str, int] = {}
            for index, table in enumerate(tables):
                place = _place(file, lines, kind, index)
                self._read_entry(kind, table, place, seen, built_in=built_in)

    def _read_entry(
        self,
        kind: str,
        table: dict[str, object],
        place: Place,
        seen: dict[str, int],
        *,
        built_in: bool,
    ) -> None:
        fields = PROVIDER_FIELDS if kind == "providers" else MODEL_FIELDS
        entry = Entry(place, built_in=built_in)
        entry.values = dict(self._checked(table, fields, place, entry.faulty))
        entry.places = dict.fromkeys(table, place)
        if "prices" in entry.values:
            entry.values["prices"] = self._prices(entry, place)
        if "id" not in entry.values:
            if "id" not in entry.faulty:
                self._problems.append(place.problem("", "the key id is missing"))
            return
        key = entry.id.casefold()
        if key in seen:
            self._problems.append(
                place.problem("id", f'got "{entry.id}", which line {seen[key]} has already')
            )
            return
        seen[key] = place.lines["id"]
        before = self._entries[kind].get(key)
        self._entries[kind][key] = entry if before is None else _merged(before, entry)

    def _prices(self, entry: Entry, place: Place) -> Rates | None:
        faulty: set[str] = set()
        values = dict(self._checked(entry.values["prices"], PRICE_FIELDS, place, faulty, "prices."))
        missing = [name for name in ("input", "output") if name not in values.keys() | faulty]
        for name in missing:
            self._problems.append(
                place.problem("prices", f"the key {name} is missing; a price of 0 is written out")
            )
        if missing or faulty:
            entry.faulty.add("prices")
            return None
        return Rates(
            values["input"],
            values["output"],
            values.get("cache_read"),
            values.get("cache_write"),
            CATALOGUE_FILE,
        )

    def _checked(
        self,
        table: Mapping[str, object],
        fields: Mapping[str, Check],
        place: Place,
        faulty: set[str],
        prefix: str = "",
    ) -> Iterator[tuple[str, Any]]:
        """Yields what is allowed; reports the rest."""
        for name, value in table.items():
            check = fields.get(name)
            if check is None:
                self._problems.append(place.problem(prefix + name, unknown_key(name, fields)))
                continue
            try:
                yield name, check(value)
            except NotAllowed as error:
                faulty.add(name)
                self._problems.append(place.problem(prefix + name, str(error)))

    def finish(self) -> LoadedCatalogue:
        """Checks what the files say together."""
        providers = self._entries["providers"]
        models = self._entries["models"]
        for entry in providers.values():
            self._problems += provider_problems(entry)
        for entry in models.values():
            self._problems += model_problems(entry, providers, models)
        self._problems += name_problems(models)
        if self._problems:
            raise CatalogueError(self._problems)
        return LoadedCatalogue(
            Catalogue(map(_provider, providers.values()), map(_model, models.values())),
            {
                entry.id: entry.values["prices"]
                for entry in models.values()
                if "prices" in entry.values
            },
        )


def _syntax_problem(file: str, error: tomllib.TOMLDecodeError) -> Problem:
    message = str(error)
    match = re.search(r" \(at line (\d+), column \d+\)$", message)
    if match is None:  # "at end of document"
        return Problem(file, 0, "", f"this is no TOML: {message}")
    return Problem(file, int(match[1]), "", f"this is no TOML: {message[: match.start()]}")


def _place(file: str, lines: Mapping[KeyPath, int], kind: str, index: int) -> Place:
    return Place(
        file,
        lines[kind, index],
        f"{kind}[{index}]",
        {
            ".".join(map(str, path[2:])): line
            for path, line in lines.items()
            if path[:2] == (kind, index) and len(path) > 2
        },
    )


def _merged(before: Entry, after: Entry) -> Entry:
    """An entry with what a later file changes of it."""
    values, places = dict(before.values), dict(before.places)
    if after.values.get("stage") is Stage.ACTIVE:
        # An end that is called off is none.
        for name in ("shutdown", "successor"):
            values.pop(name, None)
            places.pop(name, None)
    values |= {name: value for name, value in after.values.items() if name != "id"}
    places |= after.places
    return Entry(after.place, values, places, before.built_in, before.faulty | after.faulty)


def _provider(entry: Entry) -> ProviderSpec:
    values = entry.values
    return ProviderSpec(
        id=entry.id,
        display_name=values.get("display_name", entry.id),
        protocol=values["protocol"],
        base_url=values.get("base_url"),
        api_key_env=values.get("api_key_env"),
        price_list=values.get("price_list"),
    )


def _model(entry: Entry) -> CatalogueModel:
    values = entry.values
    return CatalogueModel(
        id=entry.id,
        display_name=values.get("display_name", entry.id),
        provider=values["provider"],
        provider_model=provider_model_of(entry),
        context_window=values["context_window"],
        max_output_tokens=values.get("max_output_tokens", values["context_window"]),
        tools=values.get("tools", False),
        tier=values.get("tier", Tier.MEDIUM),
        aliases=values.get("aliases", ()),
        stage=values.get("stage", Stage.ACTIVE),
        shutdown=values.get("shutdown"),
        successor=values.get("successor"),
        note=values.get("note", ""),
    )
