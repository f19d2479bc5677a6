from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import typer
from pydantic import Field, SecretStr, field_validator, model_validator
from typer.testing import CliRunner

from grpc_runtime.commands import with_settings
from grpc_runtime.settings import Settings, SettingsError


class Mode(enum.Enum):
    FAST = "fast"
    SAFE = "safe"


class GreeterSettings(Settings, env_prefix="EXAMPLE_"):
    table: ClassVar[str] = "greeter"

    address: str = Field(default="127.0.0.1:50051", description="Where to listen.")
    workers: int = Field(default=4, ge=1, le=64, description="How many workers.")
    timeout: float | None = Field(default=None, gt=0, description="Seconds to wait.")
    database: Path | None = Field(default=None, description="File with the data.")
    log_format: Literal["auto", "json"] = Field(default="auto", description="How to log.")
    mode: Mode = Field(default=Mode.SAFE, description="How to run.")
    insecure: bool = Field(default=False, description="Listen all the same.")
    api_key: SecretStr | None = Field(default=None, min_length=8, description="Key.")
    tags: list[str] = Field(default_factory=list, description="Labels.")

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if ":" not in value:
            raise ValueError("expected host:port")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> GreeterSettings:
        if self.workers > 32 and self.mode is Mode.SAFE:
            raise ValueError("mode safe takes at most 32 workers")
        return self


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GreeterSettings.model_fields:
        monkeypatch.delenv(f"EXAMPLE_{name.upper()}", raising=False)
    monkeypatch.delenv("EXAMPLE_CONFIG", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(content: str) -> Path:
        path = tmp_path / "example.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def problems(**arguments: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        GreeterSettings.load(**arguments)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


def test_defaults() -> None:
    assert GreeterSettings.load() == GreeterSettings()
    assert GreeterSettings.load(flags=dict.fromkeys(GreeterSettings.model_fields)).workers == 4


def test_precedence(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config('[greeter]\nworkers = 10\ntimeout = 10\nmode = "fast"\n[other]\nx = 1\n')
    monkeypatch.setenv("EXAMPLE_WORKERS", "20")
    monkeypatch.setenv("EXAMPLE_TIMEOUT", "20")
    loaded = GreeterSettings.load(flags={"workers": 30, "timeout": None}, config_file=path)
    assert (loaded.workers, loaded.timeout, loaded.mode) == (30, 20, Mode.FAST)
    assert loaded.address == "127.0.0.1:50051"


def test_a_flag_may_be_false(config: Any) -> None:
    path = config("[greeter]\ninsecure = true")
    assert GreeterSettings.load(config_file=path).insecure
    assert not GreeterSettings.load(config_file=path, flags={"insecure": False}).insecure


def test_the_file_may_be_named_by_the_environment(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_CONFIG", str(config("[greeter]\nworkers = 7")))
    assert GreeterSettings.load().workers == 7


def test_constructing_does_not_look_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_WORKERS", "20")
    assert GreeterSettings().workers == 4
    assert GreeterSettings(workers=5).workers == 5


def test_structured_values(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GreeterSettings.load(config_file=config('[greeter]\ntags = ["a"]')).tags == ["a"]
    monkeypatch.setenv("EXAMPLE_TAGS", '["b", "c"]')
    assert GreeterSettings.load().tags == ["b", "c"]
    assert GreeterSettings.load(flags={"tags": '["d"]'}).tags == ["d"]
    (problem,) = problems(flags={"tags": "d"})
    assert problem.startswith('tags: got "d" from flag --tags; expected JSON:')
    monkeypatch.setenv("EXAMPLE_TAGS", "b,c")
    (problem,) = problems()
    assert "EXAMPLE_TAGS" in problem
    assert "JSON" in problem


def test_every_problem_names_key_source_and_value(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_WORKERS", "100")
    path = config('[greeter]\ntimeout = "soon"\nlog_format = "xml"')
    found = problems(flags={"address": "nowhere"}, config_file=path)
    assert sorted(found) == [
        'address: got "nowhere" from flag --address; expected host:port',
        f"log_format: got \"xml\" from {path}, table [greeter]; it should be 'auto' or 'json'",
        (
            f'timeout: got "soon" from {path}, table [greeter]; it should be a valid number, unable'
            " to parse string as a number"
        ),
        (
            'workers: got "100" from environment variable EXAMPLE_WORKERS;'
            " it should be less than or equal to 64"
        ),
    ]


def test_a_rule_about_several_settings() -> None:
    assert problems(flags={"workers": 33}) == ("mode safe takes at most 32 workers",)


def test_a_setting_without_default_has_to_be_set() -> None:
    class Needy(Settings, env_prefix="EXAMPLE_"):
        table: ClassVar[str] = "needy"
        name: str = Field(description="Name.")

    with pytest.raises(SettingsError, match="name: not set; use --name, EXAMPLE_NAME or the file"):
        Needy.load()


def test_secrets_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_API_KEY", "hunter2")
    (problem,) = problems()
    assert "hunter2" not in problem
    assert "api_key: got [redacted] from environment variable EXAMPLE_API_KEY" in problem


def test_secrets_that_are_no_json_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Secretive(Settings, env_prefix="EXAMPLE_"):
        table: ClassVar[str] = "secretive"
        auth_token: list[str] = Field(default_factory=list, description="Tokens.")

    monkeypatch.setenv("EXAMPLE_AUTH_TOKEN", "hunter2")
    with pytest.raises(
        SettingsError, match=r"auth_token: got \[redacted\] from environment"
    ) as caught:
        Secretive.load()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[greeter]\nworker = 1", ("worker: unknown key in {path}, table [greeter]; did you mean"
         " workers?")),
        ("[greeter]\nlog-format = 1", ("log-format: unknown key in {path}, table [greeter]; did you"
         " mean log_format?")),
        ("[greeter]\nzzz = 1", ("zzz: unknown key in {path}, table [greeter]; known are address,"
         " api_key, database, insecure, log_format, mode, tags, timeout, workers")),
        ("workers = 1", ("workers: unknown key at the top of {path}; settings belong in a table,"
         " such as [greeter]")),
        ("[greter]\nworkers = 1", "[greter]: unknown table in {path}; did you mean [greeter]?"),
        ("greeter = 1", ("greeter: unknown key at the top of {path}; settings belong in a table,"
         " such as [greeter]")),
    ],
)  # fmt: skip
def test_unknown_keys(config: Any, content: str, expected: str) -> None:
    path = config(content)
    assert problems(config_file=path) == (expected.format(path=path),)


def test_files_that_cannot_be_read(tmp_path: Path, config: Any) -> None:
    missing = tmp_path / "missing.toml"
    assert problems(config_file=missing) == (
        f"cannot read the settings file {missing}: No such file or directory",
    )
    (problem,) = problems(config_file=config("[greeter\n"))
    assert "is not valid TOML" in problem


app = typer.Typer()


@app.command()
@with_settings(GreeterSettings)
def serve(settings: GreeterSettings, name: str = "you", loud: bool = False) -> None:
    """Serves greetings."""
    typer.echo(f"{name} {loud} {settings.model_dump_json()}")


@app.command()
def other() -> None:
    """Makes the app one with several commands."""


def invoke(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(
        app, ["serve", *arguments], env={"COLUMNS": "200", "TERM": "dumb", **environment}
    )


def test_help_shows_every_setting() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    lines = [line for line in result.output.splitlines() if "--" in line]
    text = "\n".join(lines)
    for name, field in GreeterSettings.model_fields.items():
        (line,) = [line for line in lines if f"--{name.replace('_', '-')} " in f"{line} "
                   or f"--{name}" in line]  # fmt: skip
        assert field.description
        assert field.description in line
        assert f"(env EXAMPLE_{name.upper()})" in line
    assert "127.0.0.1:50051" in text
    assert "auto|json" in text.replace("[", "").replace("]", "")
    assert "fast|safe" in text
    assert "--no-insecure" in text
    assert "[greeter]" in text
    assert "(env EXAMPLE_CONFIG)" in text
    assert "--loud" in text
    assert "[default: (4)]" in text
    assert "[default: (off)]" in text
    assert "[default: (safe)]" in text


def test_options_reach_the_command(config: Any) -> None:
    path = config("[greeter]\nworkers = 10\ntimeout = 2.5")
    result = invoke(
        "--config", str(path), "--name", "ada", "--loud", "--workers", "11", "--mode", "fast",
        "--log-format", "json", "--insecure", "--database", "a/b.db", "--tags", '["x"]',
        EXAMPLE_ADDRESS="[::1]:1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    name, loud, dumped = result.output.split(maxsplit=2)
    settings = GreeterSettings.model_validate_json(dumped)
    assert (name, loud) == ("ada", "True")
    assert settings == GreeterSettings(
        address="[::1]:1",
        workers=11,
        timeout=2.5,
        database=Path("a/b.db"),
        log_format="json",
        mode=Mode.FAST,
        insecure=True,
        tags=["x"],
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--workers", "many"), "--workers"),
        (("--workers", "100"), "workers: got 100 from flag --workers"),
        (("--log-format", "xml"), "--log-format"),
        (("--address", "nowhere"), "expected host:port"),
        (("--config", "missing.toml"), "cannot read the settings file missing.toml"),
        (("--worker", "1"), "No such option: --worker"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error(arguments: tuple[str, ...], complaint: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_a_command_has_to_take_the_settings() -> None:
    def command(settings: int) -> None:
        raise AssertionError(settings)

    with pytest.raises(TypeError, match="needs one parameter of type GreeterSettings"):
        with_settings(GreeterSettings)(command)
