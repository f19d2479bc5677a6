"""What a database promises, whichever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

T = TypeVar("T")


class Database(Protocol):
    """Runs units of work, each in a transaction of its own, on threads of its own.

    To be used from one event loop. Work is a plain function of a connection that is in
    a transaction: it neither commits nor rolls back, and keeps no connection, cursor or
    result beyond its return. It may use `Connection.begin_nested` to undo a part of what
    it does; on PostgreSQL it has to, where it goes on after a statement has failed.

    Text must be free of NUL characters, which PostgreSQL does not store.
    """

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        """Which kind of database this is, as SQLAlchemy names it."""
        ...

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on a consistent snapshot of what is committed. It must not write.

        The snapshot holds at least everything whose `write` has returned before.

        Raises:
            DatabaseUnavailableError: If the database can not be read, or work writes.
            DatabaseClosedError: After `close`.
            BaseException: Whatever `work` raises.
        """
        ...

    async def write(
        self, work: Callable[[Connection], T], *, orphaned: Callable[[], None] | None = None
    ) -> T:
        """Runs `work` in one transaction; returns its result after the commit.

        What it does takes effect whole or not at all, also if the caller is cancelled.
        It may be run again after its first effects were undone, such as after a deadlock,
        so it must have no effects but those on the database.

        On SQLite writers run one after the other. On PostgreSQL they run side by side and
        see what others commit meanwhile (READ COMMITTED): what is read in order to be
        written is to be locked, by `with_for_update()`, which SQLite leaves out.

        Args:
            work: What to do.
            orphaned: Is called in the event loop after the commit where the caller was
                cancelled meanwhile, so that somebody learns of it.

        Raises:
            DatabaseUnavailableError: If the database can not be written to, or was lost
                during the commit, so that nobody knows whether that took effect; the
                message says so.
            DatabaseClosedError: After `close`.
            BaseException: Whatever `work` raises; its writes are undone.
        """
        ...

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Calls `heard` in the event loop for every notification of others: runs until cancelled.

        Those of this object's own writes are left out, as far as they can be told. Also each
        time that it has begun to listen, since what was sent before is lost: whoever looks at
        the database then misses nothing. Of several notifications that come together some may
        be left out. To be used on PostgreSQL only.
        """
        ...

    async def close(self) -> None:
        """Finishes what was begun, then gives everything back. May be called more than once."""
        ...
