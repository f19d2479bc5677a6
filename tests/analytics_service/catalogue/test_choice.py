"""Every combination of who chooses and what they choose, against the rule stated once more."""

from __future__ import annotations

from datetime import date
from itertools import product

import pytest

from analytics_service.catalogue.catalogue import Catalogue
from analytics_service.catalogue.choice import BUILT_IN_DEFAULT, choose
from analytics_service.catalogue.model import (
    CatalogueModel,
    Protocol,
    ProviderSpec,
    Stage,
    Tier,
)
from analytics_service.chat.conversation import ModelChoice, ModelSource
from analytics_service.errors import Reason, Refusal

TODAY = date(2026, 11, 23)
SOON = date(2027, 1, 14)
GONE = date(2026, 5, 15)
KINDS = (
    "absent",
    "known",
    "alias",
    "unknown",
    "deprecated",
    "retired",
    "retired_twice",
    "retired_to_unavailable",
    "retired_to_deprecated",
    "retired_for_good",
    "unavailable",
)
DEFAULT_KINDS = ("known", "deprecated", "retired", "retired_for_good", "unavailable")


def model(
    model_id: str,
    stage: Stage = Stage.ACTIVE,
    shutdown: date | None = None,
    successor: str | None = None,
    aliases: tuple[str, ...] = (),
) -> CatalogueModel:
    return CatalogueModel(
        id=model_id,
        display_name=model_id,
        provider="lab",
        provider_model=model_id,
        context_window=1000,
        max_output_tokens=100,
        tools=True,
        tier=Tier.SMALL,
        aliases=aliases,
        stage=stage,
        shutdown=shutdown,
        successor=successor,
    )


def catalogue_for(level: str, default_kind: str = "known") -> list[CatalogueModel]:
    """The models that one of the four who choose may name: each has its own."""
    retired = Stage.RETIRED
    return [
        model(f"{level}-known", aliases=(f"{level}-alias",)),
        model(f"{level}-deprecated", Stage.DEPRECATED, SOON, f"{level}-known"),
        # Written down as deprecated: the date makes it retired.
        model(f"{level}-retired", Stage.DEPRECATED, GONE, f"{level}-known"),
        model(f"{level}-retired_twice", retired, date(2025, 9, 15), f"{level}-retired"),
        model(f"{level}-retired_to_unavailable", retired, GONE, f"{level}-unavailable"),
        model(f"{level}-retired_to_deprecated", retired, GONE, f"{level}-deprecated"),
        model(f"{level}-retired_for_good", retired),
        model(f"{level}-unavailable"),
    ]


def default_model(kind: str) -> CatalogueModel:
    match kind:
        case "deprecated":
            return model(BUILT_IN_DEFAULT, Stage.DEPRECATED, SOON, "request-known")
        case "retired":
            return model(BUILT_IN_DEFAULT, Stage.RETIRED, GONE, "request-known")
        case "retired_for_good":
            return model(BUILT_IN_DEFAULT, Stage.RETIRED)
        case _:
            return model(BUILT_IN_DEFAULT)


CATALOGUES = {
    kind: Catalogue(
        [ProviderSpec("lab", "Lab", Protocol.OPENAI)],
        [
            *(
                each
                for level in ("request", "session", "configuration")
                for each in catalogue_for(level)
            ),
            default_model(kind),
        ],
    )
    for kind in DEFAULT_KINDS
}


def expected(
    request: str, session: str, configured: str, default: str, follow: bool
) -> tuple[object, ...]:
    """The rule, stated independently: a table of outcomes by kind.

    Returns (reason, successor) of a refusal, or (requested, source, used, differs, has notice).
    """
    for level, kind in (("request", request), ("session", session), ("configuration", configured)):
        if kind != "absent":
            name, source, heir = f"{level}-{kind}", level, level
            break
    else:
        name, source, heir, kind = BUILT_IN_DEFAULT, "built_in", "request", default
    known, deprecated = f"{heir}-known", f"{heir}-deprecated"
    itself = known if kind == "alias" else name
    followed: dict[str, tuple[object, ...]] = {
        "retired": (name, source, known, True, False),
        "retired_twice": (name, source, known, True, False),
        "retired_to_unavailable": (Reason.MODEL_UNAVAILABLE, None),
        "retired_to_deprecated": (name, source, deprecated, True, True),
    }
    refused: dict[str, tuple[object, ...]] = {
        "retired": (Reason.MODEL_RETIRED, known),
        "retired_twice": (Reason.MODEL_RETIRED, known),
        "retired_to_unavailable": (Reason.MODEL_RETIRED, f"{heir}-unavailable"),
        "retired_to_deprecated": (Reason.MODEL_RETIRED, deprecated),
    }
    always: dict[str, tuple[object, ...]] = {
        "known": (name, source, itself, False, False),
        "alias": (name, source, itself, False, False),
        "deprecated": (name, source, itself, False, True),
        "unknown": (Reason.MODEL_UNKNOWN, None),
        "unavailable": (Reason.MODEL_UNAVAILABLE, None),
        "retired_for_good": (Reason.MODEL_RETIRED, None),
    }
    return (always | (followed if follow else refused))[kind]


