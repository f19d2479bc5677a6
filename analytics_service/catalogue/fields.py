"""The keys of a catalogue file and what each may hold."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, NoReturn, TypeAlias
from urllib.parse import urlsplit

from analytics_service.catalogue.model import Protocol, Stage, Tier

Check: TypeAlias = Callable[[object], Any]
"""Returns a value as it is used. Raises `NotAllowed`."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}")
_ENVIRONMENT_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MAX_PRICE = Decimal(1_000_000)
_PRICE_DECIMALS = 6
"""A cost is a millionth of a price, times tokens, and is kept with 12 decimals: it stays exact."""


class NotAllowed(Exception):  # noqa: N818 - says what it is about
    """A value is not allowed; the message says what was got and what is allowed."""


def _not_allowed(value: object, allowed: str) -> NoReturn:
    raise NotAllowed(f"got {_shown(value)}, allowed: {allowed}")


def _shown(value: object) -> str:
    match value:
        case str():
            return json.dumps(value if len(value) <= 80 else f"{value[:80]}…", ensure_ascii=False)
        case bool():
            return str(value).lower()
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return str(value)


def text(value: object) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        _not_allowed(value, "a text that is not empty")
    return value


def note(value: object) -> str:
    """Any text."""
    if not isinstance(value, str):
        _not_allowed(value, "a text")
    return value


def identifier(value: object) -> str:
    """An id: it becomes part of resource names."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        _not_allowed(value, "letters, digits and . _ : - (a letter or digit first, at most 100)")
    return value


def aliases(value: object) -> tuple[str, ...]:
    """Names that stand for a model."""
    if not isinstance(value, list):
        _not_allowed(value, "a list of names")
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            _not_allowed(name, "names of letters, digits and . _ : / @ - (a letter or digit first)")
    return tuple(value)


def tokens(value: object) -> int:
    """A number of tokens."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _not_allowed(value, "a whole number of tokens of 1 or more")
    return value


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        _not_allowed(value, "true or false")
    return value


def day(value: object) -> date:
    """A day without a time."""
    if not isinstance(value, date) or isinstance(value, datetime):
        _not_allowed(value, "a day, written without quotes like 2027-01-14")
    return value


def one_of(kind: type[StrEnum]) -> Check:
    """One of an enum's values."""

    def check(value: object) -> StrEnum:
        if not isinstance(value, str) or value not in list(kind):
            _not_allowed(value, ", ".join(f'"{member}"' for member in kind))
        return kind(value)

    return check


def protocol(value: object) -> Protocol:
    """A protocol. The built-in catalogue alone may say "local"."""
    if not isinstance(value, str) or value not in list(Protocol):
        _not_allowed(value, ", ".join(f'"{p}"' for p in Protocol if p is not Protocol.LOCAL))
    return Protocol(value)


def environment_variable(value: object) -> str:
    """Name of an environment variable. What is none may be a key, so it is not repeated."""
    if not isinstance(value, str) or not _ENVIRONMENT_VARIABLE.fullmatch(value):
        raise NotAllowed(
            "got something that is no name of an environment variable, allowed: letters, digits "
            'and _, such as "MY_API_KEY"; the key itself does not belong here'
        )
    return value


def base_url(value: object) -> str:
    """An HTTP URL without anything secret in it."""
    allowed = 'a URL such as "http://localhost:8000/v1"'
    if not isinstance(value, str):
        _not_allowed(value, allowed)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise NotAllowed(f"got a URL that can not be read, allowed: {allowed}") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # Not repeated: it may hold a key.
        raise NotAllowed(
            "got a URL with a user, a query or a fragment in it, allowed: one without; a key "
            "belongs into the environment variable that api_key_env names"
        )
    if parts.scheme not in ("http", "https") or not host:
        _not_allowed(value, allowed)
    return value


def price(value: object) -> Decimal:
    """US dollars per million tokens."""
    allowed = (
        "US dollars per million tokens: a number or a text such as "
        f'"0.15", from 0 up to {_MAX_PRICE}, with at most {_PRICE_DECIMALS} decimals'
    )
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        _not_allowed(value, allowed)
    try:
        amount = Decimal(value)
    except InvalidOperation:
        return _not_allowed(value, allowed)
    exponent = amount.as_tuple().exponent
    if (
        not isinstance(exponent, int)
        or exponent < -_PRICE_DECIMALS
        or not 0 <= amount <= _MAX_PRICE
    ):
        _not_allowed(value, allowed)
    return abs(amount)  # no negative zero


def table(value: object) -> Mapping[str, object]:
    """A table; its keys are checked apart."""
    if not isinstance(value, dict):
        _not_allowed(value, "a table")
    return value


PROVIDER_FIELDS: Mapping[str, Check] = {
    "id": identifier,
    "display_name": text,
    "protocol": protocol,
    "base_url": base_url,
    "api_key_env": environment_variable,
    "price_list": text,
    "allow_insecure": flag,
}

MODEL_FIELDS: Mapping[str, Check] = {
    "id": identifier,
    "display_name": text,
    "provider": text,
    "provider_model": text,
    "aliases": aliases,
    "context_window": tokens,
    "max_output_tokens": tokens,
    "tools": flag,
    "tier": one_of(Tier),
    "stage": one_of(Stage),
    "shutdown": day,
    "successor": text,
    "note": note,
    "prices": table,
}

PRICE_FIELDS: Mapping[str, Check] = {
    "input": price,
    "output": price,
    "cache_read": price,
    "cache_write": price,
}

_SECRETS = frozenset({"api_key", "apikey", "key", "secret", "token", "password", "authorization"})


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Says that a key is unknown, and which one was likely meant. Its value is not repeated."""
    if name.casefold().replace("-", "_") in _SECRETS:
        return (
            "secrets do not belong into this file. Put the key into an environment variable and "
            'name that: api_key_env = "MY_API_KEY"'
        )
    names = list(known)
    return f"got an unknown key, allowed: {', '.join(names)}{did_you_mean(name, names)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Names the likest of what is known; empty: nothing is like it."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def is_unencrypted(url: str) -> bool:
    """Whether what is sent to a URL can be read on the way."""
    return urlsplit(url).scheme == "http"


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this host."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
