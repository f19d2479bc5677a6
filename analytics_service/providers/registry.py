"""The providers of the catalogue, each built once, when it is first needed."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from analytics_service.catalogue.model import Protocol, ProviderSpec
from analytics_service.providers.base import Fault, Provider, ProviderError
from analytics_service.providers.faults import Endpoint

if TYPE_CHECKING:
    from analytics_service.providers.openai_wire import TokenLimit

LocalFactory: TypeAlias = Callable[[], Provider]
"""Builds the provider that answers in this process."""

_SDKS = {
    Protocol.OPENAI: "openai",
    Protocol.OPENAI_RESPONSES: "openai",
    Protocol.ANTHROPIC: "anthropic",
}
_COUNT_REASONING = ("openai", "x-ai")
"""Price lists of the providers that limit answers by max_completion_tokens."""
_KEY = re.compile(r"[!-~]+")


class Providers:
    """Gives providers by id.

    A client takes some 20 ms to build and its SDK a second or more to import: `warm` does both
    aside from the event loop, before the first question comes.
    """

    def __init__(
        self,
        specs: Iterable[ProviderSpec],
        environ: Mapping[str, str],
        local: LocalFactory | None = None,
        local_unavailable: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Builds nothing yet.

        Args:
            specs: The providers.
            environ: Where keys are read, each when its provider is needed.
            local: Builds the provider that answers in this process; None: there is none.
            local_unavailable: Says why that one can not be used; None: it can.
        """
        self._specs = {spec.id: spec for spec in specs}
        self._environ = environ
        self._local = local
        self._local_unavailable = local_unavailable
        self._built: dict[str, Provider] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Providers({', '.join(self._specs)})"

    def unavailable(self, provider_id: str) -> str | None:
        """Says why a provider can not be used and what to do about it; None: it can.

        Raises:
            ValueError: There is no such provider.
        """
        fault = self._fault(self._spec(provider_id))
        return None if fault is None else fault[1]

    def get(self, provider_id: str) -> Provider:
        """Returns a provider; builds it if it is not there yet.

        Raises:
            ProviderError: It is not available, see `unavailable`.
            ValueError: There is no such provider.
        """
        provider = self._built.get(provider_id)
        if provider is not None:
            return provider
        spec = self._spec(provider_id)
        if (fault := self._fault(spec)) is not None:
            raise ProviderError(*fault)
        with self._lock:
            if self._is_closed:
                raise ProviderError(Fault.UNAVAILABLE, "the providers are closed")
            if provider_id not in self._built:
                self._built[provider_id] = self._build(spec)
            return self._built[provider_id]

    async def warm(self) -> None:
        """Builds the providers that can be used, in a thread; the local one is left alone."""
        for spec in self._specs.values():
            if spec.protocol is not Protocol.LOCAL and self._fault(spec) is None:
                await asyncio.to_thread(self.get, spec.id)

    async def close(self) -> None:
        """Closes what was built; after that no provider is given out. May be called again."""
        with self._lock:
            self._is_closed = True
            built = list(self._built.values())
            self._built.clear()
        for provider in built:
            await provider.close()

    def _spec(self, provider_id: str) -> ProviderSpec:
        spec = self._specs.get(provider_id)
        if spec is None:
            raise ValueError(
                f"no provider {provider_id!r}; there are: {', '.join(sorted(self._specs))}"
            )
        return spec

    def _fault(self, spec: ProviderSpec) -> tuple[Fault, str] | None:
        name = spec.display_name
        if spec.protocol is Protocol.LOCAL:
            if self._local is None:
                return Fault.UNAVAILABLE, f"{name} is not set up in this service"
            reason = self._local_unavailable()
            return None if reason is None else (Fault.UNAVAILABLE, f"{name}: {reason}")
        package = _SDKS[spec.protocol]
        if importlib.util.find_spec(package) is None:
            return Fault.UNAVAILABLE, (
                f"{name} needs the package {package!r}, which is not installed:"
                " pip install 'midcourse[analytics]', or choose a model of another provider"
            )
        if spec.api_key_env is None:
            return None
        key = self._key(spec)
        if not key:
            return Fault.UNAUTHENTICATED, (
                f"{spec.api_key_env} is not set: export it where the analytics service runs"
            )
        if _KEY.fullmatch(key) is None:
            return Fault.UNAUTHENTICATED, (
                f"{spec.api_key_env} holds spaces, line breaks or characters outside ASCII, which"
                f" no key has: export it with a key for {name} alone"
            )
        return None

    def _key(self, spec: ProviderSpec) -> str:
        return "" if spec.api_key_env is None else self._environ.get(spec.api_key_env, "").strip()

    def _build(self, spec: ProviderSpec) -> Provider:
        endpoint = Endpoint(spec.display_name, spec.api_key_env, self._key(spec))
        # The SDKs take a second or more to import.
        match spec.protocol:
            case Protocol.OPENAI:
                from analytics_service.providers.openai import OpenAIProvider

                limit: TokenLimit = (
                    "max_completion_tokens"
                    if spec.price_list in _COUNT_REASONING or spec.base_url is None
                    else "max_tokens"
                )
                return OpenAIProvider(endpoint, base_url=spec.base_url, token_limit=limit)
            case Protocol.OPENAI_RESPONSES:
                from analytics_service.providers.openai_responses import OpenAIResponsesProvider

                return OpenAIResponsesProvider(endpoint, base_url=spec.base_url)
            case Protocol.ANTHROPIC:
                from analytics_service.providers.anthropic import AnthropicProvider

                return AnthropicProvider(endpoint, base_url=spec.base_url)
            case Protocol.LOCAL:
                assert self._local is not None  # else it has a fault
                return self._local()
