"""Command-line options derived from a settings model, so that nothing is written twice.

For example::

    @app.command()
    @with_settings(GreeterSettings)
    def serve(settings: GreeterSettings) -> None:
        ...

gives ``serve`` one option for each field, with its description, environment variable and default,
and ``--config`` for the TOML file.
"""

from __future__ import annotations

import enum
import functools
import inspect
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import SecretStr

from grpc_runtime.settings import Settings, SettingsError, flag_name

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo

S = TypeVar("S", bound=Settings)

_NATIVE_TYPES = (bool, int, float, str, Path)


def with_settings(model: type[S]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a command that takes a parameter annotated with ``model``.

    The parameter gives way to one option for each field of the model; the command is called with
    the settings loaded from all sources. Its other parameters stay as they are. Settings that
    cannot be used end the command with a usage error (exit code 2).
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command)
        hints = typing.get_type_hints(command, include_extras=True)
        target = [name for name in signature.parameters if hints.get(name) is model]
        if len(target) != 1:
            raise TypeError(f"{command.__qualname__} needs one parameter of type {model.__name__}")
        options = settings_options(model)

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> Any:
            config = arguments.pop("config")
            flags = {name: arguments.pop(name) for name in model.model_fields}
            try:
                settings = model.load(flags=flags, config_file=config)
            except SettingsError as error:
                raise typer.BadParameter("\n".join(error.problems)) from None
            return command(**{target[0]: settings}, **arguments)

        own = [
            parameter.replace(
                annotation=hints.get(name, parameter.annotation),
                kind=inspect.Parameter.KEYWORD_ONLY,
            )
            for name, parameter in signature.parameters.items()
            if name != target[0]
        ]
        parameters = [*own, *options]
        # typer reads both.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def settings_options(model: type[Settings]) -> list[inspect.Parameter]:
    """Returns the typer parameters for a settings model: its fields, then ``config``.

    Each is None when the option was not given, so that the other sources get their say.
    """
    parameters = [_option(model, name, field) for name, field in model.model_fields.items()]
    config = typer.Option(
        "--config",
        help=f"TOML file with settings, in table \\[{model.table}]. (env {model.config_env_var()})",
        dir_okay=False,
    )
    return [*parameters, _parameter("config", Path, config)]


def _option(model: type[Settings], name: str, field: FieldInfo) -> inspect.Parameter:
    kind = _option_type(field.annotation)
    flag = flag_name(name)
    if kind is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    option = typer.Option(
        flag,
        help=f"{field.description or ''} (env {model.env_var(name)})".strip(),
        show_default=_shown_default(field),
    )
    return _parameter(name, kind, option)


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _option_type(annotation: Any) -> Any:
    """Returns what typer should read; text for what only the settings model understands."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        return _option_type(members[0]) if len(members) == 1 else str
    if annotation in _NATIVE_TYPES or get_origin(annotation) is Literal:
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return annotation
    return str


def _shown_default(field: FieldInfo) -> str | bool:
    """Returns the default as help shows it; False where there is none to show."""
    if field.is_required() or field.annotation is SecretStr:
        return False
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return False
    if isinstance(default, bool):
        return "on" if default else "off"
    return str(default.value if isinstance(default, enum.Enum) else default)
