"""The catalogue of models: finds them by the names that callers use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from datetime import date

from analytics_service.catalogue.model import CatalogueModel, ProviderSpec, Stage


class Catalogue:
    """Providers and models, in the order in which they were written down. Does not change."""

    def __init__(self, providers: Iterable[ProviderSpec], models: Iterable[CatalogueModel]) -> None:
        """Builds a catalogue of parts that fit together; `load` reads and checks files.

        Args:
            providers: The providers.
            models: The models.

        Raises:
            ValueError: Two share a name, or a model's provider or successor is not there.
        """
        self._providers: dict[str, ProviderSpec] = {}
        for provider in providers:
            if provider.id in self._providers:
                raise ValueError(f"provider {provider.id} is there twice")
            self._providers[provider.id] = provider
        self._models: dict[str, CatalogueModel] = {}
        self._by_name: dict[str, CatalogueModel] = {}
        for model in models:
            if model.provider not in self._providers:
                raise ValueError(f"model {model.id}: there is no provider {model.provider}")
            self._models[model.id] = model
            for name in (model.id, *model.aliases):
                if name.casefold() in self._by_name:
                    raise ValueError(f"the name {name} is there twice")
                self._by_name[name.casefold()] = model
        for model in self._models.values():
            if model.successor is not None and model.successor not in self._models:
                raise ValueError(f"model {model.id}: there is no successor {model.successor}")

    def __iter__(self) -> Iterator[CatalogueModel]:
        """All models."""
        return iter(self._models.values())

    def __len__(self) -> int:
        """How many models there are."""
        return len(self._models)

    @property
    def providers(self) -> tuple[ProviderSpec, ...]:
        """All providers."""
        return tuple(self._providers.values())

    def provider(self, provider_id: str) -> ProviderSpec:
        """Returns a provider.

        Raises:
            KeyError: There is none with this id.
        """
        return self._providers[provider_id]

    def find(self, name: str) -> CatalogueModel | None:
        """Returns the model with this id or alias, in whatever case; None: there is none."""
        return self._by_name.get(name.casefold())

    def suggest(self, name: str, limit: int = 3) -> tuple[str, ...]:
        """Returns ids of models whose id or alias is like a name, the likest first."""
        close = difflib.get_close_matches(name.casefold(), self._by_name, n=10, cutoff=0.6)
        return tuple(dict.fromkeys(self._by_name[key].id for key in close))[:limit]

    def succession(self, model: CatalogueModel, today: date) -> tuple[CatalogueModel, ...]:
        """Returns the models that took a model's place, one after the other.

        The last one is the first that is not retired today, if there is one.
        """
        chain: list[CatalogueModel] = []
        current = model
        while current.successor is not None:
            current = self._models[current.successor]
            # Files with a loop are refused; whoever builds one by hand gets an end nevertheless.
            if current is model or current in chain:
                break
            chain.append(current)
            if current.stage_on(today) is not Stage.RETIRED:
                break
        return tuple(chain)

    def live_successor(self, model: CatalogueModel, today: date) -> CatalogueModel | None:
        """Returns the first of a model's successors that is not retired; None: there is none."""
        chain = self.succession(model, today)
        if chain and chain[-1].stage_on(today) is not Stage.RETIRED:
            return chain[-1]
        return None
