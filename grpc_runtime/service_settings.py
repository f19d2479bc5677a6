"""What every service here can be set to; each adds what is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from grpc_runtime.auth import Principal
from grpc_runtime.logging import LogFormat, LogLevel
from grpc_runtime.settings import Settings

AuthKind = Literal["none", "token", "mtls"]
"""How callers prove who they are."""


class CertPrincipal(BaseModel):
    """Who is meant by a name in a client's certificate, and what it may do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    principal: str = Field(min_length=1, description="Name of the caller.")
    role: Literal["viewer", "operator", "agent", "admin"] = Field(description="What it may do.")
    selector: str = Field(default="", description="Only with what this label selector matches.")
    jobs: list[str] = Field(
        default_factory=list,
        description="Only with these ids, or beginnings of ids followed by '*'.",
    )

    def as_principal(self) -> Principal:
        """Returns it as the interceptor has it."""
        return Principal(self.principal, frozenset({self.role}), self.selector, tuple(self.jobs))


class ServiceSettings(Settings):
    """Settings of a gRPC service."""

    listen: str = Field(description="Address to listen on: host:port, or unix:PATH.")
    health_listen: str | None = Field(
        default=None,
        description=(
            "Second address, which answers health checks alone, from anybody and without TLS:"
            " for probes."
        ),
    )
    tls_cert: Path | None = Field(
        default=None,
        description=(
            "PEM file with the server's certificate and its chain; read again when it changes."
        ),
    )
    tls_key: Path | None = Field(
        default=None, description="PEM file with the certificate's private key, not encrypted."
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="PEM file with authorities: clients must have a certificate of one of them.",
    )
    auth: str = Field(
        default="none",
        description=(
            "How callers prove who they are: none (callers on this host may do everything, others"
            " nothing), token, mtls, or token,mtls (either)."
        ),
    )
    cert_principals: dict[str, CertPrincipal] = Field(
        default_factory=dict,
        description=(
            "With mtls: who is meant by a name in a client's certificate; a table from names to"
            " principal, role, selector and jobs."
        ),
    )
    insecure: bool = Field(
        default=False,
        description="Listen beyond loopback without TLS and authentication all the same.",
    )
    metrics_listen: str = Field(
        default="",
        description=(
            "Address (host:port) where Prometheus reads metrics over HTTP, from anybody and without"
            " TLS; empty: nowhere."
        ),
    )
    tracing: bool = Field(
        default=False,
        description=(
            "Send traces by OpenTelemetry, to where OTEL_EXPORTER_OTLP_ENDPOINT and its like say."
        ),
    )
    database_patience: float = Field(
        default=30.0,
        ge=0,
        le=3_600,
        description="Seconds to wait at the start for a PostgreSQL server that does not answer.",
    )
    max_message_bytes: int = Field(
        default=4 * 1024 * 1024, ge=65_536, description="Largest gRPC message, in bytes."
    )
    max_calls_per_second: float = Field(
        default=0.0,
        ge=0,
        le=1_000_000,
        description=(
            "Most calls per second of one caller; a stream is one call. 0: any number. Without"
            " authentication all callers are one."
        ),
    )
    max_strangers_per_second: float = Field(
        default=10.0,
        gt=0,
        le=1_000_000,
        description=(
            "Most calls per second without valid credentials from one address that are looked at."
        ),
    )
    grace: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="Seconds that calls get to end when the server stops.",
    )
    log_level: LogLevel = Field(default="info", description="Least severe events to log.")
    log_format: LogFormat = Field(
        default="auto", description="json, console, or auto: console on a terminal, else JSON."
    )

    @property
    def auth_kinds(self) -> tuple[AuthKind, ...]:
        """How callers prove who they are; empty: they do not."""
        given = [kind.strip() for kind in self.auth.split(",")]
        return tuple(kind for kind in get_args(AuthKind)[1:] if kind in given)

    @field_validator("tls_cert", "tls_key", "tls_client_ca", mode="before")
    @classmethod
    def _no_file(cls, value: object) -> object:
        """Takes an empty text for nothing: a variable can be set, but not unset, to override."""
        return None if value == "" else value

    @field_validator("auth")
    @classmethod
    def _known_kinds(cls, value: str) -> str:
        given = [kind.strip() for kind in value.split(",")]
        if set(given) - set(get_args(AuthKind)) or ("none" in given and len(given) > 1):
            raise ValueError("allowed are none, token, mtls and token,mtls")
        return value

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: got only one of them")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key too")
        if "mtls" in self.auth_kinds and self.tls_client_ca is None:
            raise ValueError(
                "auth mtls needs tls_client_ca: the authorities of the clients' certificates"
            )
        if self.cert_principals and "mtls" not in self.auth_kinds:
            raise ValueError("cert_principals have no effect without auth mtls")
        return self
