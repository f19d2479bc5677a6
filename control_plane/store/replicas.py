"""Replicas that share the store, and which of them are alive.

Each counts on in its own row. Whoever sees a number that has changed knows that its owner
was alive since it looked last, so that nobody's clock is compared with anybody else's.
"""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select, text

from control_plane.store.queries import Queries
from control_plane.store.schema import replicas
from grpc_runtime.sql.prepared import Prepared

_BEAT = Prepared(
    text(
        "INSERT INTO replicas (id, beats) VALUES (:replica, 1) "
        "ON CONFLICT (id) DO UPDATE SET beats = replicas.beats + 1"
    )
)
_ALL = Prepared(select(replicas.c.id, replicas.c.beats))
_FORGET = Prepared(delete(replicas).where(replicas.c.id == bindparam("replica")))


class ReplicaQueries(Queries):
    """The part of a transaction that is about replicas."""

    def beat(self, replica: str) -> dict[str, int]:
        """Counts a replica on by one; returns how far each replica has counted."""
        _BEAT.run(self._connection, replica=replica)
        return dict(_ALL.rows(self._connection))

    def forget_replica(self, replica: str) -> None:
        """Takes a replica that is gone off the list."""
        _FORGET.run(self._connection, replica=replica)
