from __future__ import annotations

import pytest

from analytics_service.catalogue.load import load_catalogue, parse_catalogue
from analytics_service.catalogue.served import same_model

CATALOGUE = load_catalogue().catalogue


@pytest.mark.parametrize(
    ("used", "served", "same"),
    [
        ("gpt-4o-mini", "gpt-4o-mini", True),
        ("gpt-4o-mini", "GPT-4o-mini", True),
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", True),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4o-mini", "gpt-4o-mini-search-preview", False),
        ("gpt-4o", "gpt-4o-2024-11-20", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("gpt-4o", "", False),
        ("claude-haiku-5-5", "claude-haiku-5-5-20261001", True),
        ("claude-haiku-5-5", "claude-haiku-5-5@20261001", True),
        ("claude-haiku-5-5", "claude-haiku-5", False),
        ("claude-3-5-sonnet", "claude-3-5-sonnet-20241022", True),
        ("claude-3-5-sonnet", "claude-3-5-sonnet-20250101", False),
        ("claude-3-5-sonnet", "claude-sonnet-5-5", False),
        ("grok-4", "grok-4-0709", True),
        ("grok-4", "grok-4", True),
        ("grok-4", "grok-4-0801", False),
        ("grok-4", "grok-4.3", False),
        ("grok-4.3", "grok-4.3-latest", True),
        ("grok-4.3", "grok-4.7", False),
    ],
)
def test_snapshots_are_the_same_model_and_others_are_not(
    used: str, served: str, same: bool
) -> None:
    model = CATALOGUE.find(used)
    assert model is not None
    assert same_model(model, served) is same


def test_every_model_is_served_by_its_own_names() -> None:
    for model in CATALOGUE:
        for name in (model.id, model.provider_model, *model.aliases):
            assert same_model(model, name)


def test_no_model_is_served_by_the_name_of_another() -> None:
    for model in CATALOGUE:
        for other in CATALOGUE:
            if other is not model:
                assert not same_model(model, other.provider_model)
                assert not same_model(model, other.id)


def test_an_alias_may_be_what_an_own_endpoint_reports() -> None:
    catalogue = parse_catalogue(
        """
        [[providers]]
        id = "lab"
        protocol = "openai"
        base_url = "http://localhost:8080/v1"
        [[models]]
        id = "mine"
        provider = "lab"
        aliases = ["weights/mine.gguf"]
        context_window = 4096
        prices = { input = 0, output = 0 }
        """
    ).catalogue
    model = catalogue.find("mine")
    assert model is not None
    assert same_model(model, "weights/mine.gguf")
