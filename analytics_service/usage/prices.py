"""What a call costs: exact, from genai-prices or the catalogue's own prices. Unknown is unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.model import CatalogueModel, CostBand
from analytics_service.catalogue.served import same_model
from analytics_service.usage.records import Rates
from analytics_service.usage.tokens import TokenUsage

if TYPE_CHECKING:
    # Imported where it is used: with all that it brings it takes a third of a second.
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

    _Price: TypeAlias = Decimal | TieredPrices | None

CATALOGUE_FILE = "catalogue file"
"""`Rates.source` of prices that a catalogue file has itself."""

_INPUT_SHARE = Decimal("0.75")
_OUTPUT_SHARE = Decimal("0.25")


def blended(input_price: Decimal, output_price: Decimal) -> Decimal:
    """What a model costs in one number: US dollars per million tokens, a quarter written."""
    return _INPUT_SHARE * input_price + _OUTPUT_SHARE * output_price


def band(rates: Rates) -> CostBand:
    """The band that 0.75 × input + 0.25 × output falls into, in US dollars per million tokens."""
    mixed = blended(rates.input, rates.output)
    if mixed == 0:
        return CostBand.FREE
    if mixed < Decimal("0.5"):
        return CostBand.LOW
    if mixed < Decimal("2.5"):
        return CostBand.MEDIUM
    if mixed < 10:
        return CostBand.HIGH
    return CostBand.VERY_HIGH


@dataclass(frozen=True, slots=True)
class Costed:
    """What a call cost.

    Attributes:
        cost: US dollars; None: not known.
        rates: The prices that apply to a prompt of this length; None: none are known.
        unknown_reason: Why the cost is not known; empty: it is.
    """

    cost: Decimal | None
    rates: Rates | None
    unknown_reason: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model's prices, as a list of models shows them.

    Attributes:
        rates: For a short prompt.
        band: The band that these fall into.
        rises_with_length: Prices are higher for long prompts.
    """

    rates: Rates
    band: CostBand
    rises_with_length: bool


class PriceBook:
    """Prices of the models of a catalogue. Works offline and does not change while it runs."""

    def __init__(self, catalogue: Catalogue, own: Mapping[str, Rates]) -> None:
        """Brings catalogue and prices together.

        Args:
            catalogue: The models.
            own: Prices that go before the price list, by the id of the model.
        """
        self._catalogue = catalogue
        self._own = dict(own)

    def cost(
        self, model: CatalogueModel, served: str | None, tokens: TokenUsage, at: datetime
    ) -> Costed:
        """Computes what a call cost.

        Another model than the one used is charged as what served. Counts of cached tokens that
        the provider does not give are taken as none.

        Args:
            model: The model that was used.
            served: What the provider says has served; None: it has not said.
            tokens: As the provider counted them.
            at: When the call was made.
        """
        found = self._find(model, served, at)
        if found is None:
            return Costed(None, None, self._no_price(model, served))
        if tokens.input is None or tokens.output is None:
            return Costed(None, _rates_of(*found, 0), "the provider has not said all token counts")
        cache_read, cache_write = tokens.cache_read or 0, tokens.cache_write or 0
        if min(tokens.input, tokens.output, cache_read, cache_write) < 0:
            return Costed(
                None, _rates_of(*found, 0), "the provider's token counts contradict each other"
            )
        prices, _ = found
        return Costed(
            _total(prices, tokens.input, cache_read, cache_write, tokens.output),
            _rates_of(*found, tokens.input + cache_read + cache_write),
        )

    def upper_bound(
        self, model: CatalogueModel, input_tokens: int, max_output_tokens: int, at: datetime
    ) -> Decimal | None:
        """Returns the most that a call can cost if the model itself serves; None: not known.

        The prompt may turn out shorter and may be read anew, from the cache, or written to it.

        Args:
            model: The model to be used.
            input_tokens: Most tokens of the prompt.
            max_output_tokens: Most tokens of the answer.
            at: When the call is made.
        """
        found = self._find(model, None, at)
        if found is None:
            return None
        prices, source = found
        # Within a tier the cost grows with every count and is linear in how the prompt is read,
        # so the most is where a tier ends and all of the prompt is of the dearest kind.
        lengths = {start for start in _tier_starts(prices) if start < input_tokens}
        return max(
            _total(
                prices,
                *_dearest_prompt(_rates_of(prices, source, length), length),
                max_output_tokens,
            )
            for length in (*lengths, input_tokens)
        )

    def listed(self, model: CatalogueModel, at: datetime) -> Listed | None:
        """Returns a model's prices for a list of models; None: none are known."""
        found = self._find(model, None, at)
        if found is None:
            return None
        rates = _rates_of(*found, 0)
        return Listed(rates, band(rates), _rises(found[0]))

    def _find(
        self, model: CatalogueModel, served: str | None, at: datetime
    ) -> tuple[ModelPrice, str] | None:
        """Finds the prices of what served, and their source."""
        if served is None or same_model(model, served):
            names = [model.provider_model] if served is None else [served, model.provider_model]
            own = self._own.get(model.id)
        else:
            names = [served]
            own = next(
                (
                    self._own[other.id]
                    for other in self._catalogue
                    if other.provider == model.provider
                    and other.id in self._own
                    and same_model(other, served)
                ),
                None,
            )
        if own is not None:
            return _as_model_price(own), own.source
        price_list = self._catalogue.provider(model.provider).price_list
        if price_list is None:
            return None
        for name in names:
            prices = _list_prices(price_list, name, at)
            if prices is not None:
                return prices, list_source()
        return None

    def _no_price(self, model: CatalogueModel, served: str | None) -> str:
        if served is None or same_model(model, served):
            return f"no price of {model.id} is known"
        return f"{model.provider} says that {served} has served, of which no price is known"


