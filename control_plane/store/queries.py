"""What the parts of a transaction share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Queries:
    """Reads and writes over one connection, within the transaction that it is in."""

    def __init__(self, connection: Connection, *, writing: bool) -> None:
        """Works on a transaction that somebody else begins and ends.

        Args:
            connection: In a transaction.
            writing: Whether rows that are read are going to be written, so that other
                writers must be kept from them.
        """
        self._connection = connection
        self._writing = writing
