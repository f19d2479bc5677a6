"""Resource names of sessions and messages, as callers send them."""

from __future__ import annotations

from grpc_runtime.convert import MAX_COUNT
from grpc_runtime.errors import invalid_argument

_MAX_ID = 64


def parse_session(name: str, field: str) -> str:
    """The id in a session's name.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is none.
    """
    collection, _, session_id = name.partition("/")
    if collection != "sessions" or not is_id(session_id):
        raise invalid_argument(field, f"got {name[:100]!r}, allowed: sessions/{{session}}")
    return session_id


def parse_message(name: str, field: str) -> tuple[str, int | None]:
    """The session's id and the number in a message's name; None: it names the session only.

    Raises:
        StatusError: INVALID_ARGUMENT, if it is neither.
    """
    session, separator, number = name.partition("/messages/")
    if not separator:
        return parse_session(session, field), None
    if not (number.isascii() and number.isdigit() and 0 < int(number[:20]) <= MAX_COUNT):
        raise invalid_argument(
            field, f"got {name[:100]!r}, allowed: sessions/{{session}}/messages/{{number}}"
        )
    return parse_session(session, field), int(number[:20])


def is_id(text: str) -> bool:
    """Whether a text may be the id of a session."""
    return 0 < len(text) <= _MAX_ID and all(
        c.isascii() and (c.isalnum() or c in "-_") for c in text
    )
