from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from analytics_service.catalogue.load import load_catalogue, parse_catalogue
from analytics_service.catalogue.model import Protocol, Stage, Tier
from analytics_service.catalogue.problems import CatalogueError

DOCS = Path(__file__).parents[3] / "docs" / "models.md"

LAB = """\
[[providers]]
id = "lab"
protocol = "openai"
base_url = "http://localhost:8000/v1"

"""


def problems(text: str) -> list[str]:
    with pytest.raises(CatalogueError) as caught:
        parse_catalogue(text, "mine.toml")
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return list(map(str, caught.value.problems))


def only_problem(text: str) -> str:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


def test_without_a_file_there_is_the_built_in_catalogue() -> None:
    loaded = load_catalogue()
    assert [each.id for each in loaded.catalogue.providers] == [
        "openai",
        "anthropic",
        "xai",
        "local",
    ]
    assert set(loaded.prices) == {"grok-beta", "smollm2-135m"}
    assert loaded.prices["smollm2-135m"].input == 0


def test_the_documented_example_loads(tmp_path: Path) -> None:
    blocks = DOCS.read_text(encoding="utf-8").split("```toml\n")[1:]
    assert len(blocks) == 2
    for block in blocks:
        file = tmp_path / "models.toml"
        file.write_text(block.split("```")[0], encoding="utf-8")
        loaded = load_catalogue(file)
        if "vllm" in block:
            qwen = loaded.catalogue.find("qwen3-8b")
            assert qwen is not None
            provider = loaded.catalogue.provider(qwen.provider)
            assert provider.base_url == "http://localhost:8000/v1"
            assert provider.protocol is Protocol.OPENAI
            assert loaded.prices["qwen3-8b"].output == 0


def test_an_own_model_gets_sensible_defaults() -> None:
    loaded = parse_catalogue(
        LAB + '[[models]]\nid = "m"\nprovider = "lab"\ncontext_window = 4096\n'
        'prices = { input = 0.1, output = "0.30", cache_read = 0 }\n'
    )
    model = loaded.catalogue.find("m")
    assert model is not None
    assert (model.display_name, model.provider_model, model.max_output_tokens) == ("m", "m", 4096)
    assert (model.tools, model.tier, model.stage) == (False, Tier.MEDIUM, Stage.ACTIVE)
    prices = loaded.prices["m"]
    # 0.1 is read as written, not as the nearest binary number.
    assert (prices.input, prices.output) == (Decimal("0.1"), Decimal("0.30"))
    assert (prices.cache_read, prices.cache_write) == (Decimal(0), None)
    assert prices.source == "catalogue file"


def test_a_built_in_model_keeps_what_the_file_does_not_say() -> None:
    loaded = parse_catalogue(
        '[[models]]\nid = "GPT-4o"\nprices = { input = 1, output = 2 }\nnote = "bargain"\n'
    )
    model = loaded.catalogue.find("gpt-4o")
    assert model is not None
    assert (model.id, model.note, model.shutdown) == ("gpt-4o", "bargain", date(2027, 1, 14))
    assert loaded.prices["gpt-4o"].input == 1
    assert len(loaded.catalogue) == len(load_catalogue().catalogue)


def test_a_shutdown_can_be_called_off() -> None:
    model = parse_catalogue('[[models]]\nid = "gpt-4o"\nstage = "active"\n').catalogue.find(
        "gpt-4o"
    )
    assert model is not None
    assert (model.stage, model.shutdown, model.successor) == (Stage.ACTIVE, None, None)


def test_a_provider_of_an_own_can_use_a_price_list() -> None:
    text = LAB.replace("http://localhost:8000", "https://eu.example.com") + (
        'price_list = "openai"\n[[models]]\nid = "eu"\nprovider = "lab"\n'
        'provider_model = "gpt-4o"\ncontext_window = 1\n'
    )
    assert parse_catalogue(text).catalogue.find("eu") is not None


