from __future__ import annotations

import typing
from datetime import date

import pytest
from anthropic.types import ModelParam
from genai_prices.data import providers as price_lists
from openai.types.shared import ChatModel

from analytics_service.catalogue.choice import BUILT_IN_DEFAULT
from analytics_service.catalogue.load import load_catalogue
from analytics_service.catalogue.model import CatalogueModel, Stage

CATALOGUE = load_catalogue().catalogue
TODAY = date(2026, 11, 23)


def find(name: str) -> CatalogueModel:
    model = CATALOGUE.find(name)
    assert model is not None
    return model


def literals(kind: object) -> set[str]:
    found: set[str] = set()
    for argument in typing.get_args(kind):
        found |= {argument} if isinstance(argument, str) else literals(argument)
    return found


@pytest.mark.parametrize(
    ("name", "stage", "shutdown", "successor"),
    [
        ("gpt-4o-mini", Stage.DEPRECATED, date(2027, 1, 14), "gpt-6-luna"),
        ("gpt-4o", Stage.DEPRECATED, date(2027, 1, 14), "gpt-6-luna"),
        ("claude-3-5-sonnet", Stage.RETIRED, date(2025, 10, 28), "claude-sonnet-5-5"),
        ("grok-beta", Stage.RETIRED, date(2025, 9, 15), "grok-4.3"),
        ("grok-3", Stage.RETIRED, date(2026, 5, 15), "grok-4.3"),
        ("grok-4", Stage.RETIRED, date(2026, 5, 15), "grok-4.3"),
    ],
)
def test_the_lifecycle_of_old_models(
    name: str, stage: Stage, shutdown: date, successor: str
) -> None:
    model = find(name)
    live = CATALOGUE.live_successor(model, TODAY)
    assert (model.stage_on(TODAY), model.shutdown) == (stage, shutdown)
    assert live is not None
    assert live.id == successor


def test_what_serves_is_named_as_the_official_clients_name_it() -> None:
    names = {"openai": literals(ChatModel), "anthropic": literals(ModelParam)}
    checked = [
        model
        for model in CATALOGUE
        if model.provider in names and model.stage_on(TODAY) is not Stage.RETIRED
    ]
    assert len(checked) == 10
    for model in checked:
        assert model.provider_model in names[model.provider], model.id


def test_context_windows_are_those_of_the_price_list() -> None:
    for model in CATALOGUE:
        price_list = CATALOGUE.provider(model.provider).price_list
        if price_list is None or model.id == "grok-beta":
            continue
        provider = next(each for each in price_lists if each.id == price_list)
        listed = provider.find_model(model.provider_model)
        assert listed is not None, model.id
        assert listed.context_window == model.context_window, model.id


@pytest.mark.parametrize(
    ("alias", "model_id"),
    [
        ("haiku-5-5", "claude-haiku-5-5"),
        ("Sonnet-5-5", "claude-sonnet-5-5"),
        ("opus-5-5", "claude-opus-5-5"),
        ("fable-5-2", "claude-fable-5-2"),
        ("GPT-4O-MINI", "gpt-4o-mini"),
    ],
)
def test_models_are_found_by_alias_in_whatever_case(alias: str, model_id: str) -> None:
    assert find(alias).id == model_id


def test_what_is_not_there_is_not_found_but_something_like_it_is_suggested() -> None:
    assert CATALOGUE.find("gpt-5o") is None
    assert "gpt-4o" in CATALOGUE.suggest("gpt-5o")
    assert CATALOGUE.suggest("sonnet5-5")[0] == "claude-sonnet-5-5"
    assert CATALOGUE.suggest("zzzzzzzz") == ()


def test_the_default_is_there_and_the_local_model_says_what_it_is() -> None:
    assert find(BUILT_IN_DEFAULT).id == BUILT_IN_DEFAULT
    local = find("smollm2-135m")
    assert "proves the path, not the quality" in local.note
    assert (local.provider, local.tools, local.context_window) == ("local", False, 8192)
