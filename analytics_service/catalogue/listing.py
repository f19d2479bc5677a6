"""The models as they are shown to whoever is to choose one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.choice import BUILT_IN_DEFAULT
from analytics_service.catalogue.model import CatalogueModel, CostBand, Stage
from analytics_service.usage.prices import PriceBook, blended
from analytics_service.usage.records import Rates


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model with what holds of it today.

    Attributes:
        model: As the catalogue has it.
        provider_name: Name of its provider, for people.
        stage: Its stage today.
        rates: What it costs, for a short prompt; None: no price is known.
        rises_with_length: Prices are higher for long prompts.
        band: What it costs, roughly; None: no price is known.
        unavailable: Why it can not be chosen, and what to do; None: it can.
        is_default: It answers where nobody chose.
    """

    model: CatalogueModel
    provider_name: str
    stage: Stage
    rates: Rates | None
    rises_with_length: bool
    band: CostBand | None
    unavailable: str | None
    is_default: bool


def listing(
    catalogue: Catalogue,
    prices: PriceBook,
    *,
    default: str | None,
    unavailable: Callable[[CatalogueModel], str | None],
    now: datetime,
) -> list[ListedModel]:
    """All models: the cheapest first, those that can not be chosen last.

    Args:
        catalogue: The models.
        prices: What they cost.
        default: Id or alias of the configured default; None: there is none.
        unavailable: Why a model's provider can not be used; None: it can.
        now: The time.
    """
    default_model = catalogue.find(default or BUILT_IN_DEFAULT)
    listed = [
        _listed(catalogue, prices, model, default_model, unavailable, now) for model in catalogue
    ]
    return sorted(listed, key=_order)


def _listed(
    catalogue: Catalogue,
    prices: PriceBook,
    model: CatalogueModel,
    default: CatalogueModel | None,
    unavailable: Callable[[CatalogueModel], str | None],
    now: datetime,
) -> ListedModel:
    listed = prices.listed(model, now)
    rates = None if listed is None else listed.rates
    stage = model.stage_on(now.date())
    return ListedModel(
        model=model,
        provider_name=catalogue.provider(model.provider).display_name,
        stage=stage,
        rates=rates,
        rises_with_length=listed is not None and listed.rises_with_length,
        band=None if listed is None else listed.band,
        unavailable=_why_not(catalogue, model, stage, rates, unavailable, now.date()),
        is_default=model is default,
    )


def _why_not(
    catalogue: Catalogue,
    model: CatalogueModel,
    stage: Stage,
    rates: Rates | None,
    unavailable: Callable[[CatalogueModel], str | None],
    today: date,
) -> str | None:
    if stage is Stage.RETIRED:
        since = f" on {model.shutdown}" if model.shutdown else ""
        successor = catalogue.live_successor(model, today)
        instead = "" if successor is None else f"; its successor is {successor.id}"
        return f"retired{since}{instead}"
    if rates is None:
        return "no price is known for it; give `prices` in a catalogue file"
    return unavailable(model)


def _order(listed: ListedModel) -> tuple[bool, bool, Decimal, str]:
    rates = listed.rates
    cost = Decimal("Infinity") if rates is None else blended(rates.input, rates.output)
    return (listed.unavailable is not None, listed.stage is Stage.RETIRED, cost, listed.model.id)
