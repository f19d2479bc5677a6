"""What both ends of the link agree on beside the messages themselves."""

from __future__ import annotations

from typing import Final

PROTOCOL_VERSION: Final = 1
"""Version of the wire."""

JOB_HAS_ANOTHER_TRAINER: Final = "JOB_HAS_ANOTHER_TRAINER"
"""Reason for Detached: another live process trains this job on this host."""

INSTANCE_SUPERSEDED: Final = "INSTANCE_SUPERSEDED"
"""Reason for Detached: a newer process has taken the job over; it will not come back."""

LINK_VERSION_UNSUPPORTED: Final = "LINK_VERSION_UNSUPPORTED"
"""Reason for Detached: trainer and agent come from installations too far apart."""

HELLO_INVALID: Final = "HELLO_INVALID"
"""Reason for Detached: the trainer's first message was refused."""

SOCKET_DIRECTORY_UNUSABLE: Final = "SOCKET_DIRECTORY_UNUSABLE"
"""Reason for being detached, said by the trainer's own end: no safe place for the socket."""

FINAL_REASONS: Final = frozenset(
    {INSTANCE_SUPERSEDED, LINK_VERSION_UNSUPPORTED, HELLO_INVALID, SOCKET_DIRECTORY_UNUSABLE}
)
"""Reasons for Detached after which trying again can not help."""