def test_all_problems_are_told_at_once_each_with_line_and_key() -> None:
    text = (
        "modles = 1\n"
        + LAB
        + '[[models]]\nid = "a"\nprovider = "labs"\ncontext_window = "big"\ncontxt_window = 3\n'
        '[[models]]\nid = "b"\nprovider = "lab"\ntools = 1\n'
        "[models.prices]\ninput = -1\n"
    )
    assert problems(text) == [
        "mine.toml:1: modles: got an unknown key, allowed: providers, models. Did you mean models?",
        (
            'mine.toml:9: models[0].provider: got "labs", allowed: openai, anthropic, xai, local, '
            "lab. Did you mean lab?"
        ),
        (
            'mine.toml:10: models[0].context_window: got "big", allowed: a whole number of tokens '
            "of 1 or more"
        ),
        (
            "mine.toml:11: models[0].contxt_window: got an unknown key, allowed: id, display_name, "
            "provider, provider_model, aliases, context_window, max_output_tokens, tools, tier, "
            "stage, shutdown, successor, note, prices. Did you mean context_window?"
        ),
        "mine.toml:12: models[1]: the key context_window is missing",
        "mine.toml:15: models[1].tools: got 1, allowed: true or false",
        "mine.toml:16: models[1].prices: the key output is missing; a price of 0 is written out",
        (
            "mine.toml:17: models[1].prices.input: got -1, allowed: US dollars per million tokens: "
            'a number or a text such as "0.15", from 0 up to 1000000, with at most 6 decimals'
        ),
    ]


MODEL = '[[models]]\nid = "m"\nprovider = "lab"\ncontext_window = 10\n'
FREE = "prices = { input = 0, output = 0 }\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = = 1", "mine.toml:1: this is no TOML: Invalid value"),
        ("a = [1,", "mine.toml: this is no TOML"),
        ("models = 3", "mine.toml:1: models: allowed: tables, each under [[models]]"),
        ("models = [3]", "mine.toml:1: models: allowed: tables, each under [[models]]"),
        ("[[models]]\ntools = true", "mine.toml:1: models[0]: the key id is missing"),
        ('[[models]]\nid = "a/b"', 'mine.toml:2: models[0].id: got "a/b", allowed: letters'),
        (LAB + MODEL, "mine.toml:6: models[0]: no price of m is known. Write it down"),
        (
            '[[models]]\nid = "gpt-0"\nprovider = "openai"\ncontext_window = 1',
            "mine.toml:1: models[0]: no price of gpt-0 is known",
        ),
        (LAB + MODEL + FREE + MODEL + FREE, 'models[1].id: got "m", which line 7 has already'),
        (
            LAB + MODEL + FREE + 'aliases = ["haiku-5-5"]',
            'models[0].aliases: got "haiku-5-5", which stands for claude-haiku-5-5 already',
        ),
        (
            LAB + MODEL + FREE + 'aliases = ["GPT-4o"]',
            'models[0].aliases: got "GPT-4o", which stands for gpt-4o already',
        ),
        (LAB + MODEL + FREE + 'aliases = ["M"]', 'got "M", which is the id of the model'),
        (LAB + MODEL + FREE + 'aliases = ["n", "N"]', 'got "n" more than once'),
        (
            LAB + MODEL + FREE + 'successor = "gpt6-luna"',
            (
                'models[0].successor: got "gpt6-luna", allowed: the id of a model. '
                "Did you mean gpt-6-luna?"
            ),
        ),
        (LAB + MODEL + FREE + 'successor = "m"', "models[0].successor: succeeds itself: m → m"),
        (
            LAB + MODEL + FREE + "shutdown = 2027-01-01",
            'models[0].shutdown: what has an end is stage = "deprecated" or "retired"',
        ),
        (
            LAB + MODEL + FREE + 'stage = "retired"\nshutdown = "2027-01-01"',
            'got "2027-01-01", allowed: a day, written without quotes',
        ),
        (
            LAB + MODEL + FREE + 'stage = "gone"',
            'got "gone", allowed: "active", "deprecated", "retired"',
        ),
        (
            LAB + MODEL + FREE + "max_output_tokens = 11",
            "got 11, allowed: at most 10, as many as context_window",
        ),
        (LAB + MODEL + "prices = 3", "models[0].prices: got 3, allowed: a table"),
        (
            LAB + MODEL + 'prices = { input = "free", output = 0 }',
            'models[0].prices.input: got "free", allowed: US dollars',
        ),
        (LAB + MODEL + "prices = { input = nan, output = 0 }", "prices.input: got NaN, allowed"),
        (LAB + MODEL + "prices = { input = inf, output = 0 }", "prices.input: got Infinity"),
        (
            LAB + MODEL + 'prices = { input = "0.0000001", output = 0 }',
            'prices.input: got "0.0000001", allowed',
        ),
        (LAB + MODEL + "prices = { input = true, output = 0 }", "prices.input: got true"),
        ('[[providers]]\nid = "x"\nbase_url = "https://x"', "the key protocol is missing"),
        (
            '[[providers]]\nid = "x"\nprotocol = "openai"',
            'mine.toml:1: providers[0]: the key base_url is missing, such as base_url = "http',
        ),
        (
            '[[providers]]\nid = "x"\nprotocol = "local"',
            'got "local", allowed: "openai", "openai-responses", "anthropic"',
        ),
        (LAB + 'price_list = "opnai"', "Did you mean openai?"),
        (
            LAB.replace("http://localhost:8000/v1", "localhost:8000"),
            'base_url: got "localhost:8000", allowed: a URL such as',
        ),
    ],
)
def test_one_thing_wrong(text: str, message: str) -> None:
    assert message in only_problem(text)