def outcome(
    request: str, session: str, configured: str, default: str, follow: bool
) -> tuple[object, ...]:
    def named(level: str, kind: str) -> str | None:
        return None if kind == "absent" else f"{level}-{kind}"

    def unavailable(each: CatalogueModel) -> str | None:
        blocked = each.id.endswith("-unavailable") or (
            default == "unavailable" and each.id == BUILT_IN_DEFAULT
        )
        return "no key: set LAB_API_KEY" if blocked else None

    try:
        choice = choose(
            CATALOGUES[default],
            request=named("request", request),
            session=named("session", session),
            configured=named("configuration", configured),
            follow=follow,
            today=TODAY,
            unavailable=unavailable,
        )
    except Refusal as refusal:
        return refusal.reason, refusal.metadata.get("successor")
    assert choice.served is None
    return (
        choice.requested,
        choice.source.value,
        choice.used,
        bool(choice.difference),
        bool(choice.notice),
    )


def test_every_combination() -> None:
    combinations = list(product(KINDS, KINDS, KINDS, DEFAULT_KINDS, (False, True)))
    assert len(combinations) == 13310
    for combination in combinations:
        assert outcome(*combination) == expected(*combination), combination


def refused(name: str, *, follow: bool = False, level: str = "request") -> Refusal:
    names = {"request": None, "session": None, "configured": None} | {level: name}
    with pytest.raises(Refusal) as caught:
        choose(
            CATALOGUES["known"],
            request=names["request"],
            session=names["session"],
            configured=names["configured"],
            follow=follow,
            today=TODAY,
            unavailable=lambda each: (
                "no key: set LAB_API_KEY" if "unavailable" in each.id else None
            ),
        )
    return caught.value


def chosen(name: str, *, follow: bool = False) -> ModelChoice:
    return choose(
        CATALOGUES["known"],
        request=name,
        session=None,
        configured=None,
        follow=follow,
        today=TODAY,
        unavailable=lambda _: None,
    )


def test_an_unknown_model_is_refused_with_who_asked_and_what_is_like_it() -> None:
    refusal = refused("session-knwn", level="session")
    assert refusal.message.startswith('the session is set to model "session-knwn"')
    assert "Did you mean session-known" in refusal.message
    assert refusal.metadata["suggestions"].split(",")[0] == "session-known"
    assert refusal.metadata["source"] == "session"


def test_an_unknown_configured_model_names_the_setting() -> None:
    assert "ANALYTICS_DEFAULT_MODEL" in refused("nothing-like-it", level="configured").message


def test_a_retired_model_is_refused_with_its_successor() -> None:
    refusal = refused("request-retired")
    assert "was retired on 2026-05-15" in refusal.message
    assert "Its successor is request-known" in refusal.message
    assert "follow_successor" in refusal.message


def test_a_retired_model_without_successor_is_refused_even_if_to_be_followed() -> None:
    refusal = refused("request-retired_for_good", follow=True)
    assert refusal.reason is Reason.MODEL_RETIRED
    assert "No successor serves. Available now: request-known" in refusal.message


def test_an_unavailable_model_is_refused_with_what_to_set_and_what_there_is() -> None:
    refusal = refused("request-unavailable")
    assert "no key: set LAB_API_KEY. Available now: request-known" in refusal.message
    available = refusal.message.split("Available now: ")[1].split(", ")
    assert "request-unavailable" not in available
    assert not any("retired" in each for each in available)


def test_a_chain_of_successors_is_told() -> None:
    choice = chosen("request-retired_twice", follow=True)
    assert choice.difference == (
        "request-retired_twice was retired on 2025-09-15, its successor request-retired was "
        "retired on 2026-05-15; followed to the successor request-known"
    )


def test_a_shutdown_to_come_is_told() -> None:
    choice = chosen("request-deprecated")
    assert choice.notice == "request-deprecated is shut down on 2027-01-14; successor request-known"


def test_an_alias_is_kept_as_asked_and_is_no_difference() -> None:
    assert chosen("Request-ALIAS") == ModelChoice(
        "Request-ALIAS", ModelSource.REQUEST, "request-known"
    )


def test_empty_names_are_no_choice_but_blank_ones_are() -> None:
    choice = choose(
        CATALOGUES["known"],
        request="",
        session="",
        configured="",
        follow=False,
        today=TODAY,
        unavailable=lambda _: None,
    )
    assert (choice.used, choice.source) == (BUILT_IN_DEFAULT, ModelSource.BUILT_IN)
    assert refused(" ").reason is Reason.MODEL_UNKNOWN


def test_a_model_is_retired_from_its_shutdown_day_on() -> None:
    for today, stage in (
        (date(2027, 1, 13), Stage.DEPRECATED),
        (SOON, Stage.RETIRED),
        (date(2027, 1, 15), Stage.RETIRED),
    ):
        assert model("x", Stage.DEPRECATED, SOON).stage_on(today) is stage
