"""The store's transaction over SQL, put together from its parts."""

from __future__ import annotations

from control_plane.store.events import EventQueries
from control_plane.store.jobs import JobQueries
from control_plane.store.retention import RetentionQueries
from control_plane.store.telemetry import TelemetryQueries
from control_plane.store.updates import UpdateQueries


class SqlTransaction(JobQueries, UpdateQueries, EventQueries, TelemetryQueries, RetentionQueries):
    """Implements `control_plane.services.ports.Transaction`."""
