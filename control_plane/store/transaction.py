"""The store's transaction over SQL, put together from its parts."""

from __future__ import annotations

from control_plane.store.audit import AuditQueries
from control_plane.store.batches import BatchQueries
from control_plane.store.events import EventQueries
from control_plane.store.replicas import ReplicaQueries
from control_plane.store.retention import RetentionQueries
from control_plane.store.telemetry import TelemetryQueries
from control_plane.store.tokens import TokenQueries
from control_plane.store.updates import UpdateQueries


class SqlTransaction(
    UpdateQueries,
    BatchQueries,
    EventQueries,
    TelemetryQueries,
    ReplicaQueries,
    TokenQueries,
    AuditQueries,
    RetentionQueries,
):
    """Implements `control_plane.services.ports.Transaction`."""
