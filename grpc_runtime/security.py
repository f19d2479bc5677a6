"""From a service's settings to its TLS and its authentication."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_runtime.auth import (
    AnonymousAuthenticator,
    Authenticator,
    CertificateAuthenticator,
    FirstAuthenticator,
)
from grpc_runtime.tls import TlsFiles

if TYPE_CHECKING:
    from grpc_runtime.bearer import BearerAuthenticator
    from grpc_runtime.service_settings import ServiceSettings


def tls_files(settings: ServiceSettings) -> TlsFiles | None:
    """Returns the files of the server's certificate; None: it does without TLS."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(
        settings.tls_cert.expanduser(),
        settings.tls_key.expanduser(),
        settings.tls_client_ca.expanduser() if settings.tls_client_ca else None,
    )


def authenticator(settings: ServiceSettings, bearer: BearerAuthenticator) -> Authenticator:
    """Returns what tells who calls.

    A token comes before a certificate: where every connection has to have one, it is the token
    that says who is behind it.

    Args:
        settings: Of the service.
        bearer: Knows callers by their tokens; used if the settings say so.
    """
    kinds = settings.auth_kinds
    if not kinds:
        return AnonymousAuthenticator(allow_remote=settings.insecure)
    chosen: list[Authenticator] = []
    if "token" in kinds:
        chosen.append(bearer)
    if "mtls" in kinds:
        principals = settings.cert_principals.items()
        chosen.append(
            CertificateAuthenticator({name: each.as_principal() for name, each in principals})
        )
    return chosen[0] if len(chosen) == 1 else FirstAuthenticator(chosen)
