"""The store's transaction over SQL, put together from its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.store.audit import AuditQueries
from control_plane.store.batches import BatchQueries
from control_plane.store.events import EventQueries
from control_plane.store.replicas import ReplicaQueries
from control_plane.store.retention import RetentionQueries
from control_plane.store.telemetry import TelemetryQueries
from control_plane.store.tokens import TokenQueries
from control_plane.store.updates import UpdateQueries

if TYPE_CHECKING:
    from control_plane.domain.job import Job


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

    def delete_job(self, job: Job) -> None:
        """Deletes a job and everything that belongs to it but its events; see `Transaction`."""
        self._count_again(job)
        super().delete_job(job)

    def read_ahead_to_accept(self, job_id: str, request_id: str) -> None:
        """Reads at once what accepting an update of a job asks for; see `Transaction`."""
        if self._direct.dialect.name == "sqlite":
            return  # what is asked for one by one has no way to go there
        jobs = self._ask_ahead([job_id])
        notes = (self._ask_telemetry(job_id), self._ask_of_request(job_id, request_id))
        for job in jobs():
            for note in notes:
                note(job)
