"""What the parts of a transaction share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_runtime.sql.prepared import execute

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from control_plane.domain.update import Update

_SERIES_LOCK = 6653456812345679
"""Any number: advisory locks count within one database, which belongs to one service."""


class Queries:
    """Reads and writes over one connection, within the transaction that it is in."""

    def __init__(self, connection: Connection, *, origin: str = "", writing: bool) -> None:
        """Works on a transaction that somebody else begins and ends.

        Args:
            connection: In a transaction.
            origin: The replica that this is.
            writing: Whether rows that are read are going to be written, so that other
                writers must be kept from them.
        """
        self._direct = connection
        self._origin = origin
        self._writing = writing
        self.notes: list[Update] = []

    @property
    def _connection(self) -> Connection:
        """The connection, once what is held back has been written.

        `_direct` is the connection for what has nothing to do with it.
        """
        self._write_held()
        return self._direct

    def _write_held(self) -> None:
        """Writes what is held back, for those parts that hold anything back."""

    def _keep_series(self, *, alone: bool = False) -> None:
        """Keeps series from being deleted while samples are added, or others from adding any.

        In PostgreSQL; in SQLite there is no other writer.
        """
        if self._connection.dialect.name == "postgresql":
            mode = "" if alone else "_shared"
            execute(self._connection, f"SELECT pg_advisory_xact_lock{mode}({_SERIES_LOCK})")
