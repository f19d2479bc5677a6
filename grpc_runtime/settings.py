"""Typed settings: flags over environment over TOML file over defaults.

For example::

    class GreeterSettings(Settings, env_prefix="EXAMPLE_"):
        table: ClassVar[str] = "greeter"

        address: str = Field(default="127.0.0.1:50051", description="Where to listen.")

    settings = GreeterSettings.load(flags={"address": None})
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from grpc_runtime.logging import REDACTED, is_secret_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class SettingsError(Exception):
    """Settings cannot be used.

    Attributes:
        problems: One line for each problem: key, where its value came from, what was got and what
            is allowed.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class Settings(BaseSettings):
    """Base of a service's settings: a flat model, each field with a description.

    Constructing one uses the given values and defaults alone, which is what tests want;
    :meth:`load` reads the world.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True)

    table: ClassVar[str]
    """Name of the service's table in the TOML file."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leaves out the library's own sources: :meth:`load` has to know what came from where."""
        return (init_settings,)

    @classmethod
    def load(
        cls, *, flags: Mapping[str, Any] | None = None, config_file: Path | None = None
    ) -> Self:
        """Reads settings from all sources.

        Args:
            flags: Values by field name, or texts as the environment has them (lists and tables
                in JSON); None means the flag was not given.
            config_file: TOML file; by default what the environment variable named by
                :meth:`config_env_var` says, or none.

        Raises:
            SettingsError: A value is not allowed, a key in the file is unknown, or the file
                cannot be read.
        """
        if config_file is None and (named := os.environ.get(cls.config_env_var())):
            config_file = Path(named)
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for name, value in _file_values(cls, config_file).items():
            values[name], origins[name] = value, f"{config_file}, table [{cls.table}]"
        environment = EnvSettingsSource(cls)
        for name in cls.model_fields:
            text = environment.env_vars.get(cls.env_var(name).lower())
            if text is not None:
                origins[name] = f"environment variable {cls.env_var(name)}"
                values[name] = _decoded(environment, name, text, origins[name])
        for name, value in (flags or {}).items():
            if value is not None:
                origins[name] = f"flag {flag_name(name)}"
                values[name] = _decoded(environment, name, value, origins[name])
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(_problems(cls, error, origins)) from None

    @classmethod
    def env_var(cls, field: str) -> str:
        """Returns the name of the environment variable for a field."""
        return f"{cls.model_config.get('env_prefix', '')}{field}".upper()

    @classmethod
    def config_env_var(cls) -> str:
        """Returns the name of the environment variable that names the TOML file."""
        return cls.env_var("config")


def flag_name(field: str) -> str:
    """Returns the command-line flag for a field."""
    return "--" + field.replace("_", "-")


def _decoded(source: EnvSettingsSource, name: str, value: Any, origin: str) -> Any:
    """Reads the text of a list or table; leaves everything else to the model."""
    if not isinstance(value, str):
        return value
    model = source.settings_cls
    field = model.model_fields[name]
    try:
        return source.prepare_field_value(name, field, value, value_is_complex=False)
    except ValueError as error:
        raise SettingsError(
            [f"{name}: got {_shown(model, name, value)} from {origin}; expected JSON: {error}"]
        ) from None


def _file_values(model: type[Settings], path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with path.expanduser().open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise SettingsError([f"cannot read the settings file {path}: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"the settings file {path} is not valid TOML: {error}"]) from None
    problems = [
        f"{key}: unknown key at the top of {path}; settings belong in a table, such as"
        f" [{model.table}]"
        for key, value in content.items()
        if not isinstance(value, dict)
    ]
    if model.table not in content:
        # Tables of other services are none of our business, misspelt ones of this service are.
        problems += [
            f"[{name}]: unknown table in {path}; did you mean [{model.table}]?"
            for name in difflib.get_close_matches(model.table, content)
            if isinstance(content[name], dict)
        ]
    table = content.get(model.table, {})
    if isinstance(table, dict):
        problems += [
            f"{key}: unknown key in {path}, table [{model.table}]; {_suggest(key, model)}"
            for key in table
            if key not in model.model_fields
        ]
    if problems:
        raise SettingsError(problems)
    return dict(table)


def _suggest(key: str, model: type[Settings]) -> str:
    close = difflib.get_close_matches(key.replace("-", "_"), model.model_fields, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "known are " + ", ".join(sorted(model.model_fields))


def _problems(
    model: type[Settings], error: ValidationError, origins: Mapping[str, str]
) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"])
        name = str(problem["loc"][0]) if problem["loc"] else ""
        reason = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            yield f"{path}: not set; use {flag_name(name)}, {model.env_var(name)} or the file"
        elif not name:  # a rule about several fields
            yield reason
        else:
            got = _shown(model, name, problem["input"])
            yield f"{path}: got {got} from {origins.get(name, 'the default')}; {_lower(reason)}"


def _shown(model: type[BaseSettings], name: str, value: Any) -> str:
    field = model.model_fields.get(name)
    kind = None if field is None else field.annotation
    if is_secret_key(name) or kind in (SecretStr, SecretBytes):
        return REDACTED
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return repr(value)


def _lower(sentence: str) -> str:
    """Lets a sentence of pydantic's follow a semicolon: "Input should be …" → "it should be …"."""
    if sentence.startswith("Input "):
        return "it " + sentence.removeprefix("Input ")
    return sentence