@cache
def list_source() -> str:
    """Name and version of the price list."""
    return f"genai-prices {version('genai-prices')}"


def price_lists() -> tuple[str, ...]:
    """Ids of the providers in the price list."""
    return tuple(provider.id for provider in _snapshot().providers)


def is_listed(price_list: str, name: str) -> bool:
    """Whether the price list has tokens' prices of a model, by its provider's name of it."""
    model = _list_model(price_list, name)
    if model is None:
        return False
    if not isinstance(model.prices, list):
        return _has_token_prices(model.prices)
    return all(_has_token_prices(conditional.prices) for conditional in model.prices)


@cache
def _snapshot() -> DataSnapshot:
    """The list as installed, whatever else in this process updates the library's own."""
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False)


def _list_model(price_list: str, name: str) -> ModelInfo | None:
    try:
        _, model = _snapshot().find_provider_model(name, None, price_list, None)
    except LookupError:
        return None
    return model


def _list_prices(price_list: str, name: str, at: datetime) -> ModelPrice | None:
    model = _list_model(price_list, name)
    if model is None:
        return None
    prices = model.get_prices(at)
    return prices if _has_token_prices(prices) else None


def _has_token_prices(prices: ModelPrice) -> bool:
    """Whether tokens have prices: the library takes what has none as free."""
    return prices.input_mtok is not None and prices.output_mtok is not None


def _as_model_price(rates: Rates) -> ModelPrice:
    from genai_prices.types import ModelPrice

    return ModelPrice(
        input_mtok=rates.input,
        output_mtok=rates.output,
        cache_read_mtok=rates.cache_read,
        cache_write_mtok=rates.cache_write,
    )


def _total(
    prices: ModelPrice, uncached: int, cache_read: int, cache_write: int, output: int
) -> Decimal:
    """The library's sum. Its `input_tokens` are the whole prompt, cached tokens included."""
    from genai_prices import Usage

    usage = Usage(
        input_tokens=uncached + cache_read + cache_write,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        output_tokens=output,
    )
    return prices.calc_price(usage)["total_price"]


def _rates_of(prices: ModelPrice, source: str, prompt_tokens: int) -> Rates:
    rates = [_at_length(price, prompt_tokens) for price in _token_prices(prices)]
    input_rate, output_rate, cache_read, cache_write = rates
    assert input_rate is not None, "checked when found"
    assert output_rate is not None, "checked when found"
    return Rates(input_rate, output_rate, cache_read, cache_write, source)


def _at_length(price: _Price, prompt_tokens: int) -> Decimal | None:
    """The price for a prompt of some length: that of the last tier that it exceeds the start of."""
    if price is None or isinstance(price, Decimal):
        return price
    reached = [tier.price for tier in price.tiers if prompt_tokens > tier.start]
    return reached[-1] if reached else price.base


def _dearest_prompt(rates: Rates, length: int) -> tuple[int, int, int]:
    """A prompt of one kind, the one that costs most: read anew, from the cache, or written to it.

    Where the cache has no price of its own, its tokens cost what others do.
    """
    read = rates.input if rates.cache_read is None else rates.cache_read
    write = rates.input if rates.cache_write is None else rates.cache_write
    if write >= max(read, rates.input):
        return 0, 0, length
    return (0, length, 0) if read >= rates.input else (length, 0, 0)


def _token_prices(prices: ModelPrice) -> list[_Price]:
    return [
        prices.input_mtok,
        prices.output_mtok,
        prices.cache_read_mtok,
        prices.cache_write_mtok,
    ]


def _tier_starts(prices: ModelPrice) -> set[int]:
    """Lengths of the prompt up to which a tier goes."""
    return {
        tier.start
        for price in _token_prices(prices)
        if price is not None and not isinstance(price, Decimal)
        for tier in price.tiers
    }


def _rises(prices: ModelPrice) -> bool:
    return any(
        tier.price > price.base
        for price in _token_prices(prices)
        if price is not None and not isinstance(price, Decimal)
        for tier in price.tiers
    )
