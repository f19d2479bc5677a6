"""How a client proves who it is, and whom it believes: token, authorities, certificate.

A token goes along with calls over TLS or to this host alone. It is never shown: not in an error,
not in a log, not by ``repr``.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import grpc

from grpc_runtime.client.metadata import Metadata, checked_metadata
from grpc_runtime.client.target import is_local
from grpc_runtime.client.variables import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    SYSTEM_CA,
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_TOKEN: Final = re.compile(r"[\x21-\x7e]+")

# A client's process may have no structured log: this one ends on stderr by itself.
_log = logging.getLogger(__name__)
_warned: set[Path] = set()


class CredentialsError(ValueError):
    """Credentials can not be used; the message says which and why, and shows no secret."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client connects with.

    Attributes:
        token: Secret of a token; empty: none, or that of ``token_file``.
        token_file: File with a token, read anew when it changes; None: none.
        ca: PEM file with the authorities whose servers are believed, or ``system`` for the public
            ones; empty: no TLS.
        certificate: PEM file with the client's own certificate and its chain; None: none.
        key: PEM file with that certificate's key.
    """

    token: str = field(default="", repr=False)
    token_file: Path | None = None
    ca: str = ""
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Returns what the environment says.

        Args:
            environ: The environment; None: this process's.
        """
        environ = os.environ if environ is None else environ

        def path(variable: str) -> Path | None:
            text = environ.get(variable, "")
            return Path(text).expanduser() if text else None

        return cls(
            token=environ.get(TOKEN_VARIABLE, ""),
            token_file=path(TOKEN_FILE_VARIABLE),
            ca=environ.get(CA_VARIABLE, ""),
            certificate=path(CERT_VARIABLE),
            key=path(KEY_VARIABLE),
        )

    def but(
        self,
        *,
        token_file: Path | None = None,
        ca: str | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> Self:
        """Returns these credentials with what is given in the place of what they have.

        A token file that is given comes before any token of these.
        """
        made = self
        if token_file is not None:
            made = replace(made, token="", token_file=token_file)
        if ca is not None:
            made = replace(made, ca=ca)
        if certificate is not None or key is not None:
            made = replace(made, certificate=certificate, key=key)
        return made

    @property
    def is_secure(self) -> bool:
        """Whether connections are encrypted."""
        return bool(self.ca) or self.certificate is not None

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Returns what gRPC connects with; None: without TLS.

        Raises:
            CredentialsError: A file can not be read, or one is missing.
        """
        if (self.certificate is None) != (self.key is None):
            raise CredentialsError(
                f"a client certificate and its key belong together: got only one of them"
                f" ({CERT_VARIABLE}, {KEY_VARIABLE})"
            )
        if not self.is_secure:
            return None
        roots = None if self.ca in ("", SYSTEM_CA) else _read_pem(self.ca, "CERTIFICATE")
        chain = key = None
        if self.certificate is not None and self.key is not None:
            chain = _read_pem(self.certificate, "CERTIFICATE")
            key = _read_pem(self.key, "PRIVATE KEY")
        return grpc.ssl_channel_credentials(roots, key, chain)

    def check_for(self, address: str, *, forwards_tokens: bool = False) -> None:
        """Makes sure that a token would not cross a network in clear.

        Args:
            address: Where calls are to go.
            forwards_tokens: Tokens of others will go along.

        Raises:
            CredentialsError: It would.
        """
        has_token = bool(self.token or self.token_file or forwards_tokens)
        if self.is_secure or not has_token or is_local(address):
            return
        raise CredentialsError(
            f"a token is not sent to {address} without TLS, as others could read it on the way:"
            f" say whom to believe with {CA_VARIABLE} (a PEM file with the server's authority, or"
            f" '{SYSTEM_CA}')"
        )

    def metadata(self) -> Metadata:
        """Returns what goes along with a call.

        Raises:
            CredentialsError: The token's file can not be read, or there is no token in it.
        """
        if self.token:
            token, where = self.token, TOKEN_VARIABLE
        elif self.token_file is not None:
            token, where = _read_token(self.token_file), str(self.token_file)
        else:
            return ()
        if not _TOKEN.fullmatch(token):
            raise CredentialsError(
                f"{where} holds no token: one is a single line without spaces, such as mc_..."
            )
        return checked_metadata([("authorization", f"Bearer {token}")])


NO_CREDENTIALS: Final = Credentials()
"""A client that has none, whatever the environment says."""


def _read_token(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise CredentialsError(f"cannot read the token file {path}: {why}") from None
    # Not of the group: Kubernetes mounts secrets readable by the pod's own.
    if mode & stat.S_IRWXO and path not in _warned:
        _warned.add(path)
        _log.warning("others can read the token file %s: chmod 600 it", path)
    return text


def _read_pem(path: str | Path, what: str) -> bytes:
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read the TLS file {path}: {error.strerror}") from error
    if f"{what}-----".encode() not in content:
        raise CredentialsError(f"the TLS file {path} holds no PEM block of kind {what}")
    return content
