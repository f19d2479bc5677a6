"""Models by the names that callers use, or a refusal that says what was perhaps meant."""

from __future__ import annotations

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.model import CatalogueModel
from analytics_service.errors import Reason, Refusal


def known(catalogue: Catalogue, name: str) -> CatalogueModel:
    """Returns the model with this id or alias.

    Raises:
        Refusal: MODEL_UNKNOWN.
    """
    model = catalogue.find(name)
    if model is None:
        suggestions = catalogue.suggest(name)
        hint = "`midcourse models` (ListModels) shows what there is"
        if suggestions:
            hint = f"did you mean {' or '.join(suggestions)}?"
        raise Refusal(
            Reason.MODEL_UNKNOWN,
            f"there is no model {name[:100]!r} in the catalogue; {hint}",
            metadata={"requested": name[:100], "suggestions": ",".join(suggestions)},
        )
    return model
