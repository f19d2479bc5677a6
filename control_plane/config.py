"""Settings of the control plane."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import platformdirs
from pydantic import Field, field_validator

from grpc_runtime.service_settings import CertPrincipal, ServiceSettings


def default_database() -> str:
    """The SQLite file in the user's state directory."""
    return str(Path(platformdirs.user_state_dir("midcourse", appauthor=False)) / "control.db")


class ServerSettings(ServiceSettings, env_prefix="MIDCOURSE_"):
    """Settings of `midcourse serve`."""

    table: ClassVar[str] = "control_plane"

    listen: str = Field(
        default="127.0.0.1:50051", description="Address to listen on: host:port, or unix:PATH."
    )
    database: str = Field(
        default_factory=default_database,
        description="SQLite file (a path or sqlite:///PATH) that holds everything durable, or "
        "postgresql://USER:PASSWORD@HOST:PORT/NAME, which any number of servers may share.",
    )
    poll_interval: float = Field(
        default=5.0,
        ge=0.05,
        le=300,
        description="Seconds after which a server looks for what others have written to a shared "
        "database though it has heard of nothing.",
    )
    heartbeat_interval: float = Field(
        default=5.0, ge=0.05, le=3_600, description="Seconds between two heartbeats of an agent."
    )
    lost_after: float = Field(
        default=3.0,
        ge=1.5,
        le=100,
        description="Heartbeat intervals of silence after which a job is lost.",
    )
    stall_after: float = Field(
        default=30.0,
        ge=0.1,
        le=86_400,
        description="Least seconds without a step after which a trainer counts as stalled.",
    )
    flush_interval: float = Field(
        default=0.2,
        ge=0.0,
        le=60,
        description="Seconds that samples are gathered before one commit.",
    )
    max_pending_samples: int = Field(
        default=500_000,
        ge=1_000,
        description="Samples in memory above which agents are slowed down.",
    )
    max_open_updates: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Most updates of a job that are not in force yet.",
    )
    max_sessions: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Most agents whose sessions are open on this server.",
    )
    max_watches: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Most watches and waits that are open on this server.",
    )
    max_watches_per_principal: int = Field(
        default=5_000,
        ge=1,
        le=1_000_000,
        description="Most of these that one caller has open.",
    )
    watch_patience: float = Field(
        default=30.0,
        ge=0.1,
        le=3_600,
        description="Seconds that a message of a watch may wait for a caller who does not read.",
    )
    retain_samples_days: float = Field(
        default=90.0,
        ge=0,
        le=36_500,
        description="Days that samples of metrics are kept; 0: for ever.",
    )
    retain_events_days: float = Field(
        default=7.0,
        ge=0,
        le=36_500,
        description="Days that watches can be resumed from; 0: for ever.",
    )
    retain_audit_days: float = Field(
        default=365.0,
        ge=0,
        le=36_500,
        description="Days that audit records are kept; 0: for ever.",
    )
    retain_jobs_days: float = Field(
        default=0.0,
        ge=0,
        le=36_500,
        description="Days that jobs are kept, with their updates and metrics, after they finished "
        "or failed; 0: for ever.",
    )
    retain_tokens_days: float = Field(
        default=30.0,
        ge=0,
        le=36_500,
        description="Days that tokens are kept after they expired or were revoked; 0: for ever.",
    )

    @field_validator("cert_principals")
    @classmethod
    def _make_sense(cls, value: dict[str, CertPrincipal]) -> dict[str, CertPrincipal]:
        # Not above: what is missing for a server is to be noticed before anything of it is loaded.
        from control_plane.domain.access import Access, Role, check_access, check_principal
        from control_plane.domain.errors import Refusal

        for name, grant in value.items():
            try:
                check_principal(grant.principal)
                check_access(Access(Role(grant.role), grant.selector, tuple(grant.jobs)))
            except Refusal as refusal:
                raise ValueError(f"{name}: {refusal.message}") from None
        return value
