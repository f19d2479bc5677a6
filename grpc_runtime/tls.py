"""TLS for servers, from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from grpc_runtime.listen import ListenError

if TYPE_CHECKING:
    from pathlib import Path


class TlsError(ListenError):
    """The certificate or the key cannot be used."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a server proves its identity with.

    Attributes:
        certificate: PEM file with the server's certificate, followed by its chain.
        key: PEM file with the private key.
    """

    certificate: Path
    key: Path

    def credentials(self) -> grpc.ServerCredentials:
        """Reads the files.

        Raises:
            TlsError: A file cannot be read or is not PEM.
        """
        certificate = _read_pem(self.certificate, "CERTIFICATE")
        key = _read_pem(self.key, "PRIVATE KEY")
        return grpc.ssl_server_credentials([(key, certificate)])


def _read_pem(path: Path, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read the TLS file {path}: {error.strerror}") from error
    if f"{what}-----".encode() not in content:
        raise TlsError(f"the TLS file {path} holds no PEM block of kind {what}")
    return content
