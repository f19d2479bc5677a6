"""Which model answers. The first choice that was made decides; it is never silently replaced."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import TypeAlias

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.model import CatalogueModel, Stage
from analytics_service.chat.conversation import ModelChoice, ModelSource
from analytics_service.errors import Reason, Refusal

BUILT_IN_DEFAULT = "gpt-4o-mini"
"""The model that answers where nobody chose."""

Unavailable: TypeAlias = Callable[[CatalogueModel], str | None]
"""Says why a model can not be chosen now and what to set; None: it can."""

_WHO = {
    ModelSource.REQUEST: "the request asks for",
    ModelSource.SESSION: "the session is set to",
    ModelSource.CONFIGURATION: "ANALYTICS_DEFAULT_MODEL is set to",
    ModelSource.BUILT_IN: "nobody chose, and the default is",
}


def choose(
    catalogue: Catalogue,
    *,
    request: str | None,
    session: str | None,
    configured: str | None,
    follow: bool,
    today: date,
    unavailable: Unavailable,
) -> ModelChoice:
    """Chooses the model: request, then session, then configuration, then the built-in default.

    The first of these that names one decides, and what it names is checked: if it can not
    answer, that is refused rather than skipped. Empty names count as none.

    Args:
        catalogue: The models.
        request: Id or alias that the request asks for.
        session: Id or alias that the session is set to.
        configured: Id or alias of the service's default.
        follow: Follow a retired model to the first of its successors that is not.
        today: The day, UTC.
        unavailable: Says why a model can not be chosen now.

    Returns:
        The choice; `difference` tells of a successor, `notice` of a shutdown to come.

    Raises:
        Refusal: MODEL_UNKNOWN, MODEL_RETIRED (with its successor in `metadata`) or
            MODEL_UNAVAILABLE.
    """
    requested, source = _first_named(request, session, configured)
    model = catalogue.find(requested)
    if model is None:
        raise _unknown(catalogue, requested, source, today, unavailable)
    used, difference = model, ""
    if model.stage_on(today) is Stage.RETIRED:
        successor = catalogue.live_successor(model, today)
        if not follow or successor is None:
            raise _retired(catalogue, model, successor, requested, source, today, unavailable)
        used, difference = successor, _followed(catalogue, model, successor, today)
    reason = unavailable(used)
    if reason is not None:
        raise _unavailable(
            catalogue, used, reason, difference, requested, source, today, unavailable
        )
    return ModelChoice(
        requested=requested,
        source=source,
        used=used.id,
        difference=difference,
        notice=_notice(catalogue, used, today),
    )


def _first_named(
    request: str | None, session: str | None, configured: str | None
) -> tuple[str, ModelSource]:
    if request:
        return request, ModelSource.REQUEST
    if session:
        return session, ModelSource.SESSION
    if configured:
        return configured, ModelSource.CONFIGURATION
    return BUILT_IN_DEFAULT, ModelSource.BUILT_IN


def _unknown(
    catalogue: Catalogue,
    requested: str,
    source: ModelSource,
    today: date,
    unavailable: Unavailable,
) -> Refusal:
    suggestions = catalogue.suggest(requested)
    hint = f"Did you mean {' or '.join(suggestions)}? " if suggestions else ""
    return Refusal(
        Reason.MODEL_UNKNOWN,
        f'{_WHO[source]} model "{requested}", which the catalogue does not have. '
        f"{hint}{_alternatives(catalogue, today, unavailable)}",
        metadata={
            "requested": requested,
            "source": source.value,
            "suggestions": ",".join(suggestions),
        },
    )


def _retired(
    catalogue: Catalogue,
    model: CatalogueModel,
    successor: CatalogueModel | None,
    requested: str,
    source: ModelSource,
    today: date,
    unavailable: Unavailable,
) -> Refusal:
    metadata = {"requested": requested, "source": source.value, "model": model.id}
    if successor is None:
        advice = f"No successor serves. {_alternatives(catalogue, today, unavailable)}"
    else:
        metadata["successor"] = successor.id
        advice = (
            f"Its successor is {successor.id}: choose that, or set follow_successor to follow "
            "retired models to their successors"
        )
    return Refusal(
        Reason.MODEL_RETIRED,
        f"{_WHO[source]} model {_named(requested, model)}, which {_was_retired(model)}. {advice}",
        metadata=metadata,
    )


def _unavailable(
    catalogue: Catalogue,
    model: CatalogueModel,
    reason: str,
    difference: str,
    requested: str,
    source: ModelSource,
    today: date,
    unavailable: Unavailable,
) -> Refusal:
    followed = f" ({difference})" if difference else ""
    return Refusal(
        Reason.MODEL_UNAVAILABLE,
        f'{_WHO[source]} model "{requested}"{followed}, but {model.id} is not available: '
        f"{reason.rstrip('.')}. {_alternatives(catalogue, today, unavailable)}",
        metadata={"requested": requested, "source": source.value, "model": model.id},
    )


def _alternatives(catalogue: Catalogue, today: date, unavailable: Unavailable) -> str:
    """Says which models can be chosen now."""
    available = [
        model.id
        for model in catalogue
        if model.stage_on(today) is not Stage.RETIRED and unavailable(model) is None
    ]
    if not available:
        return "No model is available now"
    return f"Available now: {', '.join(available)}"


def _named(requested: str, model: CatalogueModel) -> str:
    return f'"{requested}"' if requested == model.id else f'"{requested}" ({model.id})'


def _was_retired(model: CatalogueModel) -> str:
    return "is retired" if model.shutdown is None else f"was retired on {model.shutdown}"


def _followed(
    catalogue: Catalogue, model: CatalogueModel, successor: CatalogueModel, today: date
) -> str:
    gone = [f"{model.id} {_was_retired(model)}"]
    gone += [
        f"its successor {other.id} {_was_retired(other)}"
        for other in catalogue.succession(model, today)
        if other is not successor
    ]
    return f"{', '.join(gone)}; followed to the successor {successor.id}"


def _notice(catalogue: Catalogue, model: CatalogueModel, today: date) -> str:
    if model.stage_on(today) is not Stage.DEPRECATED:
        return ""
    end = "deprecated" if model.shutdown is None else f"shut down on {model.shutdown}"
    successor = catalogue.live_successor(model, today)
    return f"{model.id} is {end}" + ("" if successor is None else f"; successor {successor.id}")
