"""What goes along with every call, such as credentials. Values are secrets: never shown."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

Metadata = tuple[tuple[str, str | bytes], ...]

_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")


def checked_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """Returns metadata that gRPC takes as it is.

    Checked here because gRPC's own message for metadata that it refuses repeats the values.

    Raises:
        ValueError: A key or value is not allowed; the message names the key alone.
    """
    return tuple(_checked(key, value) for key, value in pairs)


def trace_context() -> Metadata:
    """Returns what tells the server of the trace that the program is in, as W3C trace context.

    Empty where it does not use OpenTelemetry, which is not loaded for that.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())


def _checked(key: str, value: str | bytes) -> tuple[str, str | bytes]:
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"metadata key {key!r}: allowed are lower-case letters, digits, '_', '-' and '.'"
        )
    if key.startswith("grpc-"):
        raise ValueError(f"metadata key {key!r}: 'grpc-' is reserved for gRPC itself")
    if key.endswith("-bin"):
        if not isinstance(value, bytes):
            raise ValueError(
                f"metadata {key!r}: a key that ends in '-bin' has bytes for a value,"
                f" got {type(value).__name__}"
            )
    elif not isinstance(value, str) or not _TEXT.fullmatch(value):
        got = "other characters" if isinstance(value, str) else type(value).__name__
        raise ValueError(
            f"metadata {key!r}: the value must be a str of printable ASCII, got {got};"
            " other bytes need a key that ends in '-bin'"
        )
    return key, value
