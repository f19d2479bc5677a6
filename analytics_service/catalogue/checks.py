"""Rules of a catalogue that tie keys, providers and models together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from analytics_service.catalogue.fields import did_you_mean, is_loopback, is_unencrypted
from analytics_service.catalogue.model import Protocol, Stage
from analytics_service.catalogue.problems import Place, Problem
from analytics_service.usage.prices import is_listed, price_lists


@dataclass(slots=True)
class Entry:
    """A provider or model as written down, perhaps in two files.

    Attributes:
        place: Where it was first written down, in the user's file if there.
        values: Its values, checked one by one.
        places: Where each key was written down.
        built_in: The built-in file has it.
        faulty: Keys whose values are not allowed; they are reported.
    """

    place: Place
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    built_in: bool = False
    faulty: set[str] = field(default_factory=set)

    @property
    def id(self) -> str:
        """The id, which every entry has."""
        return str(self.values["id"])

    def problem(self, name: str, description: str) -> Problem:
        """A problem of one of its keys, where that was written down; of all with no name."""
        return self.places.get(name, self.place).problem(name, description)


def provider_problems(entry: Entry) -> Iterator[Problem]:
    """What is wrong with a provider."""
    values = entry.values
    if "protocol" not in values.keys() | entry.faulty:
        yield entry.problem("", 'the key protocol is missing, such as protocol = "openai"')
    url, protocol = values.get("base_url"), values.get("protocol")
    if protocol is Protocol.LOCAL and not entry.built_in:
        yield entry.problem(
            "protocol", 'got "local", allowed: "openai", "openai-responses", "anthropic"'
        )
    if protocol is Protocol.LOCAL and url is not None:
        yield entry.problem("base_url", "a provider in this process has none")
    if (
        protocol is Protocol.OPENAI
        and not entry.built_in
        and "base_url" not in values.keys() | entry.faulty
    ):
        yield entry.problem(
            "", 'the key base_url is missing, such as base_url = "http://localhost:8000/v1"'
        )
    if (
        url is not None
        and is_unencrypted(url)
        and "api_key_env" in values
        and not is_loopback(url)
        and not values.get("allow_insecure", False)
    ):
        yield entry.problem(
            "base_url",
            f'got "{url}", which would send the key unencrypted to another host, allowed: '
            "https://, or allow_insecure = true in a network that you trust",
        )
    price_list = values.get("price_list")
    if price_list is not None and price_list not in price_lists():
        yield entry.problem(
            "price_list",
            f'got "{price_list}", allowed: the id of a provider in genai-prices'
            f"{did_you_mean(price_list, price_lists())}",
        )


def model_problems(
    entry: Entry, providers: Mapping[str, Entry], models: Mapping[str, Entry]
) -> Iterator[Problem]:
    """What is wrong with a model, beside the providers and the other models."""
    values = entry.values
    for name in ("provider", "context_window"):
        if name not in values.keys() | entry.faulty:
            yield entry.problem("", f"the key {name} is missing")
    window, most = values.get("context_window"), values.get("max_output_tokens")
    if window is not None and most is not None and most > window:
        yield entry.problem(
            "max_output_tokens", f"got {most}, allowed: at most {window}, as many as context_window"
        )
    if "shutdown" in values and values.get("stage", Stage.ACTIVE) is Stage.ACTIVE:
        yield entry.problem("shutdown", 'what has an end is stage = "deprecated" or "retired"')
    yield from _successor_problems(entry, models)
    provider_id = values.get("provider")
    if provider_id is None:
        return
    provider = next((each for each in providers.values() if each.id == provider_id), None)
    if provider is None:
        known = [each.id for each in providers.values()]
        yield entry.problem(
            "provider",
            f'got "{provider_id}", allowed: {", ".join(known)}{did_you_mean(provider_id, known)}',
        )
    elif not _has_price(entry, provider):
        yield entry.problem(
            "",
            f"no price of {provider_model_of(entry)} is known. Write it down in US dollars per "
            'million tokens, also if it is 0: prices = { input = "0", output = "0" }',
        )


def _has_price(entry: Entry, provider: Entry) -> bool:
    if "prices" in entry.values.keys() | entry.faulty:
        return True
    price_list = provider.values.get("price_list")
    return price_list is not None and is_listed(price_list, provider_model_of(entry))


def _successor_problems(entry: Entry, models: Mapping[str, Entry]) -> Iterator[Problem]:
    successor = entry.values.get("successor")
    if successor is None:
        return
    by_id = {each.id: each for each in models.values()}
    if successor not in by_id:
        yield entry.problem(
            "successor",
            f'got "{successor}", allowed: the id of a model{did_you_mean(successor, by_id)}',
        )
        return
    chain = [entry.id]
    while successor in by_id:
        chain.append(successor)
        if successor == entry.id:
            yield entry.problem("successor", f"succeeds itself: {' → '.join(chain)}")
            return
        if successor in chain[:-1]:
            return  # a loop further on, which is reported where it is
        successor = by_id[successor].values.get("successor")


def name_problems(models: Mapping[str, Entry]) -> Iterator[Problem]:
    """What is wrong with the names that stand for models."""
    owners = {key: entry.id for key, entry in models.items()}
    for entry in models.values():
        for alias in entry.values.get("aliases", ()):
            owner = owners.setdefault(alias.casefold(), entry.id)
            if owner != entry.id:
                yield entry.problem("aliases", f'got "{alias}", which stands for {owner} already')
            elif alias.casefold() == entry.id.casefold():
                yield entry.problem("aliases", f'got "{alias}", which is the id of the model')
    for entry in models.values():
        names = [alias.casefold() for alias in entry.values.get("aliases", ())]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield entry.problem("aliases", f'got "{name}" more than once')


def provider_model_of(entry: Entry) -> str:
    """The provider's own name of a model."""
    return str(entry.values.get("provider_model", entry.id))