def test_every_model_of_a_loop_of_successors_is_told() -> None:
    two = MODEL.replace('"m"', '"n"')
    found = problems(LAB + MODEL + FREE + 'successor = "n"\n' + two + FREE + 'successor = "m"\n')
    assert [each.split("successor: ")[1] for each in found] == [
        "succeeds itself: m → n → m",
        "succeeds itself: n → m → n",
    ]


@pytest.mark.parametrize("name", ["api_key", "API-KEY", "token", "secret", "password"])
def test_secrets_are_refused_and_never_repeated(name: str) -> None:
    problem = only_problem(LAB + f'{name} = "sk-very-secret"\n')
    assert "environment variable" in problem
    assert "sk-very-secret" not in problem


@pytest.mark.parametrize(
    "line",
    [
        'api_key_env = "sk-very-secret"',
        'base_url = "https://user:sk-very-secret@example.com"',
        'base_url = "https://example.com/?key=sk-very-secret"',
        'key_file = "sk-very-secret"',
    ],
)
def test_what_may_be_a_key_is_never_repeated(line: str) -> None:
    problem = only_problem('[[providers]]\nid = "anthropic"\n' + line)
    assert "sk-very-secret" not in problem


@pytest.mark.parametrize(
    ("url", "extra", "allowed"),
    [
        ("http://10.0.0.7/v1", 'api_key_env = "K"', False),
        ("http://localhost.example.com/v1", 'api_key_env = "K"', False),
        ("http://10.0.0.7/v1", 'api_key_env = "K"\nallow_insecure = true', True),
        ("http://10.0.0.7/v1", "", True),
        ("https://10.0.0.7/v1", 'api_key_env = "K"', True),
        ("http://localhost:1/v1", 'api_key_env = "K"', True),
        ("http://127.3.2.1/v1", 'api_key_env = "K"', True),
        ("http://[::1]:8000/v1", 'api_key_env = "K"', True),
        ("HTTP://10.0.0.7/v1", 'api_key_env = "K"', False),
    ],
)
def test_a_key_is_not_sent_unencrypted_to_another_host(url: str, extra: str, allowed: bool) -> None:
    text = f'[[providers]]\nid = "x"\nprotocol = "openai"\nbase_url = "{url}"\n{extra}'
    if allowed:
        assert parse_catalogue(text).catalogue.provider("x").base_url == url
    else:
        assert "unencrypted" in only_problem(text)


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="can not be read"):
        load_catalogue(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(CatalogueError, match="can not be read"):
        load_catalogue(binary)
    large = tmp_path / "large.toml"
    large.write_text("#" * ((1 << 20) + 1))
    with pytest.raises(CatalogueError, match="larger than"):
        load_catalogue(large)


def test_deep_nesting_is_refused() -> None:
    assert "mine.toml" in only_problem("a = " + "[" * 5000 + "]" * 5000)
