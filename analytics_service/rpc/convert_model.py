"""Models, choices and advice as protobuf."""

from __future__ import annotations

from datetime import UTC, datetime, time
from decimal import Decimal

from analytics_service.catalogue.listing import ListedModel
from analytics_service.catalogue.model import CostBand, Stage
from analytics_service.chat import conversation
from analytics_service.recommend.recommend import Option, Recommendation
from grpc_runtime.convert import timestamp
from midcourse.analytics.v1 import analytics_pb2, model_pb2

_STAGES = {
    Stage.ACTIVE: model_pb2.LIFECYCLE_STAGE_ACTIVE,
    Stage.DEPRECATED: model_pb2.LIFECYCLE_STAGE_DEPRECATED,
    Stage.RETIRED: model_pb2.LIFECYCLE_STAGE_RETIRED,
}
BANDS = {
    CostBand.FREE: model_pb2.COST_BAND_FREE,
    CostBand.LOW: model_pb2.COST_BAND_LOW,
    CostBand.MEDIUM: model_pb2.COST_BAND_MEDIUM,
    CostBand.HIGH: model_pb2.COST_BAND_HIGH,
    CostBand.VERY_HIGH: model_pb2.COST_BAND_VERY_HIGH,
}
_SOURCES = {
    conversation.ModelSource.REQUEST: model_pb2.MODEL_SOURCE_REQUEST,
    conversation.ModelSource.SESSION: model_pb2.MODEL_SOURCE_SESSION,
    conversation.ModelSource.CONFIGURATION: model_pb2.MODEL_SOURCE_CONFIGURATION,
    conversation.ModelSource.BUILT_IN: model_pb2.MODEL_SOURCE_BUILT_IN,
}


def money(amount: Decimal) -> str:
    """An amount as a plain decimal number, without an exponent or trailing zeros."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def optional_money(amount: Decimal | None) -> str:
    """An amount; empty for none."""
    return "" if amount is None else money(amount)


def model(listed: ListedModel) -> model_pb2.Model:
    """A model of the catalogue."""
    entry = listed.model
    rates = listed.rates
    prices = None
    if rates is not None:
        prices = model_pb2.Prices(
            input=money(rates.input),
            output=money(rates.output),
            cache_read=optional_money(rates.cache_read),
            cache_write=optional_money(rates.cache_write),
            source=rates.source,
            rises_with_length=listed.rises_with_length,
        )
    shutdown = None
    if entry.shutdown is not None:
        shutdown = timestamp(datetime.combine(entry.shutdown, time(), UTC))
    return model_pb2.Model(
        name=f"models/{entry.id}",
        model_id=entry.id,
        display_name=entry.display_name,
        provider=entry.provider,
        provider_model=entry.provider_model,
        aliases=entry.aliases,
        cost_band=model_pb2.COST_BAND_UNSPECIFIED if listed.band is None else BANDS[listed.band],
        prices=prices,
        lifecycle=model_pb2.Lifecycle(
            stage=_STAGES[listed.stage], shutdown_time=shutdown, successor=entry.successor or ""
        ),
        context_window=entry.context_window,
        supports_tools=entry.tools,
        available=listed.unavailable is None,
        unavailable_reason=listed.unavailable or "",
        is_default=listed.is_default,
        note=entry.note,
    )


def choice(chosen: conversation.ModelChoice) -> model_pb2.ModelChoice:
    """Which model was asked for, and which answers."""
    return model_pb2.ModelChoice(
        requested_model=chosen.requested,
        source=_SOURCES[chosen.source],
        used_model=chosen.used,
        served_model=chosen.served or "",
        difference=chosen.difference,
        notice=chosen.notice,
    )


def recommendation(advice: Recommendation, evaluation: str) -> analytics_pb2.RecommendModelResponse:
    """Advice on a model."""
    return analytics_pb2.RecommendModelResponse(
        model_id="" if advice.best is None else advice.best.candidate.model_id,
        score=advice.score,
        reasons=advice.reasons,
        options=[_option(option) for option in advice.options],
        evaluation=evaluation,
    )


def _option(option: Option) -> model_pb2.ModelOption:
    return model_pb2.ModelOption(
        model_id=option.candidate.model_id,
        display_name=option.candidate.display_name,
        estimated_cost=optional_money(option.estimated_cost),
        good_enough=option.good_enough,
        reasons=option.reasons,
        excluded=option.excluded,
    )
