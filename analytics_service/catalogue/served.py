"""Whether the model that a provider says has served is the one that was used."""

from __future__ import annotations

import re

from analytics_service.catalogue.model import CatalogueModel

_SNAPSHOT = re.compile(
    r"""
    (?P<stem>.+?)
    (?:
        [-@](?P<day>\d{4}-\d{2}-\d{2} | \d{8} | (?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))
      | [-:@]latest
    )
    """,
    re.VERBOSE,
)
"""A dated name (-2024-07-18, -20241022, @20241022, -0709) or a floating one (-latest, :latest)."""


def same_model(used: CatalogueModel, served: str) -> bool:
    """Whether a name that a provider reports stands for a model of the catalogue.

    It does if it is one of the model's names, or a dated snapshot or the latest version of what
    the provider was asked for. Names with different dates are different models.

    Args:
        used: The model that was asked to answer.
        served: The provider's name of the model that answered.
    """
    reported = served.casefold()
    if reported in (name.casefold() for name in (used.provider_model, used.id, *used.aliases)):
        return True
    stem, day = _split(reported)
    asked_stem, asked_day = _split(used.provider_model.casefold())
    return stem == asked_stem and (day is None or asked_day is None)


def _split(name: str) -> tuple[str, str | None]:
    """Returns a name without its version, and the digits of its date."""
    match = _SNAPSHOT.fullmatch(name)
    if match is None:
        return name, None
    day = match["day"]
    return match["stem"], None if day is None else day.replace("-", "")
