"""Resource names, as the API has them."""

from __future__ import annotations


def session_name(session_id: str) -> str:
    """sessions/{session}."""
    return f"sessions/{session_id}"


def message_name(session_id: str, number: int) -> str:
    """sessions/{session}/messages/{number}."""
    return f"sessions/{session_id}/messages/{number}"
