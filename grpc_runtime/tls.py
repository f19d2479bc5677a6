"""TLS for servers, from files that may be replaced while the server runs."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from grpc_runtime.listen import ListenError
from grpc_runtime.logging import get_logger

if TYPE_CHECKING:
    from pathlib import Path

_log = get_logger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class TlsError(ListenError):
    """The certificate, the key or the authorities can not be used."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a server proves its identity with, and whose certificates it takes from clients.

    Attributes:
        certificate: PEM file with the server's certificate, followed by its chain.
        key: PEM file with the private key.
        client_ca: PEM file with the authorities whose certificates clients must have; None:
            clients are asked for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Reads the files; new connections will use what is in them by then.

        They are looked at for every connection. Where new ones can not be used, an error is
        logged and the old ones stay in use.

        Raises:
            TlsError: A file cannot be read or is not PEM, or key and certificate do not belong
                together.
        """
        reloader = _Reloader(self)
        return grpc.dynamic_ssl_server_credentials(
            reloader.first,
            reloader.fetch,  # type: ignore[arg-type]  # None: no change; the stubs do not know
            require_client_authentication=self.client_ca is not None,
        )

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))


class _Reloader:
    """Reads the files again when they have changed; called from gRPC's threads."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._trouble: _Stamp | None = None
        self._stamp = _stamp(files)
        self.first = _read(files)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns what is in the files if it is new and good."""
        with self._lock:
            try:
                stamp = _stamp(self._files)
                if stamp == self._stamp:
                    return None
                made = _read(self._files)
                if stamp != _stamp(self._files):
                    return None  # being replaced right now: the next connection looks again
            except TlsError as error:
                # Certificate and key are two files: between the two writes they do not match. It
                # is logged once for each state that the files are in.
                if self._is_new_trouble():
                    _log.error("new TLS files can not be used; the old ones stay", error=str(error))
                return None
            self._stamp = stamp
            _log.info("TLS files read again", files=[str(path) for path in self._files.paths])
            return made

    def _is_new_trouble(self) -> bool:
        try:
            stamp: _Stamp = _stamp(self._files)
        except TlsError:
            stamp = ()
        is_new, self._trouble = stamp != self._trouble, stamp
        return is_new


def _stamp(files: TlsFiles) -> _Stamp:
    """What changes when a file is replaced or written to; symbolic links are followed."""
    try:
        found = [path.stat() for path in files.paths]
    except OSError as error:
        raise TlsError(f"cannot read the TLS file {error.filename}: {error.strerror}") from error
    return tuple((each.st_mtime_ns, each.st_ino, each.st_size) for each in found)


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    certificate = _read_pem(files.certificate, "CERTIFICATE")
    key = _read_pem(files.key, "PRIVATE KEY")
    authorities = None if files.client_ca is None else _read_pem(files.client_ca, "CERTIFICATE")
    _check(files)
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)


def _check(files: TlsFiles) -> None:
    """Makes sure of what gRPC would only notice with the first connection, and not say.

    Raises:
        TlsError: Key and certificate do not belong together, or one of them is damaged.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # gRPC takes no encrypted keys; without this one would be asked for on the terminal.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsError(
            f"the TLS certificate {files.certificate} can not be used with the key {files.key}:"
            f" {_why(error)}; the key has to be the certificate's own, and not encrypted"
        ) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise TlsError(
                f"the TLS authorities {files.client_ca} can not be used: {_why(error)}"
            ) from error


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).replace("_", " ").lower()


def _read_pem(path: Path, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read the TLS file {path}: {error.strerror}") from error
    if f"{what}-----".encode() not in content:
        raise TlsError(f"the TLS file {path} holds no PEM block of kind {what}")
    return content
