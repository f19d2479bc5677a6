"""Settings of the analytics service."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import platformdirs
from pydantic import Field, field_validator

from grpc_runtime.service_settings import ServiceSettings


def default_database() -> str:
    """The SQLite file in the user's state directory."""
    return str(Path(platformdirs.user_state_dir("midcourse", appauthor=False)) / "analytics.db")


class AnalyticsSettings(ServiceSettings, env_prefix="MIDCOURSE_ANALYTICS_"):
    """Settings of `midcourse analytics serve`."""

    table: ClassVar[str] = "analytics"

    listen: str = Field(
        default="127.0.0.1:50052", description="Address to listen on: host:port, or unix:PATH."
    )
    database: str = Field(
        default_factory=default_database,
        description=(
            "Where everything durable is: a SQLite file (a path or sqlite:///PATH), or "
            "postgresql://USER:PASSWORD@HOST/NAME for several replicas."
        ),
    )
    control_plane: str = Field(
        default="127.0.0.1:50051", description="Address of the control plane that is asked."
    )
    control_plane_ca: str | None = Field(
        default=None,
        description=(
            "PEM file with the authority of the control plane's certificate, or system; asks for"
            " TLS. By default MIDCOURSE_TLS_CA."
        ),
    )
    control_plane_cert: Path | None = Field(
        default=None,
        description=(
            "PEM file with the certificate to connect to the control plane with, where that wants"
            " one. It is not to have rights there: every caller would have them."
        ),
    )
    control_plane_key: Path | None = Field(
        default=None, description="PEM file with that certificate's key."
    )
    default_model: str | None = Field(
        default=None,
        description=(
            "Model that answers where neither request nor session names one; "
            "without it gpt-4o-mini."
        ),
    )
    follow_successors: bool = Field(
        default=False, description="Take a retired model's successor instead of refusing."
    )
    failover: list[str] = Field(
        default_factory=list,
        description=(
            "Models to try, in order, where the chosen one can not be reached before its first "
            "token; a JSON list."
        ),
    )
    catalogue: Path | None = Field(
        default=None, description="TOML file with more providers and models, or changes to them."
    )
    max_output_tokens: int = Field(
        default=4_096,
        ge=16,
        le=1_000_000,
        description="Most tokens of one answer of a model, unless a request says otherwise.",
    )
    max_rounds: int = Field(
        default=8, ge=1, le=50, description="Most calls of a model for one answer."
    )
    attempts: int = Field(
        default=3, ge=1, le=10, description="Most attempts of one call, before its first token."
    )
    idle_timeout: float = Field(
        default=60.0,
        gt=0,
        le=3_600,
        description="Seconds of a provider's silence after which a call has failed.",
    )
    turn_timeout: float = Field(
        default=300.0, gt=0, le=86_400, description="Most seconds for one answer."
    )
    tool_timeout: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Most seconds for one question to the control plane.",
    )
    retain_sessions_days: float = Field(
        default=0.0, ge=0, le=36_500, description="Days that unused sessions are kept; 0: for ever."
    )
    retain_usage_days: float = Field(
        default=400.0, ge=0, le=36_500, description="Days that usage is kept; 0: for ever."
    )
    retain_audit_days: float = Field(
        default=365.0, ge=0, le=36_500, description="Days that audit records are kept; 0: for ever."
    )

    @field_validator("default_model", "catalogue", mode="before")
    @classmethod
    def _nothing(cls, value: object) -> object:
        """A variable that is set to nothing says nothing."""
        return None if value == "" else value

    @classmethod
    def env_var(cls, field: str) -> str:
        """Returns the name of the environment variable for a field."""
        if field == "default_model":
            return "ANALYTICS_DEFAULT_MODEL"
        if field == "config":
            return "MIDCOURSE_CONFIG"  # one file has a table for each service
        return super().env_var(field)
