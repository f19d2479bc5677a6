"""Who may do what: roles, the jobs that a caller may touch, tokens. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache

from control_plane.domain.errors import Reason, Refusal, invalid
from control_plane.domain.selector import ANYTHING, Selector, parse
from control_plane.domain.update import GUARD

DEFAULT_LIFETIME = timedelta(days=90)
MAX_LIFETIME = timedelta(days=36_500)
MAX_DESCRIPTION = 1_000
MAX_PATTERNS = 100

_PRINCIPAL = re.compile(r"[a-z0-9._@-]{1,63}")
_PATTERN = re.compile(r"[a-z0-9._-]{0,63}\*?")
_TOKEN_NAME = re.compile(r"tokens/([0-9a-f]{12})")
ANONYMOUS = "anonymous"


class Role(StrEnum):
    """What a caller may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    AGENT = "agent"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller may do, and with which jobs.

    Attributes:
        role: What it may do.
        selector: Only with jobs that this label selector matches; empty: all.
        jobs: Only with these: ids, or beginnings of ids followed by `*`; empty: all.
    """

    role: Role
    selector: str = ""
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scope:
    """The jobs that a caller may see and touch; for all others it is as if they were not there.

    Attributes:
        selector: What their labels must match.
        jobs: Ids, or beginnings of ids followed by `*`; empty: all.
    """

    selector: Selector = ANYTHING
    jobs: tuple[str, ...] = ()

    @property
    def is_everything(self) -> bool:
        """Whether no job is left out."""
        return not self.selector.requirements and (not self.jobs or "*" in self.jobs)

    @property
    def goes_by_labels(self) -> bool:
        """Whether a job can come in and go out, as its labels change."""
        return bool(self.selector.requirements)

    def names(self, job_id: str) -> bool:
        """Whether a job of that id can be in it, whatever its labels."""
        return not self.jobs or any(_names(pattern, job_id) for pattern in self.jobs)

    def has(self, job_id: str, selectable: Mapping[str, str]) -> bool:
        """Whether a job is in it.

        Args:
            job_id: Its id.
            selectable: What selectors see of it.
        """
        return self.names(job_id) and self.selector.matches(selectable)


EVERYTHING = Scope()


def _names(pattern: str, job_id: str) -> bool:
    if pattern.endswith("*"):
        return job_id.startswith(pattern[:-1])
    return job_id == pattern


@lru_cache(maxsize=1024)
def scope_of(selector: str, jobs: tuple[str, ...]) -> Scope:
    """The scope that an access has.

    Raises:
        Refusal: SELECTOR_INVALID.
    """
    return Scope(parse(selector, "access.selector"), jobs)


def check_access(access: Access) -> None:
    """Refuses an access that makes no sense.

    Raises:
        Refusal: INVALID_ARGUMENT or SELECTOR_INVALID.
    """
    scope = scope_of(access.selector, access.jobs)
    if any(requirement.key == "state" for requirement in scope.selector.requirements):
        raise invalid(
            "access.selector",
            "got the key 'state', which changes as a job runs; allowed: labels, 'job' and 'method'",
        )
    if len(access.jobs) > MAX_PATTERNS:
        raise invalid("access.jobs", f"got {len(access.jobs)}, at most {MAX_PATTERNS}")
    for index, pattern in enumerate(access.jobs):
        if not pattern or not _PATTERN.fullmatch(pattern):
            raise invalid(
                f"access.jobs[{index}]",
                f"got {pattern[:80]!r}, allowed: the id of a job, or the beginning of ids and '*'",
            )
    if access.role is Role.AGENT and not access.jobs:
        raise invalid(
            "access.jobs",
            "got none; an agent holds the sessions of its own jobs: name them, such as 'my-run' "
            "or 'my-run-*' ('*' for all)",
        )
    if access.role is Role.ADMIN and not scope.is_everything:
        raise invalid(
            "access",
            "got an administrator with bounds, who could make a token without them; allowed: an "
            "administrator without selector and jobs, or another role",
        )


def check_principal(name: str, field: str = "principal") -> None:
    """Refuses a name that nobody may go by.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    if not _PRINCIPAL.fullmatch(name):
        raise invalid(
            field, f"got {name[:80]!r}, allowed: 1 to 63 of a-z, 0-9, '-', '_', '.' and '@'"
        )
    if name in (GUARD, ANONYMOUS):
        raise invalid(field, f"got {name!r}, which stands for something else; use another name")


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token; its secret is not.

    Attributes:
        id: The {token} of its name.
        principal: Who uses it.
        access: What it allows.
        description: What it is for.
        creator: Who made it.
        create_time: When it was made.
        expire_time: When it becomes worthless; None: never.
        revoke_time: When it was revoked; None: it was not.
        last_use_time: When it was last used, to the minute or so; None: not yet.
        key: The store's own number; 0 until stored.
    """

    id: str
    principal: str
    access: Access
    description: str
    creator: str
    create_time: datetime
    expire_time: datetime | None = None
    revoke_time: datetime | None = None
    last_use_time: datetime | None = None
    key: int = 0

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"tokens/{self.id}"

    def is_active(self, now: datetime) -> bool:
        """Whether it is worth anything."""
        return self.revoke_time is None and (self.expire_time is None or now < self.expire_time)


def new_token(
    token_id: str,
    principal: str,
    access: Access,
    *,
    description: str,
    creator: str,
    lifetime: timedelta | None,
    now: datetime,
) -> Token:
    """A token that nobody has used.

    Args:
        token_id: A new id.
        principal: Who is to use it.
        access: What it allows.
        description: What it is for.
        creator: Who makes it.
        lifetime: How long it is good; None: as long as usual; zero: for ever.
        now: The time.

    Raises:
        Refusal: If one of these is not allowed.
    """
    check_principal(principal)
    check_access(access)
    if len(description) > MAX_DESCRIPTION:
        raise invalid(
            "description", f"got {len(description)} characters, at most {MAX_DESCRIPTION}"
        )
    lifetime = DEFAULT_LIFETIME if lifetime is None else lifetime
    if not timedelta() <= lifetime <= MAX_LIFETIME:
        raise invalid(
            "lifetime",
            f"got {lifetime.total_seconds():g} s, allowed: 0 (for ever) to {MAX_LIFETIME.days} "
            "days",
        )
    return Token(
        id=token_id,
        principal=principal,
        access=access,
        description=description,
        creator=creator,
        create_time=now,
        expire_time=now + lifetime if lifetime else None,
    )


def check_usable(token: Token | None, now: datetime) -> Token:
    """The token of a secret, if it is worth anything.

    Who has the secret may know why it is not.

    Raises:
        Refusal: TOKEN_UNKNOWN, TOKEN_REVOKED or TOKEN_EXPIRED.
    """
    what_to_do = "ask an administrator for another one (`midcourse token create`)"
    if token is None:
        raise Refusal(
            Reason.TOKEN_UNKNOWN,
            f"the token that was sent is not one of this server's; check it, or {what_to_do}",
        )
    if token.revoke_time is not None:
        raise Refusal(
            Reason.TOKEN_REVOKED,
            f"the token {token.name} was revoked at {_at(token.revoke_time)}; {what_to_do}",
        )
    if not token.is_active(now):
        assert token.expire_time is not None
        raise Refusal(
            Reason.TOKEN_EXPIRED,
            f"the token {token.name} expired at {_at(token.expire_time)}; {what_to_do}",
        )
    return token


def _at(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def parse_token_name(name: str, field: str = "name") -> str:
    """The id of a token.

    Raises:
        Refusal: INVALID_ARGUMENT.
    """
    match = _TOKEN_NAME.fullmatch(name)
    if match is None:
        # What was sent may be a secret, by mistake: it is not repeated.
        raise invalid(field, "allowed: tokens/{token}, as `midcourse token list` shows them")
    return match.group(1)


def outside(job_id: str, scope: Scope) -> Refusal:
    """The refusal for whoever would make a job that is not among its own, or make one so."""
    bounds = [f"jobs {', '.join(scope.jobs)}"] if scope.jobs else []
    bounds += [f"labels {scope.selector}"] if scope.goes_by_labels else []
    return Refusal(
        Reason.OUT_OF_SCOPE,
        f"job {job_id!r}, as it would be, is not among the jobs that the caller may touch "
        f"({' with '.join(bounds)})",
    )
