from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import genai_prices
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_service.catalogue.load import load_catalogue, parse_catalogue
from analytics_service.catalogue.model import CatalogueModel, CostBand, Stage
from analytics_service.usage.prices import CATALOGUE_FILE, PriceBook, band, list_source
from analytics_service.usage.records import Rates
from analytics_service.usage.tokens import UNKNOWN, TokenUsage

LOADED = load_catalogue()
CATALOGUE = LOADED.catalogue
BOOK = PriceBook(CATALOGUE, LOADED.prices)
AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
LISTED = [each for each in CATALOGUE if each.id not in LOADED.prices]

COUNTS = st.one_of(
    st.integers(0, 3000),
    st.integers(0, 3_000_000),
    # Where tiers begin.
    st.sampled_from([99_999, 100_000, 100_001, 199_999, 200_000, 200_001, 272_000, 272_001]),
)


def find(name: str) -> CatalogueModel:
    model = CATALOGUE.find(name)
    assert model is not None
    return model


def list_price(name: str, provider: str, tokens: TokenUsage) -> Decimal:
    """The price list's word, from its public function."""
    read, write = tokens.cache_read or 0, tokens.cache_write or 0
    usage = genai_prices.Usage(
        input_tokens=(tokens.input or 0) + read + write,
        cache_read_tokens=read,
        cache_write_tokens=write,
        output_tokens=tokens.output,
    )
    price_list = CATALOGUE.provider(provider).price_list
    return genai_prices.calc_price(
        usage, name, provider_id=price_list, genai_request_timestamp=AT
    ).total_price


def test_every_model_has_a_price_and_a_band() -> None:
    for model in CATALOGUE:
        listed = BOOK.listed(model, AT)
        assert listed is not None, model.id
        assert (listed.band is CostBand.FREE) is (model.provider == "local")
        assert BOOK.upper_bound(model, 1000, 1000, AT) is not None


@pytest.mark.parametrize("model", LISTED, ids=lambda model: model.id)
@settings(max_examples=25)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_costs_equal_the_price_list_to_the_last_digit(
    model: CatalogueModel, uncached: int, output: int, read: int, write: int
) -> None:
    tokens = TokenUsage(uncached, output, read, write)
    costed = BOOK.cost(model, None, tokens, AT)
    expected = list_price(model.provider_model, model.provider, tokens)
    assert costed.cost == expected
    assert str(costed.cost) == str(expected)
    assert costed.unknown_reason == ""


@pytest.mark.parametrize("model", list(CATALOGUE), ids=lambda model: model.id)
@settings(max_examples=25)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_rates_that_are_reported_give_the_cost(
    model: CatalogueModel, uncached: int, output: int, read: int, write: int
) -> None:
    costed = BOOK.cost(model, None, TokenUsage(uncached, output, read, write), AT)
    rates = costed.rates
    assert rates is not None
    # What has no price of its own is read at the price of the rest.
    cache_read = rates.input if rates.cache_read is None else rates.cache_read
    cache_write = rates.input if rates.cache_write is None else rates.cache_write
    total = uncached * rates.input + output * rates.output + read * cache_read + write * cache_write
    assert costed.cost == total / 1_000_000


