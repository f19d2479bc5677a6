"""Page sizes, and page tokens: opaque to callers, good after a restart."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Final

import grpc

from grpc_runtime.convert import MAX_COUNT
from grpc_runtime.errors import StatusError, invalid_argument

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NUMBER: Final = re.compile(r"[0-9]{1,18}")  # each of these can be stored

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1_000


def page_size(asked: int, *, default: int = DEFAULT_SIZE) -> int:
    """The size of a page; 0 stands for the default, too many for the most.

    Args:
        asked: What was asked for.
        default: What 0 stands for; 0: no page at all.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is negative.
    """
    if asked < 0:
        raise invalid_argument(
            "page_size", f"got {asked}, allowed: 0 (for {default or 'none'}) to {MAX_SIZE}"
        )
    return min(asked or default, MAX_SIZE)


def write_token(after: str | int | None, query: str) -> str:
    """A token for going on after something; empty where there is nothing more.

    Args:
        after: Where to go on.
        query: What was asked for; the next page must ask for the same.
    """
    if after is None:
        return ""
    raw = json.dumps([after, _digest(query)], separators=(",", ":"))
    return base64.urlsafe_b64encode(raw.encode()).decode().rstrip("=")


def read_token(token: str, query: str) -> str | int | None:
    """Where to go on; None for an empty token: at the start.

    Raises:
        StatusError: INVALID_ARGUMENT with reason PAGE_TOKEN_INVALID, for a token that was made up
            or for another query.
    """
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        after, digest = json.loads(base64.urlsafe_b64decode(padded.encode("ascii")))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        after, digest = None, ""
    ours = digest == _digest(query)
    if ours and isinstance(after, str) and _can_be_stored(after):
        return after
    if ours and type(after) is int and 0 <= after <= MAX_COUNT:
        return after
    raise invalid_token(token)


def write_place(time: datetime, *keys: int) -> str:
    """A place in an order by time and then by keys, for :func:`write_token`."""
    return ".".join(map(str, ((time - _EPOCH) // _MICROSECOND, *keys)))


def read_place(after: str | int, keys: int) -> tuple[datetime, tuple[int, ...]]:
    """The place that :func:`write_place` has made such a text of.

    Args:
        after: What :func:`read_token` has returned.
        keys: How many it has beside the time.

    Raises:
        StatusError: INVALID_ARGUMENT with reason PAGE_TOKEN_INVALID, if it is none.
    """
    text = str(after)
    parts = text.split(".")
    if len(parts) != keys + 1 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise invalid_token(text)
    try:
        time = _EPOCH + int(parts[0]) * _MICROSECOND
    except OverflowError:
        raise invalid_token(text) from None
    return time, tuple(map(int, parts[1:]))


def invalid_token(token: str) -> StatusError:
    """The error for a token that was made up, or is for another query."""
    return StatusError(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"page_token {token[:60]!r} is not from a page of this very query; "
        "begin again without a token",
        reason="PAGE_TOKEN_INVALID",
    )


def _can_be_stored(text: str) -> bool:
    """Whether a database can be asked about a text at all."""
    return "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)


def _digest(query: str) -> str:
    return hashlib.sha256(query.encode()).hexdigest()[:12]
