"""Structured logs: one event a line on stderr, secrets redacted.

Both structlog's loggers (:func:`get_logger`) and those of the standard library end up here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "console"]
"""``console`` for people, ``json`` for programs, ``auto``: console if stderr is a terminal."""
LogLevel = Literal["debug", "info", "warning", "error"]
"""Events below this level are not written."""

REDACTED = "[redacted]"

# A key is secret if one of these is among its words: auth_token, X-Api-Key. Not "tokens" (a
# number of them) and not page_token (a position in a list).
_SECRET_WORDS = frozenset(
    {
        "authorization",
        "token",
        "apikey",
        "password",
        "passwd",
        "secret",
        "credential",
        "credentials",
        "cookie",
    }
)
_SECRET_PHRASES = ("api_key", "private_key", "access_key")
_PUBLIC_KEYS = frozenset({"page_token", "next_page_token"})
_SECRET_IN_TEXT = re.compile(
    r"(?P<before>\b(?:bearer|basic)\s+|://[^\s/:@]*:)(?P<secret>[^\s@'\",;]+)(?P<after>@?)",
    re.IGNORECASE,
)
_DEEPEST = 8


def configure_logging(*, level: LogLevel = "info", log_format: LogFormat = "auto") -> None:
    """Sends all logs of this process to stderr, in one form; may be called again.

    Args:
        level: Lowest level to write.
        log_format: How to write an event.
    """
    number = getattr(logging, level.upper())
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    renderer: list[Processor]
    if console:
        renderer = [
            escape_control_characters,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    else:
        renderer = [_render_json]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_StderrLogger,
        cache_logger_on_first_use=False,
    )
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderer,
            ],
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)
    logging.captureWarnings(True)


def get_logger(name: str) -> FilteringBoundLogger:
    """Returns a structured logger whose events carry its name."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def redact(
    _logger: WrappedLogger, _method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Structlog processor: replaces secrets.

    Goes by the names of keys, at any depth and in lists of pairs (gRPC metadata), and by what in
    a text looks like a bearer token or a password in a URL.
    """
    for key, value in event_dict.items():
        if not key.startswith("_"):  # structlog's own, gone before the event is written
            event_dict[key] = REDACTED if is_secret_key(key) else _redacted(value, _DEEPEST)
    return event_dict


@functools.lru_cache(maxsize=1024)
def is_secret_key(key: str) -> bool:
    """Tells whether a key names a secret."""
    key = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower().replace("-", "_")
    if key in _PUBLIC_KEYS:
        return False
    return not _SECRET_WORDS.isdisjoint(key.split("_")) or any(
        phrase in key for phrase in _SECRET_PHRASES
    )


def _redacted(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _redacted_text(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN
    if depth == 0:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if is_secret_key(str(key)) else _redacted(item, depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        if len(value) == 2 and isinstance(value[0], str) and is_secret_key(value[0]):
            return [value[0], REDACTED]
        return [_redacted(item, depth - 1) for item in value]
    return _redacted_text(repr(value))


def _redacted_text(text: str) -> str:
    if " " not in text and "://" not in text:
        return text
    return _SECRET_IN_TEXT.sub(rf"\g<before>{REDACTED}\g<after>", text)


def escape_control_characters(
    _logger: WrappedLogger, _method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Structlog processor: keeps foreign text from forging lines or steering the terminal."""
    for key, value in event_dict.items():
        if not isinstance(value, str) or value.isprintable():
            continue
        if key not in ("exception", "stack"):
            event_dict[key] = "".join(
                c if c.isprintable() else c.encode("unicode_escape").decode() for c in value
            )
    return event_dict


# structlog's own renderer makes a new encoder for every event, which takes most of its time.
_ENCODER = json.JSONEncoder(default=repr)


def _render_json(
    _logger: WrappedLogger, _method_name: str, event_dict: MutableMapping[str, Any]
) -> str:
    return _ENCODER.encode(event_dict)


class _StderrLogger:
    """Writes finished lines to whatever ``sys.stderr`` is at that time."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def msg(self, line: str) -> None:
        # If stderr is closed or broken there is nowhere left to say so.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = fatal = log = msg


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Like :class:`_StderrLogger`, for the standard library's loggers."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _value: TextIO) -> None:
        raise AttributeError("this handler always writes to sys.stderr")