@pytest.mark.parametrize("model", list(CATALOGUE), ids=lambda model: model.id)
@settings(max_examples=40)
@given(st.data(), COUNTS, COUNTS)
def test_no_call_costs_more_than_its_upper_bound(
    model: CatalogueModel, data: st.DataObject, most_input: int, most_output: int
) -> None:
    bound = BOOK.upper_bound(model, most_input, most_output, AT)
    prompt = data.draw(st.integers(0, most_input))
    read = data.draw(st.sampled_from([0, prompt // 3, prompt]))
    write = data.draw(st.sampled_from([0, (prompt - read) // 2, prompt - read]))
    output = data.draw(st.integers(0, most_output))
    cost = BOOK.cost(model, None, TokenUsage(prompt - read - write, output, read, write), AT).cost
    assert bound is not None
    assert cost is not None
    assert cost <= bound


def test_an_upper_bound_is_not_wasteful() -> None:
    # 272 000 is the last length of the first tier; all of it written to the cache, at 0.125.
    assert BOOK.upper_bound(find("gpt-6-luna"), 272_000, 1_000_000, AT) == Decimal("0.534")
    assert BOOK.upper_bound(find("gpt-6-luna"), 272_001, 1_000_000, AT) == Decimal("0.81800025")


def test_an_upper_bound_holds_where_long_prompts_are_cheaper() -> None:
    from genai_prices.types import ModelPrice, Tier, TieredPrices

    from analytics_service.usage import prices

    falling = ModelPrice(
        input_mtok=TieredPrices(Decimal(10), [Tier(1000, Decimal(1))]), output_mtok=Decimal(1)
    )
    book = PriceBook(CATALOGUE, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prices, "_list_prices", lambda *_: falling)
        assert book.upper_bound(find("gpt-4o"), 1500, 0, AT) == Decimal("0.01")


def test_the_cost_of_one_call_computed_by_hand() -> None:
    # 1000 × 0.15 + 100 × 0.60 + 200 × 0.075, each per million.
    tokens = TokenUsage(input=1000, output=100, cache_read=200, reasoning=40)
    assert BOOK.cost(find("gpt-4o-mini"), None, tokens, AT).cost == Decimal("0.000225")


def test_prices_rise_with_the_length_of_the_whole_prompt_cached_tokens_included() -> None:
    haiku = find("claude-haiku-5-5")
    short = BOOK.cost(haiku, None, TokenUsage(50_000, 0, 50_000), AT)
    long = BOOK.cost(haiku, None, TokenUsage(50_000, 0, 50_001), AT)
    assert short.rates is not None
    assert long.rates is not None
    assert (short.rates.input, long.rates.input) == (Decimal("0.1"), Decimal("0.5"))


def test_prices_are_those_of_the_time_of_the_call() -> None:
    text = '[[models]]\nid = "timed"\nprovider = "xai"\nprovider_model = "grok-4.20"\n'
    loaded = parse_catalogue(text + "context_window = 1000000\n")
    model = loaded.catalogue.find("timed")
    assert model is not None
    book = PriceBook(loaded.catalogue, loaded.prices)
    one = TokenUsage(1, 1)
    before = book.cost(model, None, one, datetime(2026, 4, 29, 23, 59, tzinfo=UTC)).rates
    after = book.cost(model, None, one, datetime(2026, 4, 30, tzinfo=UTC)).rates
    assert before is not None
    assert after is not None
    assert (before.input, after.input) == (Decimal(2), Decimal("1.25"))


@pytest.mark.parametrize(
    "tokens",
    [UNKNOWN, TokenUsage(input=1), TokenUsage(output=1), TokenUsage(cache_read=1, cache_write=1)],
)
def test_unknown_tokens_cost_something_unknown_even_where_it_is_free(tokens: TokenUsage) -> None:
    for model in CATALOGUE:
        costed = BOOK.cost(model, None, tokens, AT)
        assert costed.cost is None
        assert "token counts" in costed.unknown_reason
        assert costed.rates is not None


def test_counts_that_contradict_each_other_are_not_charged() -> None:
    costed = BOOK.cost(find("gpt-4o"), None, TokenUsage(-1, 5), AT)
    assert costed.cost is None
    assert "contradict" in costed.unknown_reason


@pytest.mark.parametrize(
    ("used", "served", "priced_as"),
    [
        ("gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        # A snapshot of its own price.
        ("gpt-4o", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        # A snapshot that the list does not know.
        ("gpt-4o-mini", "gpt-4o-mini-2026-01-01", "gpt-4o-mini"),
        # Redirected.
        ("grok-4", "grok-4.3", "grok-4.3"),
        # Not in the catalogue.
        ("gpt-6-luna", "gpt-4.1", "gpt-4.1"),
    ],
)
def test_what_served_is_what_is_charged(used: str, served: str, priced_as: str) -> None:
    tokens = TokenUsage(1000, 100, 10)
    model = find(used)
    cost = BOOK.cost(model, served, tokens, AT).cost
    assert cost == list_price(priced_as, model.provider, tokens)


@pytest.mark.parametrize(
    ("used", "served"),
    [
        ("gpt-4o", "o99-giga"),
        ("gpt-4o", "claude-sonnet-5-5"),
        ("smollm2-135m", "gpt-4o"),
    ],
)
def test_what_served_without_a_known_price_costs_something_unknown(used: str, served: str) -> None:
    costed = BOOK.cost(find(used), served, TokenUsage(1, 1), AT)
    assert (costed.cost, costed.rates) == (None, None)
    assert f"says that {served} has served" in costed.unknown_reason


OWN = """
[[providers]]
id = "lab"
protocol = "openai"
base_url = "http://localhost:1/v1"
[[models]]
id = "a"
provider = "lab"
context_window = 10
prices = { input = 1, output = 2, cache_write = 3 }
[[models]]
id = "b"
provider = "lab"
context_window = 10
prices = { input = 10, output = 20 }
[[models]]
id = "gpt-4o"
prices = { input = 1, output = 1 }
"""


def test_own_prices_go_before_the_list_and_follow_what_served() -> None:
    loaded = parse_catalogue(OWN)
    book = PriceBook(loaded.catalogue, loaded.prices)
    a, gpt = loaded.catalogue.find("a"), loaded.catalogue.find("gpt-4o")
    assert a is not None
    assert gpt is not None
    million = TokenUsage(1_000_000, 1_000_000, 1_000_000, 1_000_000)
    assert book.cost(a, None, million, AT).cost == 1 + 2 + 1 + 3
    assert book.cost(a, "b", million, AT).cost == 10 + 20 + 10 + 10
    assert book.cost(a, "c", million, AT).cost is None
    assert book.cost(gpt, "gpt-4o-2024-05-13", million, AT).cost == 4
    rates = book.cost(gpt, None, million, AT).rates
    assert rates is not None
    assert rates.source == CATALOGUE_FILE
    assert list_source() == f"genai-prices {genai_prices.__version__}"


def rates(input_rate: str, output_rate: str) -> Rates:
    return Rates(Decimal(input_rate), Decimal(output_rate), None, None, "test")


@pytest.mark.parametrize(
    ("input_rate", "output_rate", "expected"),
    [
        ("0", "0", CostBand.FREE),
        ("0.000001", "0", CostBand.LOW),
        ("0.4999", "0.4999", CostBand.LOW),
        ("0.5", "0.5", CostBand.MEDIUM),
        ("2.4999", "2.4999", CostBand.MEDIUM),
        ("2.5", "2.5", CostBand.HIGH),
        ("0", "39.9999", CostBand.HIGH),
        ("0", "40", CostBand.VERY_HIGH),
    ],
)
def test_bands(input_rate: str, output_rate: str, expected: CostBand) -> None:
    assert band(rates(input_rate, output_rate)) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4o-mini", "$"),
        # First specified as "$$".
        ("grok-beta", "$$$"),
        ("claude-3-5-sonnet", "$$$"),
        # First specified as "$$$$".
        ("gpt-4o", "$$$"),
    ],
)
def test_bands_of_the_first_four(name: str, expected: str) -> None:
    listed = BOOK.listed(find(name), AT)
    assert listed is not None
    assert listed.band == expected


def test_the_documented_table_is_the_catalogue() -> None:
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `") and line.count("|") == 7
    ]
    assert [row[0].split("`")[1] for row in rows] == [model.id for model in CATALOGUE]
    for row, model in zip(rows, CATALOGUE, strict=True):
        listed = BOOK.listed(model, AT)
        assert listed is not None
        shown = "free" if listed.band is CostBand.FREE else f"`{listed.band}`"
        assert row[1:5] == [
            model.provider,
            "yes" if model.tools else "no",
            f"{model.context_window:,}".replace(",", " "),
            shown + (" ↗" if listed.rises_with_length else ""),
        ]
        if model.stage_on(date(2026, 11, 23)) is not Stage.ACTIVE:
            assert str(model.shutdown) in row[5]
            assert f"successor `{model.successor}`" in row[5]


def test_importing_the_rules_does_not_import_the_price_list() -> None:
    code = (
        "import sys; import analytics_service.usage.prices, analytics_service.catalogue.load; "
        "sys.exit('genai_prices' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
