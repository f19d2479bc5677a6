"""What is recorded of a call. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

MAX_NAME: Final = 300
"""Most characters of a name in a record; what a caller sent may be of any length."""
MAX_TEXT: Final = 1_000
"""Most characters of a free text in a record."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call was about.

    Attributes:
        resource: Such as jobs/{job}/updates/{revision}; empty: nothing by name.
        summary: What was asked for, in short.
        reason: Why, as the caller said.
    """

    resource: str = ""
    summary: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One call. The API says what the fields are, in `AuditRecord`.

    Attributes:
        key: The store's own number; 0 until stored.
    """

    time: datetime
    principal: str
    peer: str
    method: str
    resource: str
    summary: str
    reason: str
    code: str
    error_reason: str
    request_id: str
    key: int = 0

    @property
    def place(self) -> AuditPlace:
        """Where it stands in the order of time."""
        return AuditPlace(self.time, self.key)

    @property
    def root(self) -> str:
        """What its resource belongs to; see `root_of`."""
        return root_of(self.resource)


@dataclass(frozen=True, slots=True)
class AuditPlace:
    """A place in the order of time."""

    time: datetime
    key: int


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which records; by default all.

    Attributes:
        principal: Of whom; empty: of all.
        resource: About this, and what is below it; empty: whatever.
        start: At this time or later; None: whenever.
        end: Before this time; None: whenever.
    """

    principal: str = ""
    resource: str = ""
    start: datetime | None = None
    end: datetime | None = None

    def wants(self, record: AuditRecord) -> bool:
        """Whether a record of the right time is wanted."""
        return (not self.principal or record.principal == self.principal) and is_below(
            record.resource, self.resource
        )


def root_of(resource: str) -> str:
    """The first two parts of a name, such as jobs/{job}; empty where there are fewer."""
    parts = resource.split("/", 2)
    return "/".join(parts[:2]) if len(parts) > 1 else ""


def is_below(resource: str, top: str) -> bool:
    """Whether a resource is another one, or belongs to it; all do to the empty name."""
    return not top or resource == top or resource.startswith(f"{top}/")


def stored(record: AuditRecord) -> AuditRecord:
    """A record as it is stored: what is too long is cut, what can not be printed is written out.

    So no text of a caller's can forge a line, steer a terminal or fill the disk.
    """
    return replace(
        record,
        principal=_short(record.principal, MAX_NAME),
        peer=_short(record.peer, MAX_NAME),
        method=_short(record.method, MAX_NAME),
        resource=_short(record.resource, MAX_NAME),
        summary=_short(record.summary, MAX_TEXT),
        reason=_short(record.reason, MAX_TEXT),
        request_id=_short(record.request_id, MAX_NAME),
    )


def _short(text: str, most: int) -> str:
    cut = text[: most + 1]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return cut if len(cut) <= most else f"{cut[: most - 1]}…"
